package archive

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
)

const (
	// maxModules is how many modules an archive may hold. A kernel has some 7000.
	maxModules = 1 << 17
	// maxKernel is the size limit of a kernel image, in bytes. A vmlinux with debug
	// information has about 1 GB.
	maxKernel = 256 << 20
	// maxKernels is how many kernel images an archive may hold.
	maxKernels = 64
	// inWork and waiting bound what modules take that are worked on, and that wait for their
	// kernel image, in bytes as they are stored.
	inWork  = 96 << 20
	waiting = 128 << 20
	// maxConfig is the size limit of a kernel's configuration, in bytes. The largest have some
	// 300 kB. What is longer is something else.
	maxConfig = 4 << 20
	// maxOrder is the size limit of a modules.order, in bytes. That of a kernel has some 300 kB.
	maxOrder = 4 << 20
	// maxSame is how many files of an archive may have the same name, if it is that of a module.
	maxSame = 1024
	// maxLinks is how many symbolic links lead from one to the next, as in the kernel.
	maxLinks = 40
)

// A Module is a kernel module in an archive: *.ko, *.ko.gz, *.ko.xz or *.ko.zst.
type Module struct {
	Name   string // the path in the archive
	Image  string // as File.Image
	Inner  string // the name of the initramfs in the archive that the module is in; else empty
	Target string // the name of the file, if Name leads to it over symbolic links
	// Release is the kernel's, if the module is below lib/modules/KVER, and Rel the path
	// below that.
	Release, Rel string
	// Err says why the content could not be had. Else Open opens it.
	Err  error
	Open func(context.Context) (*module.File, error)
	// Content returns the file as it is stored, for one that Open cannot open.
	Content func() (r io.ReaderAt, size int64)
}

// Path is what messages call the module: its name, after that of the container image and a
// colon if the archive has several, and that of the initramfs it is in and an exclamation mark.
func (m *Module) Path() string { return m.place().String() }

func (m *Module) place() place { return place{m.Image, m.Inner, m.Name} }

// Path is [Module.Path] for the image.
func (k *Kernel) Path() string { return place{k.Image, "", k.Name}.String() }

// ConfigPath is [Module.Path] for the configuration.
func (k *Kernel) ConfigPath() string { return place{k.Image, "", k.ConfigName}.String() }

// A Kernel is a kernel image in an archive.
type Kernel struct {
	Name    string // the path in the archive
	Image   string
	Release string // as the name tells it: of boot/vmlinuz-KVER or lib/modules/KVER/vmlinuz; else empty

	// Config is the content of ConfigName, the configuration of this kernel in the archive, if
	// Work.Configs asks for it: boot/config-KVER or lib/modules/KVER/config.
	Config     []byte
	ConfigName string
}

// Work tells [Modules] what to do. J judges modules, T is the result of a module.
type Work[J, T any] struct {
	Jobs    int // as for batch.Jobs
	MaxSize int64
	// Judge is what judges all modules. If it is nil, OpenKernel makes a judge of each kernel
	// image in the archive, of size bytes, and may tell the release of the kernel.
	Judge      *J
	OpenKernel func(k Kernel, r io.ReaderAt, size int64) (judge J, release string, err error)
	// Configs has OpenKernel wait until the configuration of the kernel comes, or the archive
	// ends. The configuration of a kernel whose name has no release is not looked for.
	Configs bool
	// Do works on one module, in one of several goroutines. For one with an Err the judge
	// may be zero.
	Do func(judge J, m Module) T
	// Alias returns the result for a link to a module that has a result.
	Alias func(link Module, of T) T
	// Emit gets the results, one at a time, in the order of the archive.
	Emit func(T)
}

// Found is what Modules found besides modules.
type Found struct {
	Modules int
	Kernels []Kernel // those that became judges
	// Skipped are the links build and source below lib/modules/KVER, which depmod does not follow.
	// Outside are lib/modules, the directories above it and all below, where they are links to
	// what is not in the archive, so that it is unknown which modules they lead to.
	Skipped, Outside []string
	// Inner are archives in the archive, which were not looked into: by their content, or as they
	// have the name that distributions give to an initramfs or a unified kernel image. An initramfs
	// with that name is looked into, if it is not in an initramfs itself.
	Inner []string
	// Boot are those of Inner that a machine boots, by their names: an initramfs or a unified kernel image
	// that could not be looked into.
	Boot []string
	// Orders are the contents of lib/modules/KVER/modules.order, by KVER.
	Orders map[string][]byte
}

// ErrNotRegular is the error of a file with the name of a module that is none, as it is a FIFO, a device
// or the like.
var ErrNotRegular = errors.New("not a regular file")

// ErrNoKernel reports an archive without a kernel image that could judge its modules.
var ErrNoKernel = errors.New("no kernel image to judge the modules by")

