package sign

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/sign/policy"
)

// Source names the modules of a run.
type Source struct {
	// Roots are modules, and directories with modules at any depth (*.ko, *.ko.gz,
	// *.ko.xz, *.ko.zst). Symbolic links below them are not followed.
	Roots []string
	// Names, if it is not nil, restricts the run to these modules below the one directory
	// in Roots, such as drivers/net/dummy.ko, and is the order of the results. If only
	// dummy.ko.gz, .xz or .zst exists, that file is meant. If one is missing, or is a
	// symbolic link, Open fails.
	Names []string
	// Output is the directory that gets the results, with a copy of what is Skipped; the
	// Roots stay as they are. If it is empty, modules are replaced.
	Output string
	// Below is a path below Output for the results, such as kernel. No symbolic link in it
	// is followed.
	Below string
	// Copy has the Output get what cp(1) makes of the Names: Names are followed if they
	// are, or lie behind, symbolic links, and may lie in the same tree as the Output. Names
	// that cannot be read fail alone. Each module becomes a file of its own, with the time of
	// now and no attributes, and belongs to the caller. If it is signed, its mode is 0666 less
	// the umask, as of a file that scripts/sign-file has written. Otherwise its mode is the
	// module's less the umask, and a plain file that is replaced hands on its mode, owner and
	// attributes. Other forms of the module, as dummy.ko.xz beside dummy.ko, are removed. The
	// options on modes, times, owners and attributes do not count.
	Copy bool
	// KeepForms has Copy leave other forms of the modules, and name them in the summary.
	KeepForms bool
	// Compress is the new format of modules that are not compressed: dummy.ko becomes
	// dummy.ko.xz, which replaces a file of that name, and then dummy.ko is removed. A
	// kill leaves both names at worst, and the next run does the rest. Compressed modules
	// keep their own format, and what is Skipped stays as it is. Names of the same file
	// stay one file unless the run is killed. Without an Output the Roots have to be
	// directories. It does not go with Options.Detached.
	Compress Format
	// Recompress applies Compress to compressed modules too: afterwards all modules have
	// that format, even if it is None.
	Recompress bool
	// Root is the root directory of the system that the modules belong to, in which
	// symbolic links are resolved. If it is empty, it is /.
	Root string
	// DryRun takes no lock and removes nothing, and the Tree writes nothing.
	DryRun bool
	// Wait, if it is not nil, has Open wait for another run that has locked the modules,
	// and is called once with its holder. Without it Open fails.
	Wait func(*LockedError)
}

// A Tree is a set of modules that no other run of this package works on, from [Open]
// until Close.
type Tree struct {
	source     Source
	lock       *atomicfile.Lock
	bases      bases
	entries    []module.Entry
	targets    []location // of each entry, but for the suffix of Source.Compress
	recovered  int        // names that a killed run had not linked yet
	notes      []string
	usedOutput bool        // the output directory held something before
	opened     atomic.Bool // and not closed
	symlinks   links
	behind     []string       // modules that the links lead to, and that are no entries
	allowed    *policy.Policy // has allowed all entries
}

// Open finds the modules of a source and locks what will be written. A second run over
// the same files gets a [*LockedError], which names the holder. Open removes what a
// killed run has left. If the context ends while Open waits for another run (see
// Source.Wait), the error is its cause.
func Open(ctx context.Context, source Source) (*Tree, error) {
	t := &Tree{source: source}
	if err := t.open(ctx); err != nil {
		t.Close()
		return nil, err
	}
	t.opened.Store(true)
	return t, nil
}

func (t *Tree) open(ctx context.Context) error {
	if err := t.source.check(); err != nil {
		return err
	}
	if err := t.checkOutput(); err != nil {
		return err
	}
	if !t.source.DryRun {
		if err := t.takeLock(ctx); err != nil {
			return err
		}
	}
	if err := t.openBases(); err != nil {
		return err
	}
	left, err := t.find()
	if err != nil {
		return err
	}
	if len(t.entries) == 0 {
		return fmt.Errorf("%w in %s%s", ErrNoModules, strings.Join(t.source.Roots, ", "), &t.symlinks)
	}
	if err := t.openLinks(); err != nil {
		return err
	}
	if err := t.chooseTargets(); err != nil {
		return err
	}
	if t.source.DryRun {
		return nil
	}
	return t.clearAway(left)
}

