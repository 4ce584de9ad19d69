package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/verify"
)

// packages separates the arguments that are packages, or other archives with modules, from
// modules and directories.
func packages(args []string) (packages, others []string) {
	for _, arg := range args {
		if !module.IsName(filepath.Base(arg)) && verify.IsArchive(arg) {
			packages = append(packages, arg)
		} else {
			others = append(others, arg)
		}
	}
	return packages, others
}

// refusePackages returns an error if one of the arguments is a package, for commands that write
// modules.
func refusePackages(args []string) error {
	if pkgs, _ := packages(args); len(pkgs) > 0 {
		return withHint(fmt.Errorf("%s: a package, an archive or an image, whose modules modsign reads and does not write",
			pkgs[0]), "sign the modules before they are packed; modsign verify and inspect take the package itself")
	}
	return nil
}

// isPackage reports whether an argument is a package, or another archive with modules.
func isPackage(arg string) bool {
	pkgs, _ := packages([]string{arg})
	return len(pkgs) > 0
}

// verified is the outcome of modules that verify has looked at in several places.
type verified struct {
	verify.Summary
	refused, unreadable bool
	none                error
}

// add adds the summary of one place. It returns an error that ends the run.
func (v *verified) add(s verify.Summary, err error, pkg string) error {
	if v.Verdicts == nil {
		v.Verdicts = make(map[verify.Verdict]int)
	}
	v.Modules += s.Modules
	v.Linked += s.Linked
	for verdict, n := range s.Verdicts {
		v.Verdicts[verdict] += n
	}
	v.Skipped = append(v.Skipped, s.Skipped...)
	v.Kernels = append(v.Kernels, inPackage(pkg, s.Kernels)...)
	v.Outside = append(v.Outside, inPackage(pkg, s.Outside)...)
	v.Inner = append(v.Inner, inPackage(pkg, s.Inner)...)
	refused, unreadable := errors.Is(err, verify.ErrRefused), errors.Is(err, verify.ErrIncomplete)
	v.refused, v.unreadable = v.refused || refused, v.unreadable || unreadable
	switch {
	case errors.Is(err, verify.ErrNoModules):
		v.none = err
		v.unreadable = v.unreadable || len(s.Outside)+len(s.Boot) > 0
		return nil
	case refused || unreadable: // what these are about is shown
		return nil
	}
	return err
}

func inPackage(pkg string, names []string) []string {
	var all []string
	for _, name := range names {
		all = append(all, name+" in "+pkg)
	}
	return all
}

// packageJudges are the keyrings of the kernel images in packages.
type packageJudges struct {
	attributes bool // as --mldsa-attrs has it
	// more adds what the kernel has beyond its image; may be nil.
	more   func(keys *verify.Keyring, image *verify.Image) error
	keys   []*verify.Keyring
	hashes bool
}

// keyring returns what a kernel image in a package trusts.
func (p *packageJudges) keyring(image *verify.Image) (*verify.Keyring, error) {
	keys := new(verify.Keyring)
	hashes, err := addImage(keys, image)
	if err != nil {
		return nil, err
	}
	if p.attributes {
		if err := keys.AcceptAttributes(); err != nil {
			return nil, err
		}
	}
	if p.more != nil {
		if err := p.more(keys, image); err != nil {
			return nil, err
		}
	}
	p.hashes = p.hashes || hashes != nil
	p.keys = append(p.keys, keys)
	return keys, nil
}

// packageError adds what to do if a package cannot be judged.
func packageError(err error) error {
	if errors.Is(err, verify.ErrNoKernel) {
		return withHint(err, "name the kernel with --kernel IMAGE, or the certificates with --cert FILE")
	}
	return err
}

// notSeen says what a package holds that was not looked at.
func (u *ui) notSeen(outside, inner []string) {
	if len(outside) > 0 {
		u.Note("links lead out of the package, so modules behind them were not looked at: %s", some(outside))
	}
	const most = 16
	for _, name := range inner[:min(len(inner), most)] {
		u.Note("%s was not looked into: give it to modsign by itself", name)
	}
	if more := len(inner) - most; more > 0 {
		u.Note("%s more inside of packages were not looked into", plural(more, "archive"))
	}
}

// verifyPackage compares the modules of a package with the list, the kernel image, or the
// hashes in the kernel image of the package.
func (o *hashlistVerifyOptions) verifyPackage(
	ctx context.Context, path string, options hashlist.VerifyOptions,
) (summary hashlist.Summary, against string, err error) {
	var reference *hashlist.Reference
	switch {
	case o.list != "":
		list, err := hashlist.ReadFile(o.list)
		if err != nil {
			return nil, "", err
		}
		reference, against = hashlist.NewReference(list), "the list of "+list.Release
	case o.image != "":
		kernel, err := hashlist.OpenKernel(o.image)
		if err != nil {
			return nil, "", noHashes(err)
		}
		if reference, err = hashlist.NewKernelReference(kernel.Embedded, nil); err != nil {
			return nil, "", fmt.Errorf("%s: %w", o.image, err)
		}
		against = kernel.Embedded.String()
	default:
		against = "the hashes in its kernel image"
	}
	summary, err = hashlist.VerifyArchive(ctx, reference, path, options)
	if errors.Is(err, verify.ErrNoKernel) {
		err = withHint(err, "use --list FILE or --kernel IMAGE")
	}
	return summary, against, err
}

// judgedBy says what a run has compared with: the keyring, or the kernel images in packages.
func judgedBy(keys *verify.Keyring, hashes *hashlist.Embedded, images []string, judges *packageJudges) string {
	if keys != nil || len(judges.keys) == 0 {
		return trustedOf(keys, hashes)
	}
	certs := 0
	for _, k := range judges.keys {
		certs += k.Len()
	}
	what := plural(certs, "certificate")
	if judges.hashes {
		what = "the hashes and " + what
	}
	return fmt.Sprintf("%s of %s", what, cmp.Or(strings.Join(images, ", "), "the kernel"))
}
