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

	"github.com/modsign/modsign/internal/childenv"
)

// LeftToProgram reports whether the program strip can do what failed with err, an error
// of [File.Strip]: modules of a shape that this package does not support, except
// livepatches. strip of binutils loses the symbols of their relocations if a section has
// no other ones.
func (f *File) LeftToProgram(err error) bool { return errors.Is(err, ErrShape) && !f.isLivepatch() }

// StripWith runs program --strip-debug on a copy of a module of size bytes, for the reason
// why, which is [ErrShape]. It returns the stripped module and its size; the caller closes
// the file, which has no name. Output that check rejects is an error.
func StripWith(ctx context.Context, program string, why error, module io.Reader, size int64,
	check func(module io.ReaderAt, size int64) error) (*os.File, int64, error) {
	out, err := runStrip(ctx, program, module, size)
	if err != nil {
		return nil, 0, fmt.Errorf("%w; and %w", why, err)
	}
	info, err := out.Stat()
	if err == nil {
		err = check(out, info.Size())
	}
	if err != nil {
		out.Close()
		return nil, 0, fmt.Errorf("output of %s: %w", program, err)
	}
	return out, info.Size(), nil
}

func runStrip(ctx context.Context, program string, module io.Reader, size int64) (*os.File, error) {
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
	cmd.Env = childenv.WithoutSecrets(cmd.Environ())
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s --strip-debug: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return os.Open(path)
}
