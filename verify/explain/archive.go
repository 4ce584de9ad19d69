package explain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/modsign/modsign/internal/archive"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/verify"
)

// ArchiveOptions tell [Archive] by which kernel to explain.
type ArchiveOptions struct {
	// Kernel is the kernel of all modules. If it is nil, Open opens each kernel image in the
	// package, and a module belongs to that of its release, as for verify.Archive. The image has
	// the configuration that the package has for this kernel, and is closed when Open returns.
	Kernel *Kernel
	Open   func(image *verify.Image) (*Kernel, error)
	// Result gets the reports one at a time, in the order of the package.
	Result func(*Kernel, *Report)
}

// Archived is what [Archive] found.
type Archived struct {
	Modules int
	// Outside are symbolic links that lead out of the package, and Inner archives in it, such
	// as other packages: they were not looked into.
	Outside, Inner []string
	// Boot are those of Inner that a machine boots: an initramfs or a unified kernel image.
	Boot []string
}

// Archive explains the modules in a package, or in whatever verify.IsArchive recognizes,
// without unpacking it. No command mends a file in a package: where [Kernel.Module] has one, a
// Mend says what to do instead. If the package cannot be read to its end, that is an error,
// whatever the reports so far are.
func Archive(ctx context.Context, path string, o ArchiveOptions) (Archived, error) {
	a, err := archive.Open(path, archive.Limits{})
	if err != nil {
		return Archived{}, err
	}
	defer a.Close()
	type explained struct {
		kernel *Kernel
		report *Report
	}
	work := archive.Work[*Kernel, explained]{
		MaxSize: maxSize,
		Configs: true,
		OpenKernel: func(found archive.Kernel, r io.ReaderAt, size int64) (*Kernel, string, error) {
			if o.Open == nil {
				return nil, "", verify.ErrNoKernel
			}
			image, err := verify.ReadImage(found.Path()+" in "+path, r, size)
			if err != nil {
				return nil, "", err
			}
			defer image.Close()
			if found.Config != nil {
				image.AddConfig(found.ConfigPath()+" in "+path, found.Config)
			}
			k, err := o.Open(image)
			if err != nil {
				return nil, "", err
			}
			return k, k.Release, nil
		},
		Do: func(k *Kernel, m archive.Module) explained { return explained{k, k.archived(ctx, path, m)} },
		Alias: func(link archive.Module, of explained) explained {
			report := *of.report
			report.Path, report.Target = link.Path(), link.Target
			return explained{of.kernel, &report}
		},
		Emit: func(e explained) {
			if o.Result != nil {
				o.Result(e.kernel, e.report)
			}
		},
	}
	if o.Kernel != nil {
		work.Judge = &o.Kernel
	}
	found, err := archive.Modules(ctx, a, work)
	return Archived{Modules: found.Modules, Outside: found.Outside, Inner: found.Inner, Boot: found.Boot}, err
}

// archived explains a module in a package. The kernel may be nil if the module has an error.
func (k *Kernel) archived(ctx context.Context, pkg string, m archive.Module) *Report {
	j := &judge{Kernel: k, ctx: ctx, r: &Report{Path: m.Path(), Archive: pkg}, path: filepath.Join(pkg, m.Name)}
	j.opened = func() (*module.File, error) { return m.Open(ctx) }
	j.raw = func() ([]byte, error) {
		r, size := m.Content()
		if size > maxMemory {
			return nil, fmt.Errorf("more than %d bytes", maxMemory)
		}
		return io.ReadAll(io.NewSectionReader(r, 0, size))
	}
	err := m.Err
	if err == nil && k == nil {
		err = errors.New("no kernel is given")
	}
	report := j.report(err)
	for i := range report.Causes {
		mend := &report.Causes[i].Mend
		if strings.Contains(mend.Command, shell.Quote(j.path)) {
			*mend = Mend{Then: "mend the module in the tree that the package is built from, and build the package again: " +
				"modsign explain gives the command for the file there"}
		}
	}
	return report
}

// Where is what messages call the module: its path, and the package if there is one.
func (r *Report) Where() string {
	if r.Archive == "" {
		return r.Path
	}
	return r.Path + " in " + r.Archive
}
