package sign

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// Source names the modules of a run.
type Source struct {
	// Roots are modules, and folders with modules at any depth (*.ko, *.ko.gz,
	// *.ko.xz, *.ko.zst). Symbolic links below them are not followed.
	Roots []string
	// Names, if it is not nil, are all that is worked on of the one folder in Roots:
	// names of modules below it, like drivers/net/dummy.ko, in the order of the
	// results. Where only dummy.ko.gz, .xz or .zst is there, it is that file. If one
	// is missing, or is a symbolic link, nothing is done to any.
	Names []string
	// Output is the folder that takes the results, a copy of what is Skipped among
	// them; all under Roots is left alone. If it is empty, modules are replaced.
	Output string
	// Compress is the form in which modules are left that were not compressed:
	// dummy.ko becomes dummy.ko.xz, in the place of what has that name, and then
	// dummy.ko is removed, so that a kill leaves both names at worst and the next run
	// does the rest. Compressed modules stay in their own form, and what is Skipped
	// stays as it is. The names of one file are treated alike, and stay one file
	// unless the run is killed. Without an Output the Roots have to be folders, and
	// it does not go with Options.Detached.
	Compress Format
	// Recompress has what was compressed treated so, too: afterwards all modules have
	// the form of Compress, be it none.
	Recompress bool
	// Root is the root directory of the system that the modules belong to, in which
	// symbolic links are resolved; if it is empty, it is the machine's own.
	Root string
	// DryRun takes no lock and cleans nothing up, and the Tree writes nothing.
	DryRun bool
	// Wait, if it is not nil, has Open wait for another run that has locked the modules,
	// and is called once with who that is. Without it Open fails.
	Wait func(*LockedError)
}

// A Tree is a set of modules that nobody else works on with this package, from
// [Open] until Close.
type Tree struct {
	source    Source
	lock      *atomicfile.Lock
	bases     bases
	entries   []module.Entry
	targets   []place // where each entry goes, but for the suffix of Source.Compress
	completed int
	notes     []string
	used      bool        // the output held something before
	opened    atomic.Bool // and not closed
	symlinks  links
	behind    []string // modules that the links lead to, outside of what is worked on
}

// ErrNoModules says that there is nothing to work on.
var ErrNoModules = errors.New("no kernel module found (*.ko, *.ko.gz, *.ko.xz, *.ko.zst)")

// Open finds the modules of a source and locks what will be written: a second
// run over the same files gets a [*LockedError] which says who is
// there. It clears away what a killed run has left.
func Open(source Source) (*Tree, error) { return OpenContext(context.Background(), source) }

// OpenContext is [Open], and ends with the context's cause where [Source.Wait] has it
// wait for another run.
func OpenContext(ctx context.Context, source Source) (*Tree, error) {
	t := &Tree{source: source}
	if err := t.open(ctx); err != nil {
		t.Close()
		return nil, err
	}
	t.opened.Store(true)
	return t, nil
}

func (t *Tree) open(ctx context.Context) (err error) {
	if err := t.source.check(); err != nil {
		return err
	}
	if t.source.Names != nil && len(t.source.Roots) != 1 {
		return fmt.Errorf("modules are named below one folder, and %d are given", len(t.source.Roots))
	}
	if err := t.checkOutput(); err != nil {
		return err
	}
	if !t.source.DryRun {
		written, read := t.source.Roots, []string(nil)
		if t.source.Output != "" {
			if err := os.MkdirAll(t.source.Output, 0o777); err != nil {
				return err
			}
			written, read = []string{t.source.Output}, t.source.Roots
		}
		if t.lock, err = t.source.newLock(ctx, written, read); err != nil {
			return err
		}
	}
	if err := t.openBases(); err != nil {
		return err
	}
	var left []place
	if t.source.Names != nil {
		t.entries, err = module.FindNames(t.source.Roots[0], t.source.Names)
	} else {
		t.entries, err = module.Find(t.source.Roots, func(e module.Entry, kind fs.FileMode) {
			at := t.bases.of(&e)
			t.symlinks.add(e, at, kind)
			// What is read alone may have another run at work on a part of it.
			if t.source.Output == "" && kind&^fs.ModeSymlink == 0 && atomicfile.IsTemp(filepath.Base(e.Rel)) {
				left = append(left, at)
			}
		})
	}
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

// openBases opens the directories that were named.
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
		return nil // it is not made
	case err != nil:
		return err
	}
	names, err := t.bases.output.Names()
	t.used = len(names) > 0 || err != nil
	return nil
}