// Modules works on the modules of an archive: all files with such names, wherever they are,
// hard links, and symbolic links to files, whatever these are called. Of several files with one
// name, each is a module; a symbolic link leads to the last one, and a hard link to the last one
// before it. Links to directories give no further names: what
// they lead to is in the archive under a name of its own, or in [Found.Outside].
//
// Without a Judge, a module belongs to the kernel image of its release. If the archive, or
// the container image, has the image of one kernel alone, that one judges all modules.
//
// The archive is read once. It is read again if the modules come before the kernel images and are
// too many to be held in memory until then, and if links with names of modules lead to files that
// have other names.
func Modules[J, T any](ctx context.Context, a *Archive, w Work[J, T]) (*Found, error) {
	r := &run[J, T]{Work: w, ctx: ctx, archive: a, found: new(Found),
		limits: module.SharedLimits(w.MaxSize), slots: semaphore.NewWeighted(int64(batch.Jobs(w.Jobs))),
		memory: semaphore.NewWeighted(inWork),
		links:  make(map[place]string), hards: make(map[place]hardLink), names: make(map[key]int),
		inners: make(map[int]struct{}), same: make(map[place]int), results: make(map[place][]result[T]),
		configs: make(map[place]config), twice: make(map[key]struct{}), diverted: make(map[place]string),
		written: make(map[key]struct{}), shared: make(map[key]struct{})}
	r.limits.Count = func(n int) error { return r.expands(0, int64(n)) }
	r.queue = batch.NewQueue(func(t T) {
		if ctx.Err() == nil {
			w.Emit(t)
		}
	})
	err := r.all()
	r.group.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	r.queue.Close()
	if err != nil && a.path != "" && ctx.Err() == nil {
		err = fmt.Errorf("%s: %w", a.path, err)
	}
	return r.found, err
}

// A place is a name in a container image, or in an initramfs in it.
type place struct{ image, inner, name string }

func (p place) String() string {
	name := p.name
	if p.inner != "" {
		name = p.inner + "!" + name
	}
	if p.image != "" {
		name = p.image + ":" + name
	}
	return name
}

// with is another name in the same place.
func (p place) with(name string) place { return place{p.image, p.inner, name} }

func (f *File) place() place { return place{f.Image, f.inner, f.Name} }

type run[J, T any] struct {
	Work[J, T]
	ctx     context.Context
	archive *Archive
	limits  module.Limits
	found   *Found
	group   sync.WaitGroup
	slots   *semaphore.Weighted // jobs
	memory  *semaphore.Weighted // stored modules in work

	kernels []*kernel[J]
	configs map[place]config // by image and release
	images  int64            // bytes of kernel images that wait for their configurations
	pending []pending
	held    int64 // bytes in pending
	aliases []pending
	links   map[place]string // symbolic links, and their targets
	hards   map[place]hardLink
	names   map[key]int // of all but symbolic links, and the layer that has them
	// twice are links whose names come again as something else: what counts is not the same everywhere.
	// diverted are names of symbolic links that lie in another place, as there is a link in their names,
	// by that place. lost is one of which it is unknown where it lies.
	twice    map[key]struct{}
	diverted map[place]string
	lost     string
	// written are the files of an initramfs, and shared those with hard links.
	written, shared map[key]struct{}

	same    map[place]int // how many modules have a name
	entries int
	inners  map[int]struct{} // the entries that are an initramfs
	probed  int              // compressed files
	kept    int64
	queue   *batch.Queue[T]
	mu      sync.Mutex
	stored  int64 // bytes of modules that were opened, as they are stored
	opened  int64 // and what they were decompressed to
	bomb    error
	results map[place][]result[T]
}

// A moment orders the files of a container image as they are unpacked: the lowest layer first.
type moment struct{ layer, entry int }

func (m moment) before(n moment) bool {
	return m.layer < n.layer || m.layer == n.layer && m.entry < n.entry
}

// A hardLink leads to the file that had the name at that moment.
type hardLink struct {
	target string
	at     moment
}

// A result is that of the file that got its name at a moment.
type result[T any] struct {
	at moment
	t  T
}

type kernel[J any] struct {
	Kernel
	judge J
	image []byte // while it waits for its configuration
	err   error
}

// errWaits is the error of a kernel that cannot judge yet.
var errWaits = errors.New("the kernel image was not opened")

// A config is the configuration of a kernel.
type config struct {
	name    string
	content []byte
}

// pending is a module that waits: for its kernel image, or for what it is a link to.
type pending struct {
	Module
	i       int
	at      moment
	hard    string         // the name that this is a hard link to
	content *module.Stored // nil: it is to be read again
}

func (r *run[J, T]) all() error {
	err := r.pass()
	if err == nil {
		err = r.rest()
	}
	if err != nil {
		for _, p := range r.pending {
			if p.content != nil {
				p.content.Close()
			}
		}
		return err
	}
	r.group.Wait()
	r.divert()
	var wants []*want[T]
	// Symbolic links may lead to hard links.
	for _, hard := range []bool{true, false} {
		for _, p := range r.aliases {
			if hard != (p.hard != "") {
				continue
			}
			if w := r.alias(p); w != nil {
				wants = append(wants, w)
			}
		}
	}
	if err := cmp.Or(r.targets(wants), r.expands(0, 0)); err != nil {
		return err
	}
	r.outside()
	return nil
}

