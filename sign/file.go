package sign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// FileOptions are those of the kernel's scripts/sign-file and of Ubuntu's kmodsign.
type FileOptions struct {
	Signature []byte // -s: append this and sign nothing; the Signer has to be nil
	Save      bool   // -p: also write SRC.p7s
	Detached  bool   // -d: write SRC.p7s alone
	// -D of kmodsign: write to dst, which must be another file, only what has to follow the
	// end of src. The signature is of all of src, with an old signature if there is one.
	Trailer bool
}

// File does what scripts/sign-file does: it signs any file, whatever its name and content,
// and writes it to dst, or in place if dst is empty or leads to the same file. It replaces
// an old signature. The written file has mode 0666 less the umask, or the mode of another
// file that it replaces.
func File(ctx context.Context, signer *Signer, src, dst string, opts FileOptions) error {
	if err := opts.check(signer, dst); err != nil {
		return err
	}
	in, err := openSource(src)
	if err != nil {
		return err
	}
	defer in.close()
	layers, err := module.Layers(in.file, in.info.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", src, err)
	}
	size := module.PayloadSize(layers, in.info.Size())
	if opts.Trailer {
		if size = in.info.Size(); in.is(dst) {
			return fmt.Errorf("%s: the module itself, which the signature alone would replace", dst)
		}
	}

	sig := opts.Signature
	if signer != nil {
		if sig, err = signer.signAs(filepath.ToSlash(filepath.Clean(src)), in.payload(ctx, size)); err == nil {
			err = in.unchanged()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", src, err)
		}
		if opts.Save || opts.Detached {
			if err := save(src+".p7s", sig); err != nil || opts.Detached {
				return err
			}
		}
	}
	trailer := module.AppendSignature(nil, module.TypePKCS7, sig)
	if opts.Trailer {
		return in.put(bytes.NewReader(trailer), dst)
	}
	signed := io.MultiReader(in.payload(ctx, size), bytes.NewReader(trailer))
	return in.put(signed, dst)
}

// sourceFile is the file that a path leads to, in its open directory.
type sourceFile struct {
	path string // as it was given
	real string // without links
	dir  *dirfd.Dir
	name string
	file *os.File
	info fs.FileInfo
}

func openSource(path string) (*sourceFile, error) {
	if _, err := os.Stat(path); err != nil { // it says best what is wrong
		return nil, err
	}
	real, err := realPath(path)
	if err != nil {
		return nil, err
	}
	s := &sourceFile{path: path, real: real, name: filepath.Base(real)}
	if s.dir, err = dirfd.OpenReal(filepath.Dir(real)); err != nil {
		return nil, err
	}
	if s.file, err = s.dir.Open(s.name, os.O_RDONLY, 0); err == nil {
		s.info, err = s.file.Stat()
	}
	if err == nil && !s.info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *sourceFile) close() {
	if s.file != nil {
		s.file.Close()
	}
	s.dir.Close()
}

// is reports whether a path leads to the file.
func (s *sourceFile) is(path string) bool {
	there, err := os.Stat(path)
	return err == nil && os.SameFile(s.info, there)
}

func (s *sourceFile) payload(ctx context.Context, size int64) io.Reader {
	return module.Reader(ctx, io.NewSectionReader(s.file, 0, size))
}

func (s *sourceFile) unchanged() error { return module.Unchanged(s.file, s.info, s.dir, s.name) }

// save writes a detached signature.
func save(path string, sig []byte) error {
	dir, err := dirfd.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return write(dir, filepath.Base(path), sig, nil, false)
}

// put writes the signed file where sign-file would write it, unless the source has changed.
func (s *sourceFile) put(signed io.Reader, dst string) error {
	// It is read a second time now.
	unchanged := func() error {
		if err := s.unchanged(); err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
		return nil
	}
	targets := []string{s.real}
	perm, keep := fs.FileMode(0o666), false
	if dst != "" {
		there, err := os.Stat(dst)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			targets[0] = dst
		case err != nil:
			return err
		case !there.Mode().IsRegular(): // a pipe, or /dev/null
			out, err := os.OpenFile(dst, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = io.Copy(out, signed)
			return errors.Join(err, out.Close(), unchanged())
		default:
			if dst, err = realPath(dst); err != nil {
				return err
			}
			if !os.SameFile(s.info, there) {
				targets[0] = dst
				perm, keep = there.Mode().Perm(), true
			} else if dst != s.real {
				targets = append(targets, dst) // another link of the module
			}
		}
	}
	lock, err := lockTargets(targets)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	var out *atomicfile.File
	if targets[0] == s.real {
		out, err = atomicfile.CreateIn(s.dir, s.name, perm)
	} else {
		out, err = atomicfile.Create(targets[0], perm)
	}
	if err != nil {
		return err
	}
	defer out.Abort()
	if _, err := module.Copy(out, signed); err != nil {
		return err
	}
	if keep {
		if err := out.Chmod(perm); err != nil {
			return err
		}
	}
	for _, target := range targets[1:] {
		if err := out.AlsoAt(target); err != nil {
			return err
		}
	}
	if err := unchanged(); err != nil {
		return err
	}
	return out.Commit(false)
}

// lockTargets keeps away runs over a whole tree: to them a temporary file would look like
// one that a killed run has left.
func lockTargets(targets []string) (*atomicfile.Lock, error) {
	var files, dirs []string
	for _, target := range targets {
		dir := filepath.Dir(target)
		if _, err := os.Stat(target); err == nil {
			files = append(files, target)
		} else if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		} // else there is nothing to lock, and nothing will be written
	}
	return atomicfile.NewLock(files, dirs)
}

// realPath is the absolute path of a file that exists, without links.
func realPath(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// write writes a whole file, and replaces an old one.
func write(dir *dirfd.Dir, name string, data []byte, mode *fs.FileMode, durable bool) error {
	if err := dir.CheckFile(name); err != nil {
		return err
	}
	out, err := atomicfile.CreateIn(dir, name, 0o666)
	if err != nil {
		return err
	}
	defer out.Abort()
	if _, err := out.Write(data); err != nil {
		return err
	}
	if mode != nil {
		if err := out.Chmod(*mode); err != nil {
			return err
		}
	}
	return out.Commit(durable)
}