// takeLock locks what a run writes, and keeps others from writing what it reads.
func (t *Tree) takeLock(ctx context.Context) (err error) {
	written, read := t.source.Roots, []string(nil)
	if t.source.Output != "" {
		if err := os.MkdirAll(t.source.Output, 0o777); err != nil {
			return err
		}
		written, read = []string{t.source.Output}, t.source.Roots
	}
	lock := func() (*atomicfile.Lock, error) { return atomicfile.NewLock(written, read) }
	if t.source.Wait == nil {
		t.lock, err = lock()
	} else {
		t.lock, err = atomicfile.Wait(ctx, lock, t.source.Wait)
	}
	return err
}

// find finds the modules, and temporary files that a killed run has left beside them.
func (t *Tree) find() (left []location, err error) {
	switch {
	case t.source.Copy:
		t.entries, err = module.FollowNames(t.source.Roots[0], t.source.Names)
		return nil, err
	case t.source.Names != nil:
		t.entries, err = module.FindNames(t.source.Roots[0], t.source.Names)
		return nil, err
	}
	t.entries, err = module.Find(t.source.Roots, func(e module.Entry, kind fs.FileMode) {
		at := t.bases.of(&e)
		t.symlinks.add(e, at, kind)
		// Roots that are only read may have another run at work on a part of them.
		if t.source.Output == "" && kind&^fs.ModeSymlink == 0 && atomicfile.IsTemp(filepath.Base(e.Rel)) {
			left = append(left, at)
		}
	})
	return left, err
}

// openBases opens the directories of the source.
func (t *Tree) openBases() error {
	t.bases.roots = make(map[string]*dirfd.Dir)
	for _, root := range t.source.Roots {
		info, err := os.Stat(root)
		if err != nil {
			return err
		}
		if !info.IsDir() || t.bases.roots[root] != nil {
			continue
		}
		dir, err := dirfd.Open(root)
		if err != nil {
			return err
		}
		t.bases.roots[root] = dir
	}
	if t.source.Output == "" {
		return nil
	}
	var err error
	t.bases.output, err = dirfd.Open(t.source.Output)
	switch {
	case errors.Is(err, fs.ErrNotExist) && t.source.DryRun:
		return nil // a dry run does not make it
	case err != nil:
		return err
	}
	t.usedOutput = !isEmpty(t.bases.output, t.source.Below)
	return nil
}

// isEmpty reports whether a directory below another one holds nothing, or does not exist.
func isEmpty(base *dirfd.Dir, rel string) bool {
	dir, err := base.OpenDir(rel)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer dir.Close()
	names, err := dir.Names()
	return err == nil && len(names) == 0
}

// checkOutput refuses an output directory that is the input or lies in it: the next run
// would take the results for modules to sign.
func (t *Tree) checkOutput() error {
	if t.source.Output == "" || t.source.Copy {
		return nil
	}
	output, err := absolute(t.source.Output)
	if err != nil {
		return err
	}
	for _, root := range t.source.Roots {
		root, err := absolute(root)
		if err != nil {
			return err
		}
		if rel, err := filepath.Rel(root, output); err == nil && filepath.IsLocal(rel) {
			return fmt.Errorf("output directory %s lies in the input %s: choose another, or sign in place",
				t.source.Output, root)
		}
	}
	return nil
}

// absolute resolves links as far as the path exists.
func absolute(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		parent, err := absolute(filepath.Dir(path))
		return filepath.Join(parent, filepath.Base(path)), err
	}
	return real, err
}

// elsewhere reports whether the results go to another tree.
func (s *Source) elsewhere() bool { return s.Output != "" }

// renames reports whether modules may get other names.
func (s *Source) renames() bool { return s.Compress != compress.None || s.Recompress }

// packedName is the name of a target after compression.
func (s *Source) packedName(target string) string {
	if s.Recompress {
		return module.BaseName(target) + s.Compress.Suffix()
	}
	if compress.FromName(target) != compress.None {
		return target
	}
	return target + s.Compress.Suffix()
}

// Modules returns the number of modules in the tree.
func (t *Tree) Modules() int {
	if t == nil {
		return 0
	}
	return len(t.entries)
}

// Close unlocks the tree. All methods but Modules and Links return [fs.ErrClosed] after
// that.
func (t *Tree) Close() {
	if t == nil {
		return
	}
	t.opened.Store(false)
	t.bases.close()
	if t.lock != nil {
		t.lock.Unlock()
	}
}
