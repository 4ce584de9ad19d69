package hashlist

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/archive"
	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
)

// BuildArchive makes the list of the modules in a package, or in another archive that
// verify.IsArchive recognizes, without unpacking it: the list that [Build] makes of the
// directory lib/modules/RELEASE in the unpacked package, in the order of its modules.order or of
// the names. If release is empty, the package has the modules of one kernel alone. Symbolic links
// are not followed, and modules in an initramfs do not count.
//
// A module that comes twice, one that modules.order names and the package does not have, and a
// directory of modules that is a link out of the package are errors: the list would not be that
// of the kernel. The other errors are those of Build. Only Jobs, Progress (whose total is zero)
// and Failed of the options have a meaning, as a Merkle tree needs proofs in the modules.
func BuildArchive(ctx context.Context, pkg, release string, o BuildOptions) (*Built, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Format == FormatMerkle || o.Strip {
		return nil, errors.New("BuildArchive makes lists of the modules as they are")
	}
	a, err := archive.Open(pkg, archive.Limits{})
	if err != nil {
		return nil, err
	}
	defer a.Close()
	var all []packed
	var done Count
	none := struct{}{}
	work := archive.Work[struct{}, packed]{Jobs: o.Jobs, Judge: &none}
	work.Do = func(_ struct{}, m archive.Module) packed { return hashPacked(ctx, m) }
	work.Alias = func(link archive.Module, of packed) packed {
		of.place(link)
		of.link = link.Target != ""
		return of
	}
	work.Emit = func(p packed) {
		all = append(all, p)
		done.Modules++
		done.Bytes += p.stored
		if o.Progress != nil {
			o.Progress(done, Count{})
		}
	}
	found, err := archive.Modules(ctx, a, work)
	if err != nil {
		return nil, err
	}
	if len(found.Outside) > 0 {
		return nil, fmt.Errorf("%s: modules may be behind links that lead out of the package: %s", pkg,
			strings.Join(found.Outside, ", "))
	}
	built, err := buildPacked(all, release, found.Orders, o)
	if err != nil && !errors.Is(err, ErrIncomplete) {
		err = fmt.Errorf("%s: %w", pkg, err)
	}
	return built, err
}

// A packed is a module in a package.
type packed struct {
	Module  // Path is that below lib/modules/RELEASE
	path    string
	inner   bool   // in an initramfs
	dir     string // lib/modules/RELEASE, with what is before it
	release string
	link    bool // symbolic
	stored  int64
	order   binary.AppendByteOrder
	err     error
}

// place sets where the module is.
func (p *packed) place(m archive.Module) {
	p.inner = m.Inner != ""
	p.path, p.release, p.Path = m.Path(), m.Release, module.BaseName(m.Rel)
	// With a merged /usr, these are one directory.
	p.dir = strings.TrimPrefix(strings.TrimSuffix(m.Name, "/"+m.Rel), "usr/")
	if m.Image != "" {
		p.dir = m.Image + ":" + p.dir
	}
}

// hashPacked hashes a module.
func hashPacked(ctx context.Context, m archive.Module) (p packed) {
	p.place(m)
	if p.err = m.Err; p.err == nil {
		p.err = p.read(ctx, m)
	}
	return p
}

func (p *packed) read(ctx context.Context, m archive.Module) error {
	opened, err := m.Open(ctx)
	if err != nil {
		return err
	}
	defer opened.Close()
	if p.Size, err = unsignedSize(opened); err != nil {
		return err
	}
	h := sha256.New()
	if err := module.CopyAll(h, module.Reader(ctx, opened.Payload(p.Size)), p.Size); err != nil {
		return err
	}
	p.Hash = Hash(h.Sum(nil))
	_, p.stored = m.Content()
	p.order, err = module.ByteOrder(opened)
	return err
}

// buildPacked makes the list of a kernel's modules.
func buildPacked(all []packed, release string, orders map[string][]byte, o BuildOptions) (*Built, error) {
	byDir := make(map[string][]packed)
	for _, p := range all {
		// Below usr/lib/debug are files with the debug information of modules.
		other := p.release == "" || release != "" && p.release != release
		if other || p.link || p.inner || strings.Contains("/"+p.dir, "/lib/debug/") {
			continue
		}
		byDir[p.dir] = append(byDir[p.dir], p)
	}
	dirs := slices.Sorted(maps.Keys(byDir))
	switch {
	case len(dirs) == 0 && release != "":
		return nil, fmt.Errorf("%w below lib/modules/%s", ErrNoModules, release)
	case len(dirs) == 0:
		return nil, fmt.Errorf("%w below lib/modules/KVER", ErrNoModules)
	case len(dirs) > 1:
		return nil, fmt.Errorf("%w: %s", ErrSeveralKernels, strings.Join(dirs, ", "))
	}
	release = path.Base(dirs[0])
	modules := make(map[string]packed)
	var failed failures.List
	for _, p := range byDir[dirs[0]] {
		if old, ok := modules[p.Path]; ok {
			return nil, fmt.Errorf("%s and %s are one module: a list has each module once", old.path, p.path)
		}
		modules[p.Path] = p
	}
	content, ordered := orders[release]
	names := installedOrder(content)
	if !ordered {
		names = slices.Sorted(maps.Keys(modules))
	}
	built := &Built{Order: binary.LittleEndian}
	built.Source = Source{Names: names, Release: release}
	built.List = &List{Release: release}
	for i, name := range names {
		p, ok := modules[name]
		switch {
		case !ok:
			return nil, fmt.Errorf("modules.order names %s, which is not in the package", name)
		case p.err != nil:
			failed.Add(p.path, p.err)
			if o.Failed != nil {
				o.Failed(p.path, p.err)
			}
			continue
		case i == 0:
			built.Order = p.order
		}
		built.List.Modules = append(built.List.Modules, p.Module)
		built.Bytes += p.Size
	}
	err := failed.Err(ErrIncomplete, fmt.Sprintf("%d of %d modules could not be hashed", failed.Len(), len(names)))
	if err != nil {
		return nil, err
	}
	return built, nil
}