// pass reads the archive.
func (r *run[J, T]) pass() error {
	for f, err := range r.archive.Files(r.ctx) {
		if err == nil {
			err = r.file(f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// file does what there is to do with a file when the archive is read first.
func (r *run[J, T]) file(f *File) (err error) {
	isModule := module.IsName(path.Base(f.Name))
	r.entries++
	if err := r.write(f); err != nil {
		return err
	}
	if f.Mode.Type() != fs.ModeSymlink {
		if err := r.remember(f); err != nil {
			return err
		}
	}
	switch {
	case f.Mode.Type() == fs.ModeSymlink:
		return r.link(f, isModule)
	case isModule && f.Mode.IsRegular():
		return r.module(f)
	case f.Mode.IsRegular() && f.Link != "":
		return r.hardLink(f)
	case isModule && !f.Mode.IsDir():
		p, err := r.next(f)
		if err == nil {
			p.Err = ErrNotRegular
			var judge J
			r.start(judge, p)
		}
		return err
	case !f.Mode.IsRegular():
		return nil
	case f.inner != "": // not the kernel that boots with it
		return r.inside(f)
	}
	if release, ok := kernelRelease(f.Name); ok && r.Judge == nil {
		return r.kernel(f, release)
	}
	if release, rel := moduleRelease(f.Name); rel == "modules.order" {
		return r.order(f, release)
	}
	if release := configRelease(f.Name); release != "" && r.wantsConfigs() && f.Size <= maxConfig {
		return r.config(f, release)
	}
	return r.inside(f)
}

// inside looks into an initramfs, and notes other archives in the archive.
func (r *run[J, T]) inside(f *File) error {
	kind, beginning, err := r.probe(f)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	named := isInner(f.Name)
	if kind == Initramfs && named && f.inner == "" && f.Size <= maxInitramfs {
		r.inners[r.entries] = struct{}{}
		f.content = io.MultiReader(bytes.NewReader(beginning), f.content)
		return r.initramfs(f, nil, r.file)
	}
	if kind == "" && !named {
		return nil
	}
	name := f.place().String()
	if r.kept += int64(len(name)) + keptEntry; r.kept > r.archive.limits.Kept {
		return r.archive.limits.exceeded("bytes of names to remember", r.archive.limits.Kept)
	}
	r.found.Inner = append(r.found.Inner, name)
	if named {
		r.found.Boot = append(r.found.Boot, name)
	}
	return nil
}

// initramfs reads an initramfs in the archive, and calls do for the files in it. before, unless it is
// nil, gets the initramfs itself, whose content is then read twice.
func (r *run[J, T]) initramfs(f *File, before, do func(*File) error) error {
	content, err := module.Store(r.ctx, f, f.Size)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	defer content.Close()
	if before != nil {
		whole := *f
		whole.content = io.NewSectionReader(content.Reader(), 0, content.Size)
		if err := before(&whole); err != nil {
			return err
		}
	}
	w := &walk{ctx: r.ctx, limits: f.walk.limits, image: f.Image, layer: f.layer, outer: f.walk}
	w.file = func(in *File) error {
		in.inner = f.Name
		return do(in)
	}
	if err := w.initramfs(io.NewSectionReader(content.Reader(), 0, content.Size)); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	return nil
}

// again reads the archive once more, with each initramfs that the first reading looked into.
func (r *run[J, T]) again(hidden bool, do func(*File) error) error {
	r.entries = 0
	counted := func(f *File) error {
		if !f.hidden {
			r.entries++
		}
		return do(f)
	}
	for f, err := range r.archive.files(r.ctx, hidden) {
		if err != nil {
			return err
		}
		if _, inner := r.inners[r.entries+1]; inner && !f.hidden {
			err = r.initramfs(f, counted, counted)
		} else {
			err = counted(f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maxInitramfs is the size limit of an initramfs in an archive, in bytes as it is stored. Those of
// distributions have up to 300 MB.
const maxInitramfs = 1 << 30

// probe tells by its beginning, which it returns, what kind of archive a file is. Those that are
// compressed are what the beginning of the stream is.
func (r *run[J, T]) probe(f *File) (kind Kind, beginning []byte, err error) {
	if f.Size < minInner {
		return "", nil, nil
	}
	head := make([]byte, min(f.Size, headSize))
	if _, err := io.ReadFull(f, head); err != nil {
		return "", nil, cutOff(err)
	}
	switch format := compress.StreamFormat(head); {
	case kindOf(head) != "":
		return kindOf(head), head, nil
	case format != "" && r.probed < maxProbes:
		r.probed++
		head, err = io.ReadAll(io.MultiReader(bytes.NewReader(head), io.LimitReader(f, blockOf(format))))
		if err != nil {
			return "", nil, err
		}
		kind = kindOfStream(head)
	case format == "" && isUKI(bytes.NewReader(head)):
		kind = UKI
	}
	return kind, head, nil
}

// minInner is the smallest archive with a module in it that is named, in bytes.
const minInner = 64

// maxProbes is how many compressed files are decompressed at their beginning.
const maxProbes = 1 << 16

// blockOf returns how many bytes of a stream its first bytes may need to be decompressed.
func blockOf(format string) int64 {
	switch format {
	case "gzip", "xz", "zstd", "lzma":
		return 256 << 10
	}
	return 9 << 20 // a block of lz4 -l has 8 MiB, others less
}

// kindOfStream returns the kind of the archive in a stream of which the beginning is known.
func kindOfStream(beginning []byte) Kind {
	s, err := compress.NewStream(io.NewSectionReader(bytes.NewReader(beginning), 0, int64(len(beginning))))
	if err != nil {
		return ""
	}
	defer s.Close()
	head := make([]byte, 512)
	n, _ := io.ReadFull(s, head)
	return kindOf(head[:n])
}

// order keeps a modules.order.
func (r *run[J, T]) order(f *File, release string) error {
	if f.Size > maxOrder || len(r.found.Orders) == maxKernels {
		return fmt.Errorf("%w: %s has %d bytes, or there are too many", ErrLimit, f.Name, f.Size)
	}
	b, err := io.ReadAll(f)
	if err == nil && r.found.Orders == nil {
		r.found.Orders = make(map[string][]byte)
	}
	if err == nil {
		r.found.Orders[release] = b
	}
	return err
}

// next counts a module.
func (r *run[J, T]) next(f *File) (pending, error) {
	p := pending{Module: Module{Name: f.Name, Image: f.Image, Inner: f.inner}, i: r.found.Modules, at: r.now(f)}
	p.Release, p.Rel = moduleRelease(f.Name)
	if r.found.Modules++; r.found.Modules > maxModules {
		return p, fmt.Errorf("%w: more than %d modules", ErrLimit, maxModules)
	}
	at := f.place()
	if r.same[at]++; r.same[at] > maxSame {
		return p, fmt.Errorf("%w: more than %d files called %s", ErrLimit, maxSame, f.Name)
	}
	return p, nil
}

// now is the moment of the current file.
func (r *run[J, T]) now(f *File) moment { return moment{f.layer, r.entries} }

// keep counts a link that is remembered.
func (r *run[J, T]) keep(f *File, what string) error {
	if r.kept += int64(len(f.Name)+len(f.Link)) + 2*keptEntry; r.kept > r.archive.limits.Kept {
		return r.archive.limits.exceeded("bytes of "+what, r.archive.limits.Kept)
	}
	return nil
}

// hardLink notes a hard link.
func (r *run[J, T]) hardLink(f *File) error {
	if err := r.keep(f, "hard links"); err != nil {
		return err
	}
	r.hards[f.place()] = hardLink{f.Link, r.now(f)}
	return nil
}

// link notes a symbolic link.
func (r *run[J, T]) link(f *File, isModule bool) error {
	if err := r.keep(f, "symbolic links"); err != nil {
		return err
	}
	at := f.place()
	layer, before := r.names[r.key(at)]
	if target, again := r.links[at]; again && target != f.Link || before && layer == f.layer {
		r.twice[r.key(at)] = struct{}{}
	}
	r.links[at] = f.Link
	if !isModule {
		return nil
	}
	p, err := r.next(f)
	r.aliases = append(r.aliases, p)
	return err
}

// module starts the work on a module, or puts it where it waits.
func (r *run[J, T]) module(f *File) error {
	p, err := r.next(f)
	if err == nil {
		err = r.expands(0, 0)
	}
	if err != nil {
		return err
	}
	if f.Link != "" { // a hard link
		p.hard = f.Link
		r.aliases = append(r.aliases, p)
		return r.hardLink(f)
	}
	judge, known := r.judge(p.Module, false)
	switch {
	case !known && (f.Size > module.DefaultMemory || r.held+f.Size > waiting):
		r.pending = append(r.pending, p)
		return nil
	case !known:
		if err := r.store(&p, f); err != nil {
			return err
		}
		r.held += f.Size
		r.pending = append(r.pending, p)
		return nil
	}
	charge := min(f.Size, inWork)
	if err := r.memory.Acquire(r.ctx, charge); err != nil {
		return err
	}
	if err := r.store(&p, f); err != nil {
		r.memory.Release(charge)
		return err
	}
	r.startWith(judge, p, func() { r.memory.Release(charge) })
	return nil
}

// store reads the content of a module.
func (r *run[J, T]) store(p *pending, f *File) (err error) {
	if p.content, err = module.Store(r.ctx, f, f.Size); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	return nil
}

func (r *run[J, T]) start(judge J, p pending) { r.startWith(judge, p, func() {}) }

// startWith works on a module in a goroutine of its own.
func (r *run[J, T]) startWith(judge J, p pending, done func()) {
	finish := func() {
		if p.content != nil {
			p.content.Close()
		}
		done()
	}
	if r.slots.Acquire(r.ctx, 1) != nil {
		finish()
		return
	}
	r.group.Go(func() {
		defer r.slots.Release(1)
		defer finish()
		if p.Err == nil {
			p.Open = func(ctx context.Context) (*module.File, error) { return r.open(ctx, p.Name, p.content) }
			p.Content = func() (io.ReaderAt, int64) { return p.content.Reader(), p.content.Size }
		}
		r.put(p, r.Do(judge, p.Module))
	})
}

// open opens a module, unless those so far expand to more than a package of modules does.
func (r *run[J, T]) open(ctx context.Context, name string, content *module.Stored) (*module.File, error) {
	if err := r.expands(content.Size, 0); err != nil {
		return nil, err
	}
	return module.OpenStored(ctx, name, content, r.limits)
}

// expands counts bytes of modules, stored and decompressed.
func (r *run[J, T]) expands(stored, opened int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stored += stored
	r.opened += opened
	if r.bomb == nil {
		r.bomb = r.archive.limits.expands(r.stored, r.opened)
	}
	return r.bomb
}

// put keeps a result, for links, and passes it on.
func (r *run[J, T]) put(p pending, t T) {
	if r.ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	at := p.place()
	r.results[at] = append(r.results[at], result[T]{p.at, t})
	r.mu.Unlock()
	r.queue.Put(p.i, t)
}

// judge returns what judges a module: at the end of the archive that may be the only kernel.
func (r *run[J, T]) judge(m Module, end bool) (judge J, known bool) {
	if r.Judge != nil {
		return *r.Judge, true
	}
	var only *kernel[J]
	several := false
	for _, k := range r.kernels {
		switch {
		case k.Image != m.Image || k.err != nil:
		case k.Release == m.Release && m.Release != "":
			return k.judge, true
		case only != nil && (k.Release != only.Release || k.Release == ""):
			several = true
		case only == nil:
			only = k
		}
	}
	if end && only != nil && !several {
		return only.judge, true
	}
	return judge, false
}

// wantsConfigs reports whether kernels in the archive judge, by their configurations.
func (r *run[J, T]) wantsConfigs() bool { return r.Configs && r.Judge == nil }

// config keeps the configuration of a kernel, the first if there are several, and opens the images
// that wait for it.
func (r *run[J, T]) config(f *File, release string) error {
	at := place{f.Image, "", release}
	if _, known := r.configs[at]; known {
		return nil
	}
	if r.kept += f.Size + int64(len(f.Name)) + keptEntry; r.kept > r.archive.limits.Kept {
		return r.archive.limits.exceeded("bytes of configurations to remember", r.archive.limits.Kept)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	r.configs[at] = config{f.Name, b}
	for _, k := range r.kernels {
		if k.image != nil && k.Image == f.Image && k.Release == release {
			r.openKernel(k)
		}
	}
	return nil
}

// has reports whether a kernel of this release judges already: distributions have an image under
// several names.
func (r *run[J, T]) has(k Kernel) bool {
	return k.Release != "" && slices.ContainsFunc(r.kernels, func(old *kernel[J]) bool {
		return old.Release == k.Release && old.Image == k.Image && old.err == nil
	})
}

// kernel makes a judge of a kernel image, or has it wait for its configuration.
func (r *run[J, T]) kernel(f *File, release string) error {
	k := &kernel[J]{Kernel: Kernel{Name: f.Name, Image: f.Image, Release: release}}
	if r.has(k.Kernel) {
		return nil
	}
	if len(r.kernels) == maxKernels {
		return fmt.Errorf("%w: more than %d kernel images", ErrLimit, maxKernels)
	}
	r.kernels = append(r.kernels, k)
	if f.Size > maxKernel {
		k.err = fmt.Errorf("%s: %d bytes; a kernel image has at most %d", f.Name, f.Size, maxKernel)
		return nil
	}
	k.image, k.err = make([]byte, f.Size), errWaits
	if _, err := io.ReadFull(f, k.image); err != nil {
		return fmt.Errorf("%s: %w", f.Name, cutOff(err))
	}
	r.images += f.Size
	_, known := r.configs[place{f.Image, "", release}]
	if r.wantsConfigs() && release != "" && !known && r.images <= maxKernel {
		return nil
	}
	r.openKernel(k)
	return nil
}

// openKernel makes a judge of a kernel image, and starts the work that waited for it.
func (r *run[J, T]) openKernel(k *kernel[J]) {
	image := k.image
	r.images -= int64(len(image))
	k.image = nil
	if r.has(k.Kernel) {
		return
	}
	with := k.Kernel
	if c, ok := r.configs[place{k.Image, "", k.Release}]; ok && k.Release != "" {
		with.Config, with.ConfigName = c.content, c.name
	}
	var told string
	k.judge, told, k.err = r.OpenKernel(with, bytes.NewReader(image), int64(len(image)))
	if k.err != nil {
		return
	}
	if k.Release == "" {
		k.Release = told
	}
	r.found.Kernels = append(r.found.Kernels, k.Kernel)
	var left []pending
	for _, p := range r.pending {
		if judge, known := r.judge(p.Module, false); known && p.content != nil {
			r.release(judge, p)
		} else {
			left = append(left, p)
		}
	}
	r.pending = left
}

// release starts the work on a module that was held in memory.
func (r *run[J, T]) release(judge J, p pending) {
	r.held -= p.content.Size
	r.start(judge, p)
}

// rest works on what waits at the end of the archive, and reads that again if need be.
func (r *run[J, T]) rest() error {
	for _, k := range r.kernels {
		if k.image != nil {
			r.openKernel(k)
		}
	}
	if len(r.pending) > 0 && len(r.found.Kernels) == 0 {
		return r.noKernel()
	}
	waits := make(map[int]pending)
	for i, p := range r.pending {
		r.pending[i].content = nil // belongs to the goroutine now
		judge, known := r.judge(p.Module, true)
		switch {
		case !known:
			p.Err = r.otherKernel(p.Module)
			r.start(judge, p)
		case p.content != nil:
			r.release(judge, p)
		default:
			waits[p.i] = p
		}
	}
	r.pending = nil
	if len(waits) == 0 {
		return nil
	}
	i := 0
	err := r.again(false, func(f *File) error {
		if !module.IsName(path.Base(f.Name)) || f.Mode.IsDir() {
			return nil
		}
		p, ok := waits[i]
		i++
		if !ok {
			return nil
		}
		if p.Name != f.Name || !f.Mode.IsRegular() || f.Link != "" {
			return module.ErrChanged
		}
		judge, _ := r.judge(p.Module, true)
		charge := min(f.Size, inWork)
		if err := r.memory.Acquire(r.ctx, charge); err != nil {
			return err
		}
		if err := r.store(&p, f); err != nil {
			r.memory.Release(charge)
			return err
		}
		delete(waits, p.i)
		r.startWith(judge, p, func() { r.memory.Release(charge) })
		return nil
	})
	if err == nil && len(waits) > 0 {
		err = module.ErrChanged
	}
	return err
}

// noKernel says that no kernel image could be used, and why.
func (r *run[J, T]) noKernel() error {
	for _, k := range r.kernels {
		return fmt.Errorf("%w: %w", ErrNoKernel, k.err)
	}
	return fmt.Errorf("%w: the %s holds none", ErrNoKernel, r.archive.kind)
}

// otherKernel says that there are kernel images, but not that of a module.
func (r *run[J, T]) otherKernel(m Module) error {
	var names []string
	for _, k := range r.kernels {
		if k.Image != m.Image {
			continue
		}
		if k.err != nil && k.Release == m.Release {
			return fmt.Errorf("%w: %w", ErrNoKernel, k.err)
		}
		names = append(names, k.Name)
	}
	if len(names) == 0 {
		return fmt.Errorf("%w in image %s", ErrNoKernel, m.Image)
	}
	if m.Release == "" {
		return fmt.Errorf("%w: it is not below lib/modules/KVER, and there are several: %s", ErrNoKernel,
			strings.Join(names, ", "))
	}
	return fmt.Errorf("%w: there are several, and none is of %s: %s", ErrNoKernel, m.Release, strings.Join(names, ", "))
}

// A want is a link to a file that has not the name of a module. It needs the content that
// the file has when everything is unpacked, or had when a hard link to it was made.
type want[T any] struct {
	pending
	real  place
	until *moment // of a hard link
	// through is the name of a file that lies in the same place by a link in its name.
	through string
	found   *result[T]
}

// alias gives a link the result of what it leads to. If that is a file that nobody has looked at, as
// it has not the name of a module, it is returned.
func (r *run[J, T]) alias(p pending) *want[T] {
	name := p.Name
	var until *moment
	if p.hard != "" {
		name, until = p.hard, &p.at
	}
	for range maxLinks {
		at, err := r.target(p, name, until)
		if err != nil {
			r.fail(p, err)
			return nil
		}
		if of, ok := r.result(at, until); ok {
			r.linkTo(p, at, of)
			return nil
		}
		hard, ok := r.hards[at]
		if !ok || until != nil && !hard.at.before(*until) {
			return &want[T]{pending: p, real: at, until: until}
		}
		if _, twice := r.twice[r.key(at)]; twice {
			r.fail(p, fmt.Errorf("%w: %s, which is a hard link and something else", errUnclear, at))
			return nil
		}
		name, until = hard.target, &hard.at
	}
	r.fail(p, fmt.Errorf("hard links that lead on from %s are too many", name))
	return nil
}

// target returns where a link leads to. A hard link to a symbolic link is another symbolic link, in
// another directory, and not all programs make one.
func (r *run[J, T]) target(p pending, name string, until *moment) (place, error) {
	at := p.place().with(name)
	if until != nil {
		real, err := r.real(at)
		if err != nil {
			return place{}, err
		}
		if _, symbolic := r.links[real]; symbolic {
			return place{}, fmt.Errorf("hard link to %s, which is a symbolic link", name)
		}
	}
	return r.resolve(at)
}

// result returns the last result for a name, up to a moment if there is one.
func (r *run[J, T]) result(at place, until *moment) (t T, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var last moment
	for _, of := range r.results[at] {
		if (until == nil || of.at.before(*until)) && (!ok || last.before(of.at)) {
			last, t, ok = of.at, of.t, true
		}
	}
	return t, ok
}

// linkTo gives a link the result of the file that it leads to.
func (r *run[J, T]) linkTo(p pending, real place, of T) {
	if p.hard == "" {
		p.Target = place{"", real.inner, real.name}.String()
	}
	r.put(p, r.Alias(p.Module, of))
}

// fail has a link be one without content.
func (r *run[J, T]) fail(p pending, err error) {
	p.Err = err
	var judge J
	r.put(p, r.Do(judge, p.Module))
}

// targets reads the archive again, for the files that links lead to.
func (r *run[J, T]) targets(wants []*want[T]) error {
	byPlace := make(map[place][]*want[T])
	layered := r.archive.kind == OCI || r.archive.kind == Docker
	for _, w := range wants {
		if _, ok := r.names[r.key(w.real)]; ok || layered && w.until != nil {
			byPlace[w.real] = append(byPlace[w.real], w)
		}
	}
	if len(byPlace) > 0 {
		if r.Judge == nil && len(r.found.Kernels) == 0 {
			return r.noKernel()
		}
		same := make(map[place]int)
		err := r.again(true, func(f *File) error {
			if !f.Mode.IsRegular() {
				return nil
			}
			at := f.place()
			// What unpacks the archive writes the file where a link in its name leads to, and may so
			// replace another.
			switch real, err := r.real(at); {
			case errors.Is(err, errUnclear):
				for _, links := range byPlace {
					for _, w := range links {
						w.through = f.Name
					}
				}
			case err == nil && real != at:
				for _, w := range byPlace[real] {
					w.through = f.Name
				}
			}
			links := byPlace[at]
			if len(links) == 0 || f.Link != "" {
				return nil
			}
			if same[at]++; same[at] > maxSame {
				return fmt.Errorf("%w: more than %d files called %s", ErrLimit, maxSame, f.Name)
			}
			return r.judgeTarget(f, links)
		})
		if err != nil {
			return err
		}
	}
	for _, w := range wants {
		switch {
		case w.through != "":
			r.fail(w.pending, fmt.Errorf("it leads to %s, which %s may replace, as there is a link in that name", w.real,
				w.through))
		case w.found != nil:
			r.linkTo(w.pending, w.real, w.found.t)
		case w.hard != "":
			r.fail(w.pending, fmt.Errorf("hard link to %s, which is not in the archive", w.hard))
		default:
			r.fail(w.pending, fmt.Errorf("symbolic link to %s, which is no module in the archive",
				r.links[w.place()]))
		}
	}
	return nil
}

// dirOf is the directory of a clean name; "" is the root.
func dirOf(name string) string { return cleanName(path.Dir(name)) }

// judgeTarget works on a file that links lead to: once for each kernel, and for each compression that
// the names of links tell.
func (r *run[J, T]) judgeTarget(f *File, links []*want[T]) error {
	now := r.now(f)
	links = slices.DeleteFunc(slices.Clone(links), func(w *want[T]) bool {
		return w.until != nil && !now.before(*w.until) || w.found != nil && now.before(w.found.at)
	})
	if len(links) == 0 {
		return nil
	}
	charge := min(f.Size, inWork)
	if err := r.memory.Acquire(r.ctx, charge); err != nil {
		return err
	}
	defer r.memory.Release(charge)
	content, err := module.Store(r.ctx, f, f.Size)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	defer content.Close()
	type manner struct{ suffix, release string }
	done := make(map[manner]*result[T])
	for _, w := range links {
		how := manner{path.Ext(w.Name), ""}
		if slices.ContainsFunc(r.kernels, func(k *kernel[J]) bool { return k.Release == w.Release }) {
			how.release = w.Release
		}
		if done[how] == nil {
			m := w.Module
			judge, known := r.judge(m, true)
			if !known {
				m.Err = r.otherKernel(m)
			}
			m.Open = func(ctx context.Context) (*module.File, error) { return r.open(ctx, m.Name, content) }
			m.Content = func() (io.ReaderAt, int64) { return content.Reader(), content.Size }
			done[how] = &result[T]{now, r.Do(judge, m)}
		}
		w.found = done[how]
	}
	return nil
}

// resolve returns where a path leads to over symbolic links.
func (r *run[J, T]) resolve(from place) (place, error) {
	name := from.name
	done, left := "", name
	for links := 0; left != ""; {
		var part string
		part, left, _ = strings.Cut(left, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			done = cleanName(done + "/..")
			continue
		}
		at := cleanName(done + "/" + part)
		if other, ok := r.diverted[from.with(at)]; ok || r.lost != "" {
			return place{}, fmt.Errorf("%w: %s, which %s may replace, as there is a link in that name", errUnclear, at,
				cmp.Or(other, r.lost))
		}
		target, ok := r.links[from.with(at)]
		if !ok {
			done = at
			continue
		}
		if _, twice := r.twice[r.key(from.with(at))]; twice {
			return place{}, fmt.Errorf("%w: %s, which is a symbolic link and something else, or two", errUnclear, at)
		}
		if links++; links > maxLinks {
			return place{}, fmt.Errorf("symbolic links that lead on from %s form a loop", name)
		}
		if path.IsAbs(target) {
			done = ""
		}
		if left = target + "/" + left; len(left) > 1<<16 {
			return place{}, fmt.Errorf("symbolic links that lead on from %s are too long", name)
		}
	}
	return from.with(done), nil
}

// errUnclear is the error of a path over names that programs which unpack archives see differently.
var errUnclear = errors.New("it leads over a name that the archive has twice")

// divert finds the symbolic links that lie in another place than their names say.
func (r *run[J, T]) divert() {
	diverted, lost := make(map[place]string), ""
	for at := range r.links {
		switch real, err := r.real(at); {
		case errors.Is(err, errUnclear):
			lost = at.String()
		case err == nil && real != at:
			diverted[real] = at.String()
		}
	}
	r.diverted, r.lost = diverted, lost
}

// real returns where a file lies: links in its name are followed, and it is not if it is one.
func (r *run[J, T]) real(at place) (place, error) {
	dir, err := r.resolve(at.with(dirOf(at.name)))
	return at.with(cleanName(dir.name + "/" + path.Base(at.name))), err
}

// write refuses an initramfs that writes into a file with several names. The kernel writes a file into
// the one that has its name, and so into all hard links of that (do_name in init/initramfs.c).
func (r *run[J, T]) write(f *File) error {
	if kind := r.archive.kind; kind != Initramfs && kind != UKI && f.inner == "" || f.Mode.IsDir() {
		return nil
	}
	at, err := r.real(f.place())
	if err != nil {
		return fmt.Errorf("%s: %w", f.place(), err)
	}
	k := r.key(at)
	_, before := r.written[k]
	if _, shared := r.shared[k]; shared || before && f.shared {
		return fmt.Errorf("%s is there twice, and has hard links, into which the kernel writes the later one: make the "+
			"initramfs anew", at)
	}
	if !before {
		r.kept += keptEntry
	}
	if r.kept > r.archive.limits.Kept {
		return r.archive.limits.exceeded("bytes of names to remember", r.archive.limits.Kept)
	}
	r.written[k] = struct{}{}
	if f.shared {
		r.shared[k] = struct{}{}
	}
	return nil
}

// outside sorts the links to directories below which modprobe would look for modules. Those that
// lead to a directory in the archive need no words, as all that is in it has a name of its own.
func (r *run[J, T]) outside() {
	for at := range r.links {
		base := path.Base(at.name)
		release, _ := moduleRelease(at.name)
		switch {
		case release == "" && !aboveModules(at.name), module.IsName(base):
		case release != "" && (base == "build" || base == "source"):
			r.found.Skipped = append(r.found.Skipped, at.String())
		default:
			real, err := r.resolve(at)
			if _, inside := r.names[r.key(real)]; err != nil || !inside {
				r.found.Outside = append(r.found.Outside, at.String())
			}
		}
	}
	slices.Sort(r.found.Skipped)
	slices.Sort(r.found.Outside)
}

// aboveModules reports whether lib/modules/KVER of a system may lie behind a name.
func aboveModules(name string) bool {
	switch name {
	case "lib", "usr", "usr/lib":
		return true
	}
	dir, base := path.Split(name)
	return strings.HasSuffix("/"+name, "/lib/modules") || base != "" && strings.HasSuffix("/"+dir, "/lib/modules/")
}

// key is what a name in a container image is remembered by.
func (r *run[J, T]) key(at place) key { return keyOf(at.image + "\x00" + at.inner + "\x00" + at.name) }

// remember notes that a file is in the archive, and the directories that it is in.
func (r *run[J, T]) remember(f *File) error {
	for name := f.Name; ; name = path.Dir(name) {
		if name == "." {
			name = ""
		}
		k := r.key(f.place().with(name))
		_, ok := r.names[k]
		if name == f.Name {
			_, link := r.links[f.place()]
			_, hard := r.hards[f.place()]
			if link || ok && (hard || f.Mode.IsRegular() && f.Link != "") {
				r.twice[k] = struct{}{}
			}
			r.names[k] = f.layer
		}
		if ok {
			return nil
		}
		if r.kept += keptEntry; r.kept > r.archive.limits.Kept {
			return r.archive.limits.exceeded("bytes of names to remember", r.archive.limits.Kept)
		}
		r.names[k] = f.layer
		if name == "" {
			return nil
		}
	}
}

// moduleRelease splits the path of a file below lib/modules/KVER.
func moduleRelease(name string) (release, rel string) {
	parts := strings.Split(name, "/")
	for i := 0; i+3 < len(parts); i++ {
		if parts[i] == "lib" && parts[i+1] == "modules" {
			return parts[i+2], strings.Join(parts[i+3:], "/")
		}
	}
	return "", ""
}

// bootName are the names of kernel images in boot.
var bootName = regexp.MustCompile(`^(vmlinuz|vmlinux|Image|image|kernel|zImage|bzImage)(-(.+))?$`)

// kernelRelease reports whether a file has the name of a kernel image, and which release it
// tells: boot/vmlinuz-KVER, lib/modules/KVER/vmlinuz, or .linux of a unified kernel image.
func kernelRelease(name string) (release string, ok bool) {
	if name == ".linux" {
		return "", true
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	for _, suffix := range []string{".hmac", ".sig", ".p7s", ".asc"} {
		if strings.HasSuffix(base, suffix) {
			return "", false
		}
	}
	for f := compress.Gzip; f <= compress.Zstd; f++ {
		base = strings.TrimSuffix(base, f.Suffix())
	}
	match := bootName.FindStringSubmatch(base)
	if match == nil {
		return "", false
	}
	if path.Base(dir) == "boot" && !strings.Contains("/"+dir, "/lib/debug/") {
		return match[3], true
	}
	release, rel := moduleRelease(name)
	return release, rel == path.Base(name) && match[2] == "" && !strings.Contains(dir, "lib/debug/")
}

// configRelease returns the release of the kernel whose configuration a file has by its name:
// boot/config-KVER or lib/modules/KVER/config.
func configRelease(name string) string {
	if release, rel := moduleRelease(name); rel == "config" {
		return release
	}
	dir, base := path.Split(name)
	release, ok := strings.CutPrefix(base, "config-")
	if !ok || path.Base(dir) != "boot" {
		return ""
	}
	return release
}

// isInner reports whether a file has the name of an archive with modules.
func isInner(name string) bool {
	dir, base := path.Split(name)
	switch {
	case strings.HasSuffix(base, ".efi"):
		return strings.HasSuffix(dir, "EFI/Linux/") || strings.Contains(dir, "lib/modules/")
	case strings.HasPrefix(base, "initrd"), strings.HasPrefix(base, "initramfs"):
		release, rel := moduleRelease(name)
		return strings.HasSuffix(dir, "boot/") || release != "" && strings.Count(rel, "/") == 0
	}
	return false
}
