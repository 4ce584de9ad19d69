package hashlist

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/archive"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/vmlinux"
)

// ReadKernel is [OpenKernel] for a kernel image of size bytes that is no file.
func ReadKernel(r io.ReaderAt, size int64) (*Kernel, error) {
	image, err := vmlinux.New(r, size)
	if err != nil {
		return nil, err
	}
	return newKernel(image)
}

// VerifyArchive compares the modules in a package, or in another archive that
// verify.IsArchive recognizes, with a reference, without unpacking it. If the reference is nil,
// the kernel image in the package is the reference, as for verify.Archive. A kernel has no
// names: those in modules.order in the package count, if it is there. The results and the
// error are those of [Reference.Verify], and come when the whole package is read. An error of
// the package itself leaves no results. A directory of modules that is a link out of the package
// is a result too: Failed. VerifyOptions.Root and Signed have no meaning here.
func VerifyArchive(ctx context.Context, r *Reference, path string, opts VerifyOptions) (Summary, error) {
	switch {
	case r != nil && r.known == nil && r.root == nil:
		return nil, errNoReference
	case opts.Jobs < 0:
		return nil, fmt.Errorf("negative VerifyOptions.Jobs: %d", opts.Jobs)
	}
	a, err := archive.Open(path, archive.Limits{})
	if err != nil {
		return nil, err
	}
	defer a.Close()
	type judged struct {
		Result
		r       *Reference
		release string
		inner   bool // in an initramfs
	}
	var results []judged
	work := archive.Work[*Reference, judged]{Jobs: opts.Jobs, Emit: func(j judged) { results = append(results, j) }}
	if r != nil {
		work.Judge = &r
	}
	work.OpenKernel = func(k archive.Kernel, image io.ReaderAt, size int64) (*Reference, string, error) {
		kernel, err := ReadKernel(image, size)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", k.Name, err)
		}
		r, err := NewKernelReference(kernel.Embedded, nil)
		return r, kernel.Release, err
	}
	work.Do = func(r *Reference, m archive.Module) judged {
		name := module.BaseName(cmp.Or(m.Rel, m.Name))
		j := judged{Result{Path: m.Path(), Archive: path, Name: name}, r, m.Release, m.Inner != ""}
		if j.Err = m.Err; j.Err == nil {
			j.Err = r.stored(ctx, m, &j.Result, opts)
		}
		if j.Err != nil {
			j.Verdict = Failed
		}
		return j
	}
	work.Alias = func(link archive.Module, of judged) judged {
		of.Path, of.Target = link.Path(), link.Target
		of.Name, of.release = module.BaseName(cmp.Or(link.Rel, link.Name)), link.Release
		return of
	}
	found, err := archive.Modules(ctx, a, work)
	if err != nil {
		return nil, err
	}
	if r == nil && len(results) > 0 {
		r = results[0].r
	}
	names, err := r.order(found.Orders)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	missing := make(map[string]bool, len(names))
	for _, name := range names {
		missing[name] = true
	}
	summary := make(Summary)
	var outcome outcome
	report := func(result Result) {
		summary[result.Verdict]++
		outcome.add(result)
		if opts.Result != nil {
			opts.Result(result)
		}
	}
	named := make(map[string]bool, len(names))
	for name := range missing {
		named[name] = true
	}
	for _, j := range results {
		if j.Verdict == Extra && named[j.Name] {
			j.Verdict = Changed
		}
		if !j.inner {
			delete(missing, j.Name)
		}
		report(j.Result)
	}
	modules := len(results)
	for _, link := range found.Outside {
		report(Result{Path: link, Name: link, Verdict: Failed, Archive: path,
			Err: errors.New("the link leads out of the package: modules behind it are not looked at")})
	}
	for _, name := range found.Boot {
		report(Result{Path: name, Name: name, Verdict: Failed, Archive: path,
			Err: errors.New("it was not looked into: give it by itself")})
	}
	for _, name := range names {
		if missing[name] {
			delete(missing, name)
			modules++
			report(Result{Name: name, Verdict: Missing, Archive: path})
		}
	}
	return summary, outcome.err(modules)
}

// stored sets the verdict on a module of an archive.
func (r *Reference) stored(ctx context.Context, m archive.Module, result *Result, opts VerifyOptions) error {
	opened, err := m.Open(ctx)
	if err != nil {
		return err
	}
	defer opened.Close()
	if err := r.judge(ctx, opened, result); err != nil || result.Verdict == Trusted || opts.SignedContent == nil {
		return err
	}
	if signer := opts.SignedContent(opened, opened.Size); signer != "" {
		result.Verdict, result.Detail = Signed, "by "+signer
	}
	return nil
}

// order returns the names of the reference. A kernel's are those of the only modules.order in
// a package, and none if there are several.
func (r *Reference) order(orders map[string][]byte) ([]string, error) {
	if r == nil {
		return nil, nil
	}
	if r.names != nil || !r.kernel || len(orders) != 1 {
		return slices.Sorted(slices.Values(r.names)), nil
	}
	var names []string
	for _, content := range orders {
		names = installedOrder(content)
	}
	hashes := len(r.known)
	if r.root != nil {
		if n := levels(len(names)); n != int(r.root.Levels) {
			return nil, fmt.Errorf("the kernel has a tree of %d levels, but the %d modules of modules.order make %d: "+
				"they are from different builds", r.root.Levels, len(names), n)
		}
	} else if hashes > len(names) {
		return nil, fmt.Errorf("the kernel has %d hashes, but modules.order has %d modules: they are from different builds",
			hashes, len(names))
	}
	slices.Sort(names)
	return names, nil
}

// installedOrder returns the names in a modules.order of installed modules, each once.
func installedOrder(content []byte) []string {
	var names []string
	seen := make(map[string]bool)
	for line := range strings.Lines(string(content)) {
		name := module.BaseName(path.Clean(strings.TrimSpace(line)))
		if name != "." && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}
