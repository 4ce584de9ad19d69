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

// StripWith runs program --strip-debug over a copy of a module, size bytes long, for
// the shapes that Strip leaves to it (ErrShape). The caller closes the file that it
// returns, which has no name any more.
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
	// Of odd files strip can make very large ones.
	limit := strconv.FormatInt((2*size+1<<20)/512, 10)
	cmd := exec.CommandContext(ctx, "sh", "-c", `ulimit -f "$2" && exec "$0" --strip-debug "$1"`, program, path, limit)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s --strip-debug: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return os.Open(path)
}
