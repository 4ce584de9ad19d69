package hashlist

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"slices"
	"sync"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
)

// Source names the modules of a kernel, in an object tree or installed.
type Source struct {
	// Dir is the directory that holds the modules, at any depth.
	Dir string
	// Names are the paths of the modules below Dir, such as drivers/net/dummy.ko, in the
	// order of modules.order. If only dummy.ko.gz, .xz or .zst exists, Build reads that
	// file. [FindNames] returns the names for a directory without a modules.order.
	Names []string
	// Prefix begins the path of each module in the list: "kernel/" for an object tree,
	// whose modules are installed below lib/modules/RELEASE/kernel, and empty for
	// lib/modules/RELEASE itself.
	Prefix string
	// Release is the release of the kernel, as uname -r prints it.
	Release string
}

// BuildOptions tell [Build] what to hash. The zero value makes a list of the modules as
// they are.
type BuildOptions struct {
	Format Format // what the kernel is built for; empty for FormatList
	// LeavesOnly leaves out the list, which a kernel with a Merkle tree does not need:
	// Build hashes each module once instead of twice. It requires FormatMerkle.
	LeavesOnly bool
	// Strip hashes the modules as INSTALL_MOD_STRIP=1 installs them: without debug
	// information.
	Strip bool
	// StripProgram strips modules that this package does not strip itself, because their
	// shape is unusual. If it is empty, Build fails for these.
	StripProgram string
	// Jobs is how many modules Build reads at once; 0 means twice the number of processors.
	Jobs int

	// Build calls these functions one at a time. Both may be nil.
	Progress func(done, total Count)      // after each module
	Failed   func(path string, err error) // for each module that failed, in the order of Names
}

// Count is an amount of modules.
type Count struct {
	Modules int
	Bytes   int64 // on disk
}

// Built holds the hashes of a kernel's modules.
type Built struct {
	Source Source
	List   *List  // nil with BuildOptions.LeavesOnly
	Leaves []Hash // of the Merkle tree, in the order of Source.Names; nil for FormatList
	Bytes  int64  // how many were hashed
	// Order is the byte order of the modules, and so of their kernel; little-endian if
	// there are no modules.
	Order binary.AppendByteOrder
}

// Embedded returns what the kernel has to have built in.
func (b *Built) Embedded() *Embedded {
	if b == nil {
		return nil
	}
	if b.Leaves != nil {
		root := NewTree(b.Leaves).Root()
		return &Embedded{Root: &root}
	}
	return b.List.Embedded()
}

// Proofs returns the proofs of the modules, none of them for FormatList.
func (b *Built) Proofs() *Proofs {
	if b == nil {
		return nil
	}
	return NewProofs(b.Source.Names, b.Leaves)
}

// Build hashes the modules of a kernel in parallel: their content without compression
// and signatures. If modules cannot be read or are no modules, it returns
// [ErrIncomplete] and no hashes, and if the context ends, its cause. A module that
// changes meanwhile fails with [ErrChanged].
func Build(ctx context.Context, source Source, o BuildOptions) (*Built, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	entries, err := source.find()
	if err != nil {
		return nil, err
	}
	base, err := dirfd.Open(source.Dir)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	b := newBuilder(base, source, entries, o)
	// The largest first: otherwise a worker that begins one last runs on alone.
	order := make([]int, len(entries))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(entries[j].Info.Size(), entries[i].Info.Size()) })
	errs := make([]error, len(entries))
	err = batch.Each(ctx, len(order), o.Jobs, func(n int) error {
		i := order[n]
		errs[i] = b.hash(ctx, i)
		return nil // the other modules may have errors as well
	})
	if err != nil {
		return nil, err
	}
	if err := b.outcome(errs); err != nil {
		return nil, err
	}
	return b.built, nil
}

// find returns the file of each name.
func (s *Source) find() ([]module.Entry, error) {
	entries, err := module.FindNames(s.Dir, s.Names)
	if err != nil {
		return nil, err
	}
	if len(entries) != len(s.Names) { // each is found once
		seen := make(map[string]bool)
		for _, name := range s.Names {
			if seen[name] {
				return nil, fmt.Errorf("%s: %s is named twice", s.Dir, name)
			}
			seen[name] = true
		}
		return nil, fmt.Errorf("%s: %d names for %d modules", s.Dir, len(s.Names), len(entries))
	}
	return entries, nil
}

// A builder collects the hashes. Each worker writes to the places of its module.
type builder struct {
	BuildOptions
	base    *dirfd.Dir
	entries []module.Entry
	limits  module.Limits
	built   *Built

	mu          sync.Mutex
	done, total Count
}