// checkOutput refuses an output that is the input, or lies in it: the next run
// would take the results for modules to sign.
func (t *Tree) checkOutput() error {
	if t.source.Output == "" {
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
			return fmt.Errorf("the output folder %s lies in the input %s: choose one elsewhere, or none to sign in place", t.source.Output, root)
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

func (t *Tree) chooseTargets() error {
	if t.source.renames() && t.source.Output == "" {
		if err := t.dropOutdated(); err != nil {
			return err
		}
	}
	t.targets = make([]place, len(t.entries))
	taken := make(map[string]string)
	for i, e := range t.entries {
		t.targets[i] = t.bases.of(&e)
		if t.source.Output == "" {
			continue
		}
		t.targets[i] = placeBelow(t.bases.output, t.source.Output, e.Rel)
		target := t.source.packedName(t.targets[i].path())
		if other, ok := taken[target]; ok {
			return fmt.Errorf("%s and %s would both become %s: give the folder above them, or one output folder each", other, e.Path, target)
		}
		taken[target] = e.Path
	}
	if t.source.Output == "" {
		return nil
	}
	return t.spareInputs()
}

// newLock locks what a run writes and reads, and waits for it where that is wanted.
func (s *Source) newLock(ctx context.Context, written, read []string) (*atomicfile.Lock, error) {
	lock := func() (*atomicfile.Lock, error) { return atomicfile.NewLock(written, read) }
	if s.Wait == nil {
		return lock()
	}
	return atomicfile.Wait(ctx, lock, s.Wait)
}

// elsewhere reports whether what is written is another tree.
func (s *Source) elsewhere() bool { return s.Output != "" }

// renames reports whether modules may end under other names.
func (s *Source) renames() bool { return s.Compress != compress.None || s.Recompress }

// packedName is what the target of a module is called when it has the form that the
// source wants.
func (s *Source) packedName(target string) string {
	if s.Recompress {
		return module.BaseName(target) + s.Compress.Suffix()
	}
	if compress.FromName(target) != compress.None {
		return target
	}
	return target + s.Compress.Suffix()
}

// dropOutdated takes out what another module of the tree is to replace: a run that
// was killed may have left both. That they are the same module but for signatures is
// the proof of it; without it nobody can tell which of the two is out of date. The new
// name has to be in a directory that is locked.
func (t *Tree) dropOutdated() error {
	forms := make(map[string][]int) // modules that differ in their suffix alone
	var names []string
	for i, e := range t.entries {
		if e.Root {
			return fmt.Errorf("%s: a module given by itself is not compressed in its place: give its directory, or an output directory", e.Path)
		}
		name := module.BaseName(e.Path)
		if forms[name] == nil {
			names = append(names, name)
		}
		forms[name] = append(forms[name], i)
	}
	replaced := make(map[int]bool)
	for _, name := range names {
		all := forms[name]
		if len(all) == 1 {
			continue
		}
		outdated, err := t.outdated(all)
		if err != nil {
			return err
		}
		if outdated >= 0 {
			replaced[outdated] = true
		}
	}
	kept := t.entries[:0]
	for i, e := range t.entries {
		if !replaced[i] {
			kept = append(kept, e)
		}
	}
	t.entries = kept
	return nil
}

// outdated returns which of several forms of one module another of them is to
// replace, -1 if each keeps a name of its own.
func (t *Tree) outdated(forms []int) (int, error) {
	var paths []string
	for _, i := range forms {
		paths = append(paths, t.entries[i].Path)
	}
	ambiguous := fmt.Errorf("%s are there, and are not the same module: remove what is out of date", strings.Join(paths, " and "))
	if len(forms) > 2 {
		return -1, ambiguous
	}
	a, b := &t.entries[forms[0]], &t.entries[forms[1]]
	if same, err := samePayload(t.bases.of(a), t.bases.of(b)); err != nil || !same {
		return -1, ambiguous
	}
	packedA, packedB := t.source.packedName(a.Path), t.source.packedName(b.Path)
	switch {
	case packedA != packedB:
		return -1, nil
	case packedA == b.Path:
		t.notes = append(t.notes, fmt.Sprintf("%s takes the place of %s, the same module in another form", a.Path, b.Path))
		return forms[1], nil
	case packedB == a.Path:
		t.notes = append(t.notes, fmt.Sprintf("%s takes the place of %s, the same module in another form", b.Path, a.Path))
		return forms[0], nil
	default:
		return -1, fmt.Errorf("%s would both become %s: remove the one that is outdated", strings.Join(paths, " and "), packedA)
	}
}

// spareInputs refuses a target that is a module of the tree: the output folder
// may be the one in which they lie, by whatever way.
func (t *Tree) spareInputs() error {
	type name struct {
		dev, ino uint64 // of the folder
		base     string
	}
	folders := make(map[string]*syscall.Stat_t) // nil where there is none
	nameOf := func(path string) (name, bool) {
		dir := filepath.Dir(path)
		st, known := folders[dir]
		if !known {
			if info, err := os.Stat(dir); err == nil {
				st = info.Sys().(*syscall.Stat_t)
			}
			folders[dir] = st
		}
		if st == nil {
			return name{}, false
		}
		return name{uint64(st.Dev), st.Ino, filepath.Base(path)}, true
	}
	inputs := make(map[name]bool)
	for _, e := range t.entries {
		if n, ok := nameOf(e.Path); ok {
			inputs[n] = true
		}
	}
	for i, target := range t.targets {
		for _, target := range []string{target.path(), t.source.packedName(target.path())} {
			if n, ok := nameOf(target); ok && inputs[n] {
				return fmt.Errorf("the output for %s would replace the input %s: choose another output folder, or none to sign in place", t.entries[i].Path, target)
			}
		}
	}
	return nil
}

// Modules returns how many modules the tree has.
func (t *Tree) Modules() int {
	if t == nil {
		return 0
	}
	return len(t.entries)
}

// Close lets others have the tree. All other methods but Modules return an error
// then, which is [fs.ErrClosed].
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

// clearAway removes the temporary files of a killed run, whose names are in left
// as far as they lie below the roots. One that is a hard link of a module in the
// tree already was to become another name of that one: this is brought to its
// end.
func (t *Tree) clearAway(left []place) error {
	var err error
	if t.source.Output != "" {
		left, err = t.leftInOutput()
	} else {
		left, err = t.leftBeside(left)
	}
	if err != nil {
		return err
	}
	for _, temp := range left {
		if err := t.clear(temp); err != nil {
			return fmt.Errorf("cannot clear away what a killed run left: %w", err)
		}
	}
	return nil
}

func (t *Tree) leftInOutput() (left []place, err error) {
	err = filepath.WalkDir(t.source.Output, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !atomicfile.IsTemp(d.Name()) {
			return err
		}
		rel, err := filepath.Rel(t.source.Output, path)
		left = append(left, place{t.bases.output, rel})
		return err
	})
	return left, err
}

// leftBeside adds what lies beside modules that are given or named themselves: their
// directories were not looked at.
func (t *Tree) leftBeside(left []place) ([]place, error) {
	type beside struct {
		at      place // one of the modules
		targets []string
	}
	dirs := make(map[place]*beside)
	for i := range t.entries {
		e := &t.entries[i]
		if t.source.Names == nil && !e.Root {
			continue
		}
		at := t.bases.of(e)
		b := dirs[at.dir()]
		if b == nil {
			b = &beside{at: at}
			dirs[at.dir()] = b
		}
		b.targets = append(b.targets, at.name(), detachedName(at.name()))
		if t.source.Names != nil { // all that was ever written for it
			for f := compress.None; f <= compress.Zstd; f++ {
				b.targets = append(b.targets, module.BaseName(at.name())+f.Suffix())
			}
		}
	}
	for _, b := range dirs {
		err := b.at.in(func(dir *dirfd.Dir, _ string) error {
			names, err := atomicfile.Leftovers(dir, b.targets)
			for _, name := range names {
				left = append(left, b.at.beside(name))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return left, nil
}

func (t *Tree) clear(temp place) error {
	err := temp.in(func(dir *dirfd.Dir, name string) error {
		info, err := dir.Info(name)
		if err != nil {
			return err
		}
		if atomicfile.InUse(dir, name) {
			return nil
		}
		if target := t.unfinished(temp, info); target >= 0 {
			// An old module that cannot be read is for the run to name.
			at := t.bases.of(&t.entries[target])
			if same, err := samePayload(temp, at); err == nil && same {
				t.completed++
				t.entries[target].Info = info
				return dir.Rename(name, at.name())
			}
		}
		return dir.Remove(name)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// unfinished finds the entry that a temporary file was to become, if it has
// become another of the tree's already; -1 if not.
func (t *Tree) unfinished(temp place, info fs.FileInfo) int {
	if info.Sys().(*syscall.Stat_t).Nlink < 2 || t.source.Output != "" {
		return -1
	}
	target, linked := -1, false
	for i, e := range t.entries {
		if e.Info == nil {
			continue
		}
		if os.SameFile(e.Info, info) {
			linked = true
		} else if at := t.bases.of(&e); at.dir() == temp.dir() && atomicfile.IsTempFor(temp.name(), at.name()) {
			target = i
		}
	}
	if !linked {
		return -1
	}
	return target
}

// samePayload reports whether two files hold the same module, however signed. One that
// has a temporary name goes by the second's.
func samePayload(a, b place) (bool, error) {
	two, err := openModule(b, b.name())
	if err != nil {
		return false, err
	}
	defer two.Close()
	name := a.name()
	if atomicfile.IsTemp(name) {
		name = b.name()
	}
	one, err := openModule(a, name)
	if err != nil {
		return false, err
	}
	defer one.Close()
	oneSize, err := payloadSize(one)
	if err != nil {
		return false, err
	}
	twoSize, err := payloadSize(two)
	if err != nil || oneSize != twoSize {
		return false, err
	}
	return equal(one.Payload(oneSize), two.Payload(twoSize))
}

func openModule(at place, name string) (m *module.File, err error) {
	err = at.in(func(dir *dirfd.Dir, base string) error {
		m, err = module.OpenAs(context.Background(), dir, base, name, module.Limits{})
		return err
	})
	return m, err
}

func payloadSize(m *module.File) (int64, error) {
	layers, err := module.Layers(m, m.Size)
	return module.PayloadSize(layers, m.Size), err
}

// equal compares two readers of the same length.
func equal(a, b io.Reader) (bool, error) {
	var one, two [32 << 10]byte
	for {
		n, err := io.ReadFull(a, one[:])
		if _, err := io.ReadFull(b, two[:n]); err != nil {
			return false, err
		}
		if !bytes.Equal(one[:n], two[:n]) {
			return false, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// Sign signs every module. It goes on after a module that fails: the Summary
// counts those, Options.Report names them, and the error is [ErrIncomplete] then.
// Another error is what ended the run: the context's cause, or that the system could
// not bring it to disk.
func (t *Tree) Sign(ctx context.Context, signer *Signer, opts Options) (Summary, error) {
	if err := signer.check(); err != nil {
		return Summary{}, err
	}
	return t.run(ctx, signer, opts)
}

// Strip takes the signatures off every module, as Sign puts one on. A module
// without a signature is Skipped. Options.Existing and Detached mean nothing
// here.
func (t *Tree) Strip(ctx context.Context, opts Options) (Summary, error) {
	opts.Detached = false
	return t.run(ctx, nil, opts)
}

// Digest reads every module and writes nothing: the Results that Options.Report gets
// hold the digests that Sign would sign.
func (t *Tree) Digest(ctx context.Context, hashed crypto.Hash, opts Options) (Summary, error) {
	if err := opts.check(); err != nil { // of which a part is replaced
		return Summary{}, err
	}
	if !hashed.Available() {
		return Summary{}, fmt.Errorf("no digest %v in this build", hashed)
	}
	opts.Detached, opts.Sync = false, SyncNone
	return t.run(ctx, digester{newHash: func(string) hash.Hash { return hashed.New() }}, opts)
}

// Hash is Digest with a hash for each name in the tree. The names of one file are
// read one by one.
func (t *Tree) Hash(ctx context.Context, newHash func(name string) hash.Hash, opts Options) (Summary, error) {
	if err := opts.check(); err != nil {
		return Summary{}, err
	}
	if newHash == nil {
		return Summary{}, errors.New("nothing to hash with: newHash is nil")
	}
	opts.Detached, opts.Sync = false, SyncNone
	return t.run(ctx, digester{newHash, true}, opts)
}

// Prove gives every module its proof, as Sign signs it. Names of one file become
// files of their own, as each has another proof. A module for which there is none
// fails, and stays as it is.
func (t *Tree) Prove(ctx context.Context, p Prover, opts Options) (Summary, error) {
	if isNil(p) {
		return Summary{}, errors.New("nothing to prove with: the Prover is nil")
	}
	return t.run(ctx, prover{p}, opts)
}

// newRun returns a run over the tree; opts are completed.
func (t *Tree) newRun(signer maker, opts *Options) *run {
	opts.DryRun = opts.DryRun || t.source.DryRun
	return &run{
		opts:   *opts,
		signer: signer,
		source: &t.source,
		links:  &t.symlinks,
		limits: module.SharedLimits(opts.MaxSize),

		usedOutput: t.used,

		queue: batch.NewQueue(func(result Result) {
			if opts.Report.Result != nil {
				opts.Report.Result(result)
			}
		}),
	}
}

// pass is run without the checks, and modules that fail are no error of it.
func (t *Tree) pass(ctx context.Context, signer maker, opts Options) (Summary, error) {
	switch {
	case opts.Detached && t.source.renames():
		return Summary{}, fmt.Errorf("detached signatures leave the modules as they are: they cannot be compressed with %v as well", t.source.Compress)
	case opts.Detached && (opts.StripDebug || opts.SplitDebug != ""):
		return Summary{}, errors.New("detached signatures leave the modules as they are: they cannot be stripped as well")
	}
	start := time.Now()
	if err := t.openDebug(opts); err != nil {
		return Summary{}, err
	}
	r := t.newRun(signer, &opts)
	encoder, err := compress.NewEncoder(compress.Options{Level: opts.Level})
	if err != nil {
		return Summary{}, err
	}
	r.encoder = encoder
	r.summary.Modules = len(t.entries)
	r.summary.Completed = t.completed
	jobs := t.jobs(r)
	err = r.do(ctx, jobs)
	if opts.Sync == SyncTree && !opts.DryRun {
		err = errors.Join(err, t.sync())
		if r.summary.DebugFiles > 0 {
			err = errors.Join(err, t.bases.debug.SyncFS())
		}
	}
	r.summary.Attested = int(r.attested.Load())
	slices.Sort(r.summary.Notes)
	r.summary.Notes = slices.Concat(t.notes, r.summary.Notes, encoder.Notes())
	if r.separated > 0 && !opts.DryRun {
		r.summary.Notes = append(r.summary.Notes, fmt.Sprintf("%d names of hard links have become files of their own, as each has its own proof", r.separated))
	}
	t.countLinks(&r.summary)
	if t.lock != nil && t.lock.Unsupported {
		r.summary.Notes = append(r.summary.Notes, "no locks can be had: nothing kept a second run from working on the same modules")
	}
	r.summary.Duration = time.Since(start)
	return r.summary, err
}

// openDebug opens the directory of debug files, and makes it.
func (t *Tree) openDebug(opts Options) error {
	if opts.SplitDebug == "" || t.bases.debug != nil {
		return nil
	}
	if !opts.DryRun && !t.source.DryRun {
		if err := os.MkdirAll(opts.SplitDebug, 0o777); err != nil {
			return err
		}
	}
	var err error
	if t.bases.debug, err = dirfd.Open(opts.SplitDebug); errors.Is(err, fs.ErrNotExist) {
		err = nil // in a dry run
	}
	return err
}

// jobs makes one job of every file, with all the names that it has here.
func (t *Tree) jobs(r *run) []*job {
	type inode struct{ dev, ino uint64 }
	var jobs []*job
	linked := make(map[inode]*job)
	taken := make(map[string]string) // whose each detached signature or debug file is
	for i, e := range t.entries {
		if e.Err != nil {
			result := Result{Path: e.Path, Name: module.BaseName(e.Rel), Action: Failed, Err: e.Err}
			r.count(result)
			r.queue.Put(i, result)
			continue
		}
		n := name{index: i, path: e.Path, name: module.BaseName(e.Rel), from: t.bases.of(&e), to: t.targets[i]}
		if err := t.besides(r, &n, e, taken); err != nil {
			result := Result{Path: e.Path, Name: n.name, Action: Failed, Err: err}
			r.count(result)
			r.queue.Put(i, result)
			continue
		}
		r.total.Modules++
		st := e.Info.Sys().(*syscall.Stat_t)
		id := inode{uint64(st.Dev), st.Ino}
		if j := linked[id]; j != nil {
			j.names = append(j.names, n)
			continue
		}
		j := &job{names: []name{n}, size: e.Info.Size()}
		jobs = append(jobs, j)
		r.total.Bytes += j.size
		if st.Nlink > 1 {
			linked[id] = j
		}
	}
	if !r.source.elsewhere() && !r.opts.Detached {
		for _, j := range linked {
			// Anew: what a killed run left may have counted as a name.
			_ = j.names[0].from.in(func(dir *dirfd.Dir, name string) error {
				st, err := dir.Lstat(name)
				if err == nil {
					j.outside = int(st.Nlink) - len(j.names)
				}
				return err
			})
		}
	}
	return jobs
}

// besides chooses where a detached signature or a debug file goes, which no other
// module's may.
func (t *Tree) besides(r *run, n *name, e module.Entry, taken map[string]string) error {
	also, what := "", ""
	switch {
	case r.opts.Detached:
		n.to = n.to.renamed(detachedName)
		also, what = n.to.path(), "signature"
	case r.opts.SplitDebug != "":
		rel, err := debugName(e.Path, e.Rel)
		if err != nil {
			return err
		}
		n.debug = placeBelow(t.bases.debug, r.opts.SplitDebug, rel)
		also, what = n.debug.path(), "debug file"
	default:
		return nil
	}
	if other, ok := taken[also]; ok {
		return fmt.Errorf("its %s would be %s, which is that of %s", what, also, other)
	}
	taken[also] = e.Path
	return nil
}

// detachedName is where the detached signature of a module goes.
func detachedName(path string) string { return module.BaseName(path) + ".p7s" }

// sync brings what was written to disk, file system by file system.
func (t *Tree) sync() error {
	if t.source.Output != "" {
		return t.bases.output.SyncFS()
	}
	seen := make(map[uint64]bool)
	for _, e := range t.entries {
		if e.Info == nil {
			continue
		}
		dev := uint64(e.Info.Sys().(*syscall.Stat_t).Dev)
		if seen[dev] {
			continue
		}
		seen[dev] = true
		dir, err := t.bases.of(&e).open()
		if err != nil {
			return err
		}
		err = dir.SyncFS()
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
