package sign

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/elfstrip"
	"github.com/modsign/modsign/internal/module"
)

// split writes the debug file of the module, where debuggers look for it, and returns the
// link to it. The file exists before the module that has lost its own.
func (w *work) split(ctx context.Context, file *elfstrip.File) (*elfstrip.Link, error) {
	id, err := file.BuildID()
	if err != nil {
		return nil, err
	}
	image, err := file.DebugFile()
	if err != nil {
		return nil, err
	}
	first := w.job.names[0].debug
	link := &elfstrip.Link{Name: first.name()}
	switch w.last {
	case stageMake: // the link has to be right for a digest of the module
		sum := crc32.NewIEEE()
		if _, err := module.Copy(sum, module.Reader(ctx, image.Reader())); err != nil {
			return nil, err
		}
		link.CRC = sum.Sum32()
	case stagePlace:
		if link.CRC, err = w.writeDebugFile(ctx, image); err != nil {
			return nil, err
		}
		if len(id) > 1 {
			if err := w.linkBuildID(id, first); err != nil {
				return nil, err
			}
		}
	}
	w.result.DebugFile = first.path()
	return link, nil
}

// writeDebugFile writes the debug file under all names of the job and returns its CRC-32.
func (w *work) writeDebugFile(ctx context.Context, image *elfstrip.Image) (uint32, error) {
	names := w.job.names
	dirs := make([]*dirfd.Dir, len(names))
	for i, name := range names {
		var err error
		if dirs[i], err = name.debug.make(); err != nil {
			return 0, err
		}
		defer dirs[i].Close()
		if err := dirs[i].CheckFile(name.debug.name()); err != nil {
			return 0, err
		}
	}
	out, err := atomicfile.CreateIn(dirs[0], names[0].debug.name(), 0o644)
	if err != nil {
		return 0, err
	}
	defer out.Abort()
	sum := crc32.NewIEEE()
	file := content{size: image.Size(), reader: func() io.Reader { return module.Reader(ctx, image.Reader()) }}
	if err := file.copyTo(io.MultiWriter(sum, out)); err != nil {
		return 0, err
	}
	// It has the module's time, for reproducible builds.
	mode := fs.FileMode(0o644)
	inherit := atomicfile.Inherit{Mode: &mode, NewMTime: w.NewMTime, BestEffort: true}
	if _, err := out.Inherit(w.module.Descriptor(), w.module.Info, inherit); err != nil {
		return 0, err
	}
	for i, name := range names[1:] {
		if err := out.AlsoIn(dirs[i+1], name.debug.name()); err != nil {
			return 0, err
		}
	}
	return sum.Sum32(), out.Commit(w.Sync == SyncFile)
}

// linkBuildID makes the name by which debuggers find a debug file: .build-id, the first
// byte of the build id as a directory, then the other bytes and .debug. Copies of a module
// have the same build id: the second gets a number, as find-debuginfo does it.
func (r *run) linkBuildID(id []byte, debug location) error {
	r.linking.Lock()
	defer r.linking.Unlock()
	rel := filepath.Join(".build-id", hex.EncodeToString(id[:1]))
	dir, err := debug.base.MakeDir(rel)
	if err != nil {
		return err
	}
	defer dir.Close()
	target, err := filepath.Rel(rel, debug.rel)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		name := hex.EncodeToString(id[1:])
		if n > 0 {
			name += fmt.Sprintf(".%d", n)
		}
		name += ".debug"
		is, err := dir.Readlink(name)
		if err == nil && is == target {
			return nil
		}
		if err == nil && !dir.Exists(name) { // it is dangling
			if err := dir.Remove(name); err != nil {
				return err
			}
		}
		if err := dir.Symlink(target, name); !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := checkDebugFile(debug.base, dir, filepath.Join(rel, is), name); err != nil {
			return err
		}
		// It is another module's.
	}
}

// checkDebugFile returns an error if a name in .build-id is neither a file nor a link to
// one, which is at, below the directory of debug files: debuggers would read something
// else as the debug file of a module.
func checkDebugFile(base, dir *dirfd.Dir, at, name string) error {
	err := dir.CheckFile(name)
	if err == nil || !filepath.IsLocal(at) {
		return err
	}
	in, openErr := base.OpenDir(filepath.Dir(at))
	if openErr != nil {
		return err
	}
	defer in.Close()
	if st, statErr := in.Lstat(filepath.Base(at)); statErr != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return err
	}
	return nil
}

// debugName is the path of a module's debug file below the directory of all debug files:
// the module's path from lib/modules or usr/lib/modules on, as if its tree were installed
// at /, and .debug.
func debugName(path, rel string) (string, error) {
	path, err := filepath.Abs(module.BaseName(path))
	if err != nil {
		return "", err
	}
	at := strings.LastIndex(path, "/lib/modules/")
	if at < 0 {
		return module.BaseName(rel) + ".debug", nil
	}
	if usr := strings.TrimSuffix(path[:at], "/usr"); len(usr) < at {
		at = len(usr)
	}
	return path[at+1:] + ".debug", nil
}

// MissingDebugFiles returns the modules, in the order of the input, that have debug
// information without a copy in a directory of debug files, such as usr/lib/debug in the
// root of a package. Stripping them would lose it, and find-debuginfo, which has yet to
// strip them, would remove their signatures. Modules that cannot be read are not listed:
// the run that signs them names them.
func (t *Tree) MissingDebugFiles(ctx context.Context, dir string, opts ReadOptions) ([]string, error) {
	if err := first(t.check(), opts.check()); err != nil {
		return nil, err
	}
	limits := module.SharedLimits(opts.MaxSize)
	missing := make([]bool, len(t.entries))
	err := batch.Each(ctx, len(t.entries), opts.Jobs, func(i int) (err error) {
		if e := t.entries[i]; e.Err == nil {
			missing[i], err = missesDebugFile(ctx, t.bases.of(&e), e, dir, limits)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var paths []string
	for i, e := range t.entries {
		if missing[i] {
			paths = append(paths, e.Path)
		}
	}
	return paths, nil
}

func missesDebugFile(ctx context.Context, at location, e module.Entry, dir string, limits module.Limits) (bool, error) {
	m, err := at.read(ctx, limits)
	if err != nil {
		return false, context.Cause(ctx)
	}
	defer m.Close()
	size, err := payloadSize(m)
	if err != nil {
		return false, nil
	}
	file, err := elfstrip.Parse(m.Payload(size), size)
	if err != nil || !file.HasDebugInfo() {
		return false, nil
	}
	name, err := debugName(e.Path, e.Rel)
	if err != nil {
		return false, err
	}
	names := []string{name}
	if id, err := file.BuildID(); err == nil && len(id) > 1 {
		names = append(names, filepath.Join(".build-id", hex.EncodeToString(id[:1]), hex.EncodeToString(id[1:])+".debug"))
	}
	return !slices.ContainsFunc(names, func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}), nil
}