func newBuilder(base *dirfd.Dir, source Source, entries []module.Entry, o BuildOptions) *builder {
	b := &builder{BuildOptions: o, base: base, entries: entries, limits: module.SharedLimits(0)}
	b.built = &Built{Source: source, Order: binary.LittleEndian}
	if o.Format == FormatMerkle {
		b.built.Leaves = make([]Hash, len(entries))
	}
	if !o.LeavesOnly {
		b.built.List = &List{Release: source.Release, Modules: make([]Module, len(entries))}
	}
	b.total.Modules = len(entries)
	for _, e := range entries {
		b.total.Bytes += e.Info.Size()
	}
	return b
}

// hash hashes one module.
func (b *builder) hash(ctx context.Context, i int) error {
	size, err := b.read(ctx, i)
	if ctx.Err() != nil {
		return err // of the interruption
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.built.Bytes += size
	}
	b.done.Modules++
	b.done.Bytes += b.entries[i].Info.Size()
	if b.Progress != nil {
		b.Progress(b.done, b.total)
	}
	return err
}

// read returns the size of what it has hashed.
func (b *builder) read(ctx context.Context, i int) (int64, error) {
	m, err := module.OpenBelow(ctx, b.base, b.entries[i].Rel, b.limits)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	size, err := unsignedSize(m)
	if err != nil {
		return 0, err
	}
	content, err := b.content(ctx, m, size)
	if err != nil {
		return 0, err
	}
	defer content.close()
	if err := b.sum(ctx, i, content); err != nil {
		return 0, err
	}
	if i == 0 {
		if b.built.Order, err = module.ByteOrder(m); err != nil {
			return 0, err
		}
	}
	return content.size, m.Untouched()
}

// unsignedSize returns the size of a module without signatures.
func unsignedSize(m *module.File) (int64, error) {
	layers, err := module.Layers(m, m.Size)
	if err != nil {
		return 0, err
	}
	size := module.PayloadSize(layers, m.Size)
	return size, module.CheckELF(m, size)
}

// sum makes both hashes, as far as they are wanted, in one pass over the content.
func (b *builder) sum(ctx context.Context, i int, c *content) error {
	var plain, leaf hash.Hash
	var out []io.Writer
	if b.built.List != nil {
		plain = sha256.New()
		out = append(out, plain)
	}
	if b.built.Leaves != nil {
		leaf = NewLeaf(uint32(i))
		out = append(out, leaf)
	}
	if err := module.CopyAll(io.MultiWriter(out...), module.Reader(ctx, c.reader), c.size); err != nil {
		return err
	}
	if plain != nil {
		path := b.built.Source.Prefix + b.built.Source.Names[i]
		b.built.List.Modules[i] = Module{Path: path, Size: c.size, Hash: Hash(plain.Sum(nil))}
	}
	if leaf != nil {
		b.built.Leaves[i] = Hash(leaf.Sum(nil))
	}
	return nil
}

// outcome reports the modules that failed.
func (b *builder) outcome(errs []error) error {
	var failed failures.List
	for i, err := range errs {
		if err == nil {
			continue
		}
		failed.Add(b.entries[i].Path, err)
		if b.Failed != nil {
			b.Failed(b.entries[i].Path, err)
		}
	}
	return failed.Err(ErrIncomplete, fmt.Sprintf("%d of %d modules could not be hashed", failed.Len(), len(errs)))
}

// FindNames returns the names of the modules below a directory in lexical order, as
// [Source] takes them. It follows no symbolic links. No module at all is
// [ErrNoModules], and a module in two forms of compression is an error.
func FindNames(dir string) ([]string, error) {
	links := 0
	entries, err := module.Find([]string{dir}, func(_ module.Entry, kind fs.FileMode) {
		if kind&fs.ModeSymlink != 0 {
			links++
		}
	})
	switch {
	case err != nil:
		return nil, err
	case len(entries) == 0 && links > 0:
		return nil, fmt.Errorf("%w in %s; symbolic links are not followed, and there are %d", ErrNoModules, dir, links)
	case len(entries) == 0:
		return nil, fmt.Errorf("%w in %s", ErrNoModules, dir)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		if e.Err != nil {
			return nil, e.Err
		}
		names[i] = module.BaseName(e.Rel)
	}
	slices.Sort(names)
	for i, name := range names[1:] {
		if name == names[i] {
			return nil, fmt.Errorf("%s: %s exists in more than one form of compression: remove what is out of date", dir, name)
		}
	}
	return names, nil
}

func (o *BuildOptions) check() error {
	switch {
	case o.Format != "" && o.Format != FormatList && o.Format != FormatMerkle:
		return fmt.Errorf("unknown value of BuildOptions.Format: %q", o.Format)
	case o.LeavesOnly && o.Format != FormatMerkle:
		return errors.New("BuildOptions.LeavesOnly without FormatMerkle: nothing to hash")
	case o.Jobs < 0:
		return fmt.Errorf("negative BuildOptions.Jobs: %d", o.Jobs)
	}
	return nil
}
