package elfstrip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// StripWith runs program --strip-debug on a copy of a module of size bytes, for shapes
// that [File.Strip] does not support ([ErrShape]). The caller closes the returned file,
// which has no name.
func StripWith(ctx context.Context, program string, module io.Reader, size int64) (*os.File, error) {
	dir, err := os.MkdirTemp("", ".modsign-strip-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "m.ko")
	in, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(in, module)
	if err := errors.Join(err, in.Close()); err != nil {
		return nil, err
	}
	// strip may write very large files for some inputs.
	limit := strconv.FormatInt((2*size+1<<20)/512, 10)
	cmd := exec.CommandContext(ctx, "sh", "-c", `ulimit -f "$2" && exec "$0" --strip-debug "$1"`, program, path, limit)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s --strip-debug: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return os.Open(path)
}
