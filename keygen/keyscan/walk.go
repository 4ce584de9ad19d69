package keyscan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/dirfd"
)

const (
	// together is how many files are found before they are read.
	together = 2048
	// maxTreeDepth bounds the directories that are open at once.
	maxTreeDepth = 256
)

// Tree looks at every regular file below a directory, or at one file. The path may be a
// symbolic link; none below it is followed, and FIFOs, devices and sockets are not opened.
// What cannot be read is a failure in the report. The error is that of the path itself, or
// the cause of the context.
func (s *Scanner) Tree(ctx context.Context, name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if !info.Mode().IsRegular() {
			return &fs.PathError{Op: "scan", Path: name, Err: errors.New("neither a directory nor a regular file")}
		}
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: name, Err: err}
		}
		s.read(ctx, reader{fd}, name)
		return ctx.Err()
	}
	root, err := dirfd.Open(name)
	if err != nil {
		return err
	}
	defer root.Close()
	w := &walker{Scanner: s, ctx: ctx, root: root}
	device, err := w.device(root)
	if err != nil {
		return err
	}
	if err := w.walk(root, "", device, 0); err != nil {
		return err
	}
	return w.flush()
}

// A walker finds the files of a tree, and reads them a few thousand at a time: in parallel,
// and with bounded memory in a tree of any size.
type walker struct {
	*Scanner
	ctx     context.Context
	root    *dirfd.Dir
	pending []string // paths of files below root
}

// walk finds the files in a directory, which has the path rel below the root.
func (w *walker) walk(dir *dirfd.Dir, rel string, device uint64, depth int) error {
	list, err := dir.Open(".", unix.O_DIRECTORY, 0)
	if err != nil {
		w.fail(&file{path: dir.Path("")}, err)
		return nil
	}
	defer list.Close()
	for {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		entries, err := list.ReadDir(together)
		for _, e := range entries {
			if err := w.entry(dir, e, path.Join(rel, e.Name()), device, depth); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			w.fail(&file{path: dir.Path("")}, err)
			return nil
		}
	}
}

func (w *walker) entry(dir *dirfd.Dir, e fs.DirEntry, rel string, device uint64, depth int) error {
	if w.isExcluded(rel) {
		return nil
	}
	switch t := e.Type(); {
	case t.IsRegular():
		if w.pending = append(w.pending, rel); len(w.pending) >= together {
			return w.flush()
		}
		return nil
	case t.IsDir():
		return w.below(dir, e.Name(), rel, device, depth+1)
	case t&fs.ModeSymlink != 0:
		w.count(&w.report.Links)
	default:
		w.count(&w.report.Special)
	}
	return nil
}

// below walks through a directory in a directory.
func (w *walker) below(dir *dirfd.Dir, name, rel string, device uint64, depth int) error {
	if depth > maxTreeDepth {
		w.fail(&file{path: dir.Path(name)}, fmt.Errorf("more than %d directories deep", maxTreeDepth))
		return nil
	}
	child, err := dir.OpenDir(name)
	if err != nil {
		w.fail(&file{path: dir.Path(name)}, err)
		return nil
	}
	defer child.Close()
	own, err := w.device(child)
	if err != nil {
		w.fail(&file{path: child.Path("")}, err)
		return nil
	}
	if own != device && isKernels(child) {
		w.mu.Lock()
		w.report.Systems = append(w.report.Systems, child.Path(""))
		w.mu.Unlock()
		return nil
	}
	return w.walk(child, rel, own, depth)
}

func (w *walker) device(dir *dirfd.Dir) (uint64, error) {
	st, err := dir.Lstat(".")
	if err != nil {
		return 0, err
	}
	return uint64(st.Dev), nil
}

// isKernels reports whether a mounted file system has files that the kernel makes while they
// are read, some without an end.
func isKernels(dir *dirfd.Dir) bool {
	f, err := dir.Open(".", unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false
	}
	switch uint32(st.Type) { // int64, and other types on some architectures
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.DEVPTS_SUPER_MAGIC,
		unix.SELINUX_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC:
		return true
	}
	return false
}

func (w *walker) count(n *int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*n++
}

// isExcluded reports whether a pattern excludes what is at a path below the tree.
func (s *Scanner) isExcluded(rel string) bool {
	for i, pattern := range s.options.Exclude {
		name := rel
		if !strings.Contains(pattern, "/") {
			name = path.Base(rel)
		}
		if ok, _ := path.Match(pattern, name); ok {
			s.mu.Lock()
			s.report.Excluded++
			s.excluded[i] = true
			s.mu.Unlock()
			return true
		}
	}
	return false
}

// flush reads the files that were found.
func (w *walker) flush() error {
	err := batch.Each(w.ctx, len(w.pending), w.options.Jobs, func(i int) error {
		rel := w.pending[i]
		name := w.root.Path(rel)
		fd, err := w.root.OpenBelowFD(rel)
		if err != nil {
			w.fail(&file{path: name}, err)
			return nil
		}
		w.read(w.ctx, reader{fd}, name)
		return nil
	})
	w.pending = w.pending[:0]
	if w.options.Progress != nil {
		w.progress.Lock()
		w.options.Progress(int(w.files.Load()), w.bytes.Load())
		w.progress.Unlock()
	}
	return err
}

// read looks at an open file and closes it.
func (s *Scanner) read(ctx context.Context, r reader, name string) {
	defer unix.Close(r.fd)
	f := newFile(name, 0)
	var st unix.Stat_t
	switch err := unix.Fstat(r.fd, &st); {
	case err != nil:
		s.fail(f, err)
		return
	case st.Mode&unix.S_IFMT != unix.S_IFREG: // it was when the directory was read
		s.fail(f, errors.New("no longer a regular file"))
		return
	}
	f.mode = fs.FileMode(st.Mode).Perm()
	*f.budget = freeBudget + budgetRatio*min(st.Size, 1<<50)
	s.files.Add(1)
	if err := s.look(ctx, f, &stream{rest: r, at: r, size: st.Size}, 0); err != nil && ctx.Err() == nil {
		s.fail(f, err)
	}
}

// A reader reads a regular file. It makes no more system calls than that needs, which is
// most of the time in a tree of small files.
type reader struct{ fd int }

func (r reader) Read(b []byte) (n int, err error) {
	for {
		n, err = unix.Read(r.fd, b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (r reader) ReadAt(b []byte, at int64) (n int, err error) {
	for n < len(b) {
		m, err := unix.Pread(r.fd, b[n:], at+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, err
		case m == 0:
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}
