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
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/ordered"
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
}

// A Tree is a set of modules that nobody else works on with this package, from
// [Open] until Close.
type Tree struct {
	source    Source
	lock      *atomicfile.Lock
	entries   []module.Entry
	targets   []string // where each entry goes, but for the suffix of Source.Compress
	completed int
	symlinks  links
	behind    []string // modules that the links lead to, outside of what is worked on
}

// ErrNoModules says that there is nothing to work on.
var ErrNoModules = errors.New("no kernel module found (*.ko, *.ko.gz, *.ko.xz, *.ko.zst)")

// Open finds the modules of a source and locks what will be written: a second
// run over the same files gets an [atomicfile.LockedError] which says who is
// there. It clears away what a killed run has left.
func Open(source Source) (*Tree, error) {
	t := &Tree{source: source}
	if err := t.open(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tree) open() (err error) {
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
		if t.lock, err = atomicfile.NewLock(written, read); err != nil {
			return err
		}
	}
	var left []string
	if t.source.Names != nil {
		t.entries, err = module.FindNames(t.source.Roots[0], t.source.Names)
	} else {
		t.entries, err = module.Find(t.source.Roots, func(e module.Entry, kind fs.FileMode) {
			t.symlinks.add(e, kind)
			// What is read alone may have another run at work on a part of it.
			if t.source.Output == "" && atomicfile.IsTemp(filepath.Base(e.Path)) {
				left = append(left, e.Path)
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
	t.targets = make([]string, len(t.entries))
	taken := make(map[string]string)
	for i, e := range t.entries {
		t.targets[i] = e.Path
		if t.source.Output == "" {
			continue
		}
		t.targets[i] = filepath.Join(t.source.Output, e.Rel)
		target := t.source.packedName(t.targets[i])
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
// was killed may have left both. The new name has to be in a folder that is
// locked.
func (t *Tree) dropOutdated() error {
	replaced := make(map[string]string)
	for _, e := range t.entries {
		if e.Root {
			return fmt.Errorf("%s: a module given by itself is not compressed in its place: give its folder, or an output folder", e.Path)
		}
		if packed := t.source.packedName(e.Path); packed != e.Path {
			if other := replaced[packed]; other != "" {
				return fmt.Errorf("%s and %s would both become %s: remove the one that is outdated", other, e.Path, packed)
			}
			replaced[packed] = e.Path
		}
	}
	t.entries = slices.DeleteFunc(t.entries, func(e module.Entry) bool { return replaced[e.Path] != "" })
	return nil
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
		for _, target := range []string{target, t.source.packedName(target)} {
			if n, ok := nameOf(target); ok && inputs[n] {
				return fmt.Errorf("the output for %s would replace the input %s: choose another output folder, or none to sign in place", t.entries[i].Path, target)
			}
		}
	}
	return nil
}

// Modules returns how many modules the tree has.
func (t *Tree) Modules() int { return len(t.entries) }

// Close lets others have the tree.
func (t *Tree) Close() {
	if t.lock != nil {
		t.lock.Unlock()
	}
}

// clearAway removes the temporary files of a killed run, whose names are in left
// as far as they lie below the roots. One that is a hard link of a module in the
// tree already was to become another name of that one: this is brought to its
// end.
func (t *Tree) clearAway(left []string) error {
	switch {
	case t.source.Output != "":
		err := filepath.WalkDir(t.source.Output, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && atomicfile.IsTemp(d.Name()) {
				left = append(left, path)
			}
			return err
		})
		if err != nil {
			return err
		}
	default:
		// The folder of a root that is a file was not looked at, nor that of a name.
		var targets []string
		for _, e := range t.entries {
			switch {
			case t.source.Names != nil: // all that was ever written for it
				targets = append(targets, detachedName(e.Path))
				for f := compress.None; f <= compress.Zstd; f++ {
					targets = append(targets, module.BaseName(e.Path)+f.Suffix())
				}
			case e.Root:
				targets = append(targets, e.Path, detachedName(e.Path))
			}
		}
		temps, err := atomicfile.Leftovers(targets)
		if err != nil {
			return err
		}
		left = append(left, temps...)
	}
	for _, temp := range left {
		if err := t.clear(temp); err != nil {
			return fmt.Errorf("cannot clear away what a killed run left: %w", err)
		}
	}
	return nil
}

func (t *Tree) clear(temp string) error {
	info, err := os.Lstat(temp)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if target := t.unfinished(temp, info); target >= 0 {
		// An old module that cannot be read is for the run to name.
		if same, err := samePayload(temp, t.entries[target].Path); err == nil && same {
			t.completed++
			t.entries[target].Info = info
			return os.Rename(temp, t.entries[target].Path)
		}
	}
	return os.Remove(temp)
}

// unfinished finds the entry that a temporary file was to become, if it has
// become another of the tree's already; -1 if not.
func (t *Tree) unfinished(temp string, info fs.FileInfo) int {
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
		} else if atomicfile.IsTempFor(temp, e.Path) {
			target = i
		}
	}
	if !linked {
		return -1
	}
	return target
}

// samePayload reports whether two files hold the same module, however signed.
// The first goes by the second's name.
func samePayload(a, b string) (bool, error) {
	ctx := context.Background()
	one, err := module.OpenAs(ctx, a, filepath.Base(b), module.Limits{})
	if err != nil {
		return false, err
	}
	defer one.Close()
	two, err := module.Open(ctx, b, module.Limits{})
	if err != nil {
		return false, err
	}
	defer two.Close()
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
// counts those, and Options.Report names them. The error is for what ends the
// run: the context's cause, or that the system could not bring it to disk.
func (t *Tree) Sign(ctx context.Context, signer *Signer, opts Options) (Summary, error) {
	if signer == nil {
		return Summary{}, errors.New("nothing to sign with: the Signer is nil")
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
	if !hashed.Available() {
		return Summary{}, fmt.Errorf("no digest %v in this build", hashed)
	}
	opts.Detached, opts.Sync = false, SyncNone
	return t.run(ctx, digester{newHash: func(string) hash.Hash { return hashed.New() }}, opts)
}

// Hash is Digest with a hash for each name in the tree. The names of one file are
// read one by one.
func (t *Tree) Hash(ctx context.Context, newHash func(name string) hash.Hash, opts Options) (Summary, error) {
	opts.Detached, opts.Sync = false, SyncNone
	return t.run(ctx, digester{newHash, true}, opts)
}

// Prove gives every module its proof, as Sign signs it. Names of one file become
// files of their own, as each has another proof. A module for which there is none
// fails, and stays as it is.
func (t *Tree) Prove(ctx context.Context, p Prover, opts Options) (Summary, error) {
	return t.run(ctx, prover{p}, opts)
}

// newRun returns a run over the tree; opts are completed.
func (t *Tree) newRun(signer maker, opts *Options) *run {
	opts.DryRun = opts.DryRun || t.source.DryRun
	if opts.Jobs <= 0 {
		opts.Jobs = 2 * runtime.GOMAXPROCS(0)
	}
	return &run{
		opts:   *opts,
		signer: signer,
		source: &t.source,
		links:  &t.symlinks,
		limits: module.SharedLimits(opts.MaxSize),
		queue: ordered.New(func(result Result) {
			if opts.Report.Result != nil {
				opts.Report.Result(result)
			}
		}),
	}
}

func (t *Tree) run(ctx context.Context, signer maker, opts Options) (Summary, error) {
	switch {
	case opts.Detached && t.source.renames():
		return Summary{}, fmt.Errorf("detached signatures leave the modules as they are: they cannot be compressed with %v as well", t.source.Compress)
	case opts.Detached && (opts.StripDebug || opts.SplitDebug != ""):
		return Summary{}, errors.New("detached signatures leave the modules as they are: they cannot be stripped as well")
	}
	start := time.Now()
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
			err = errors.Join(err, atomicfile.SyncFS(opts.SplitDebug))
		}
	}
	r.summary.Attested = int(r.attested.Load())
	r.summary.Notes = encoder.Notes()
	t.countLinks(&r.summary)
	if t.lock != nil && t.lock.Unsupported {
		r.summary.Notes = append(r.summary.Notes, "the file system knows no locks: nothing kept a second run from working on the same modules")
	}
	r.summary.Duration = time.Since(start)
	return r.summary, err
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
		n := name{index: i, path: e.Path, name: module.BaseName(e.Rel), target: t.targets[i]}
		if err := r.besides(&n, e, taken); err != nil {
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
		if st.Nlink > 1 && (r.signer == nil || !r.signer.byName()) {
			linked[id] = j
		}
	}
	if !r.source.elsewhere() && !r.opts.Detached {
		for _, j := range linked {
			// Anew: what a killed run left may have counted as a name.
			if info, err := os.Lstat(j.names[0].path); err == nil {
				j.outside = int(info.Sys().(*syscall.Stat_t).Nlink) - len(j.names)
			}
		}
	}
	return jobs
}

// besides chooses where a detached signature or a debug file goes, which no other
// module's may.
func (r *run) besides(n *name, e module.Entry, taken map[string]string) (err error) {
	also, what := "", ""
	switch {
	case r.opts.Detached:
		n.target = detachedName(n.target)
		also, what = n.target, "signature"
	case r.opts.SplitDebug != "":
		if n.debug, err = debugName(e.Path, e.Rel); err != nil {
			return err
		}
		n.debug = filepath.Join(r.opts.SplitDebug, n.debug)
		also, what = n.debug, "debug file"
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
		return atomicfile.SyncFS(t.source.Output)
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
		if err := atomicfile.SyncFS(filepath.Dir(e.Path)); err != nil {
			return err
		}
	}
	return nil
}
