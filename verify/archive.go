package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/modsign/modsign/internal/archive"
	"github.com/modsign/modsign/internal/failures"
)

// ErrNotArchive reports a file that [Archive] cannot read, as it is none of those that
// [IsArchive] names.
var ErrNotArchive = archive.ErrNotArchive

// IsArchive reports whether there is at a path what [Archive] reads: a package of Debian
// (.deb) or RPM, a container image in an OCI layout (a directory or tar archive) or from docker
// save, a tar archive, an initramfs image, or a unified kernel image, and also a squashfs
// image, which Archive refuses to read. The content of the file decides, not its name.
func IsArchive(path string) bool {
	_, err := archive.Recognize(path)
	return err == nil
}

// Archive verifies the modules in a package, or in whatever [IsArchive] recognizes, without
// unpacking it: all files *.ko, *.ko.gz, *.ko.xz and *.ko.zst, in any directory, also hard
// links and symbolic links to them. The results come in the order of the package. Their
// Archive is the path of the package, their Path the path of the module inside. It begins with
// the name of the image and a colon if the package holds several container images, and with that
// of the initramfs and an exclamation mark if the module is in an initramfs in the package.
//
// If keys is nil, kernel images in the package judge: boot/vmlinuz-KVER,
// lib/modules/KVER/vmlinuz, or the one of a unified kernel image. A module belongs to the image
// of its KVER, or to the only one. Without any, the error is [ErrNoKernel].
//
// The other errors are those of [Tree]. It is [ErrIncomplete] also if Summary.Outside or
// Summary.Boot is not empty.
// If the package cannot be read to its end, that is an
// error too, whatever the results so far are. Options.Root has no meaning here, and the total
// of Options.Progress is 0, as it is unknown.
func Archive(ctx context.Context, keys *Keyring, path string, o Options) (Summary, error) {
	summary := Summary{Verdicts: make(map[Verdict]int)}
	if err := o.check(); err != nil {
		return summary, err
	}
	a, err := archive.Open(path, archive.Limits{})
	if err != nil {
		return summary, err
	}
	defer a.Close()
	var outcome outcome
	work := archive.Work[*Keyring, Result]{Jobs: o.Jobs, MaxSize: o.MaxSize, OpenKernel: o.openKernel(path),
		Configs: o.Configs}
	if keys != nil {
		work.Judge = &keys
	}
	work.Do = func(keys *Keyring, m archive.Module) Result {
		r := Result{Path: m.Path(), Archive: path}
		if m.Err != nil {
			if errors.Is(m.Err, archive.ErrNotRegular) { // as on disk
				return r.refuse(Malformed, syscall.EINVAL, m.Err)
			}
			r.Verdict, r.Err = Unreadable, m.Err
			return r
		}
		opened, err := m.Open(ctx)
		return r.opened(ctx, keys, opened, err)
	}
	work.Alias = func(link archive.Module, of Result) Result {
		of.Path, of.Target = link.Path(), link.Target
		return of
	}
	work.Emit = func(r Result) {
		summary.add(r)
		outcome.add(r)
		if o.Progress != nil {
			o.Progress(summary.Modules, 0)
		}
		if o.Result != nil {
			o.Result(r)
		}
	}
	found, err := archive.Modules(ctx, a, work)
	summary.Skipped, summary.Outside, summary.Inner, summary.Boot = found.Skipped, found.Outside, found.Inner, found.Boot
	for _, k := range found.Kernels {
		summary.Kernels = append(summary.Kernels, k.Path())
	}
	switch {
	case err != nil:
		return summary, err
	case summary.Modules == 0:
		return summary, noModules([]string{path})
	}
	if err := outcome.err(summary.Modules); err != nil {
		return summary, err
	}
	if len(summary.Boot) > 0 {
		return summary, fmt.Errorf("%w: %s in %s was not looked into", ErrIncomplete, strings.Join(summary.Boot, ", "), path)
	}
	if len(summary.Outside) == 0 {
		return summary, nil
	}
	return summary, fmt.Errorf("%w: %s leads out of %s", ErrIncomplete, strings.Join(summary.Outside, ", "), path)
}

// openKernel returns what makes the keyring of a kernel image in a package.
func (o *Options) openKernel(pkg string) func(archive.Kernel, io.ReaderAt, int64) (*Keyring, string, error) {
	open := o.Kernel
	if open == nil {
		open = func(image *Image) (*Keyring, error) {
			keys := new(Keyring)
			return keys, keys.AddOpened(image)
		}
	}
	return func(k archive.Kernel, r io.ReaderAt, size int64) (*Keyring, string, error) {
		image, err := ReadImage(in(k.Path(), pkg), r, size)
		if err != nil {
			return nil, "", err
		}
		defer image.Close()
		if k.Config != nil {
			image.AddConfig(in(k.ConfigPath(), pkg), k.Config)
		}
		keys, err := open(image)
		switch {
		case err != nil:
			return nil, "", err
		case keys == nil:
			return nil, "", errNoKeyring
		}
		return keys, keys.release, nil
	}
}

// in names a file of a package, and the package.
func in(name, pkg string) string { return name + " in " + pkg }

// Name is what messages call the module: its Path, and the package if there is one.
func (r *Result) Name() string {
	if r.Archive == "" {
		return r.Path
	}
	return in(r.Path, r.Archive)
}

// Name is what messages call the module: its Path, and the package if there is one.
func (d *Description) Name() string {
	if d.Archive == "" {
		return d.Path
	}
	return in(d.Path, d.Archive)
}

// InspectArchive describes the modules that [Archive] would verify, as [InspectTree] does for
// directories. A module that could not be described comes as a Description with nothing but
// its Path and Archive, and the error.
func InspectArchive(ctx context.Context, pkg string, o Options, result func(d *Description, err error)) error {
	if err := o.check(); err != nil {
		return err
	}
	a, err := archive.Open(pkg, archive.Limits{})
	if err != nil {
		return err
	}
	defer a.Close()
	type described struct {
		d   *Description
		err error
	}
	none := struct{}{}
	var failed failures.List
	work := archive.Work[struct{}, described]{Jobs: o.Jobs, MaxSize: o.MaxSize, Judge: &none}
	work.Do = func(_ struct{}, m archive.Module) described {
		r := described{&Description{Path: m.Path(), Archive: pkg}, m.Err}
		if r.err != nil {
			return r
		}
		opened, err := m.Open(ctx)
		if err != nil {
			r.err = err
			return r
		}
		defer opened.Close()
		d, err := inspectOpen(opened, r.d.Path, "")
		if err != nil {
			r.err = err
			return r
		}
		d.Archive = pkg
		return described{d, nil}
	}
	work.Alias = func(link archive.Module, of described) described {
		d := *of.d
		d.Path, d.Target = link.Path(), link.Target
		return described{&d, of.err}
	}
	work.Emit = func(r described) {
		if r.err != nil {
			failed.Add(r.d.Name(), r.err)
		}
		if result != nil {
			result(r.d, r.err)
		}
	}
	found, err := archive.Modules(ctx, a, work)
	switch {
	case err != nil:
		return err
	case found.Modules == 0:
		return noModules([]string{pkg})
	}
	return failed.Err(ErrIncomplete, fmt.Sprintf("%d of %d modules could not be described", failed.Len(), found.Modules))
}
