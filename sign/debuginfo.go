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

// body is what a module is without its signatures, and without its debug
// information where that goes. Each reader begins anew.
type body struct {
	size   int64
	same   bool // as it was
	reader func() io.Reader
	close  func()
}

// body plans what becomes of a payload. Nothing is written but the debug file.
func (r *run) body(ctx context.Context, m *module.File, j *job, result *Result) (*body, error) {
	payload := m.Payload(result.Payload)
	whole := &body{size: result.Payload, same: true, close: func() {}, reader: func() io.Reader {
		return module.Reader(ctx, m.Payload(result.Payload))
	}}
	if !r.opts.StripDebug && r.opts.SplitDebug == "" {
		return whole, nil
	}
	file, err := elfstrip.Parse(payload, result.Payload)
	if errors.Is(err, elfstrip.ErrShape) && r.opts.SplitDebug == "" {
		return r.stripWith(ctx, m, nil, result, err)
	}
	if err != nil {
		return nil, err
	}
	var link *elfstrip.Link
	if r.opts.SplitDebug != "" && file.HasDebugInfo() {
		if link, err = r.split(ctx, file, m, j, result); err != nil {
			return nil, fmt.Errorf("its debug information cannot be split off: %w", err)
		}
	}
	image, err := file.Strip(link)
	switch {
	case errors.Is(err, elfstrip.ErrShape) && !file.IsLivepatch(): // which binutils would spoil
		return r.stripWith(ctx, m, link, result, err)
	case err != nil:
		return nil, err
	case image.Same():
		return whole, nil
	}
	if file.HasDebugInfo() { // else it has lost the names of its source files, say
		result.Debug = result.Payload - image.Size()
	}
	result.Payload = image.Size()
	return &body{size: image.Size(), close: func() {}, reader: func() io.Reader { return module.Reader(ctx, image.Reader()) }}, nil
}

// stripWith has the program strip do what elfstrip does not, and why says. The link to
// the debug file, where there is one, is added to what the program leaves.
func (r *run) stripWith(ctx context.Context, m *module.File, link *elfstrip.Link, result *Result, why error) (*body, error) {
	if r.opts.StripProgram == "" {
		return nil, why
	}
	if r.opts.DryRun {
		result.ByProgram = true
		return &body{size: result.Payload, close: func() {}}, nil
	}
	out, err := elfstrip.StripWith(ctx, r.opts.StripProgram, module.Reader(ctx, m.Payload(result.Payload)), result.Payload)
	if err != nil {
		return nil, fmt.Errorf("%w; and %w", why, err)
	}
	info, err := out.Stat()
	if err == nil {
		err = module.CheckELF(out, info.Size())
	}
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("what %s has left: %w", r.opts.StripProgram, err)
	}
	size := info.Size()
	content := func() io.Reader { return io.NewSectionReader(out, 0, size) }
	if link != nil {
		image, err := withLink(out, size, link)
		if err != nil {
			out.Close()
			return nil, fmt.Errorf("what %s has left: %w", r.opts.StripProgram, err)
		}
		size, content = image.Size(), image.Reader
	}
	result.ByProgram = true
	result.Debug, result.Payload = result.Payload-size, size
	return &body{size: size, close: func() { out.Close() }, reader: func() io.Reader { return module.Reader(ctx, content()) }}, nil
}

func withLink(stripped io.ReaderAt, size int64, link *elfstrip.Link) (*elfstrip.Image, error) {
	file, err := elfstrip.Parse(stripped, size)
	if err != nil {
		return nil, err
	}
	return file.AddLink(link)
}

// split writes the debug file of a module, where debuggers look for it, and returns
// the link to it. It is there before the module that has lost its own.
func (r *run) split(ctx context.Context, file *elfstrip.File, m *module.File, j *job, result *Result) (*elfstrip.Link, error) {
	id, err := file.BuildID()
	if err != nil {
		return nil, err
	}
	image, err := file.DebugFile()
	if err != nil {
		return nil, err
	}
	first := j.names[0].debug
	link := &elfstrip.Link{Name: first.name()}
	sum := crc32.NewIEEE()
	if r.opts.DryRun {
		result.DebugFile = first.path()
		return link, nil
	}
	dirs := make([]*dirfd.Dir, len(j.names))
	for i, name := range j.names {
		if dirs[i], err = name.debug.make(); err != nil {
			return nil, err
		}
		defer dirs[i].Close()
		if err := dirs[i].CheckFile(name.debug.name()); err != nil {
			return nil, err
		}
	}
	out, err := atomicfile.CreateIn(dirs[0], first.name(), 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Abort()
	if n, err := copyBuffer(io.MultiWriter(sum, out), module.Reader(ctx, image.Reader())); err != nil || n < image.Size() {
		return nil, orChanged(err)
	}
	link.CRC = sum.Sum32()
	// Of the module it has the time, for builds that can be repeated.
	mode := fs.FileMode(0o644)
	if _, err := out.Inherit(m.Descriptor(), m.Info, atomicfile.Inherit{Mode: &mode, NewMTime: r.opts.NewMTime, BestEffort: true}); err != nil {
		return nil, err
	}
	for i, name := range j.names[1:] {
		if err := out.AlsoIn(dirs[i+1], name.debug.name()); err != nil {
			return nil, err
		}
	}
	if err := out.Commit(r.opts.Sync == SyncFile); err != nil {
		return nil, err
	}
	if len(id) > 1 {
		if err := r.linkBuildID(id, first); err != nil {
			return nil, err
		}
	}
	result.DebugFile = first.path()
	return link, nil
}

// linkBuildID makes the name by which debuggers find a debug file: .build-id, the
// first byte of the build id as a directory, the others and .debug. Where two modules
// have one build id, as copies of one another have, the second gets a number, as
// find-debuginfo does it.
func (r *run) linkBuildID(id []byte, debug place) error {
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
		if err == nil && !dir.Exists(name) { // it leads nowhere
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

// checkDebugFile returns an error when a name in .build-id is neither a file nor a
// link to one below the directory of debug files, which is at: debuggers would take
// something else for the debug file of a module.
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

// debugName is where the debug file of a module belongs, below the folder of all
// debug files: the module's path from lib/modules on, or usr/lib/modules, as if its
// tree were installed at /, and .debug.
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

// Unsplit returns those modules, in the order of the input, that have debug
// information of which a folder of debug files, such as usr/lib/debug in a package's
// root, holds no copy: to strip them now would lose it, and to sign them would be in
// vain, as find-debuginfo has yet to strip them. Modules that cannot be read are for
// the run to name.
func (t *Tree) Unsplit(ctx context.Context, dir string, opts Options) ([]string, error) {
	if err := first(t.check(), opts.check()); err != nil {
		return nil, err
	}
	r := t.newRun(nil, &opts)
	unsplit := make([]bool, len(t.entries))
	err := batch.Each(ctx, len(t.entries), opts.Jobs, func(i int) (err error) {
		if e := t.entries[i]; e.Err == nil {
			unsplit[i], err = r.unsplit(ctx, t.bases.of(&e), e, dir)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var paths []string
	for i, e := range t.entries {
		if unsplit[i] {
			paths = append(paths, e.Path)
		}
	}
	return paths, nil
}

func (r *run) unsplit(ctx context.Context, at place, e module.Entry, dir string) (bool, error) {
	m, err := at.read(ctx, r.limits)
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
