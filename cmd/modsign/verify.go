package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/verify"
)

type verifyOptions struct {
	installedOptions
	certs      []string
	image      string
	all        bool
	allowEmpty bool
	jobs       int
	maxSize    size
}

func newVerifyCommand(u *ui) *cobra.Command {
	o := verifyOptions{maxSize: 2 << 30, installedOptions: installedOptions{rootPaths: true}}
	cmd := &cobra.Command{
		Use:   "verify {[--kernel IMAGE] [--cert FILE]... | --installed [KVER]} PATH...",
		Short: "Tell whether a kernel will take modules",
		Long: `Verify gives the verdict that a kernel would give on each module: trusted, not
signed, unknown key, bad signature, malformed, unsupported or revoked, with the
error that loading it would end with and what the kernel would log. The rules
are the kernel's: a certificate's dates and usage do not count.

Whom to trust is said by --cert, or is what the kernel image has built in: the
one of --kernel (a vmlinux, or an x86 bzImage such as /boot/vmlinuz), or with
--installed that kernel's own. What a running kernel has learned beyond its
image, the keys of the machine's owner say, is not looked at: give them with
--cert beside --kernel.

Below a directory, verify looks at what depmod would find, so that modprobe may load
it: at *.ko, *.ko.gz, *.ko.xz and *.ko.zst, over symbolic links to files and to
directories too, wherever they lead. As depmod, it does not follow links that are
called build or source. With --root, links lead where they would lead after chroot, also
from PATHs below DIR.

Modules that are not trusted are listed, one a line, with --all every module.`,
		Example: `  modsign verify --cert signing_key.x509 /tmp/stage/lib/modules
  modsign verify --kernel /boot/vmlinuz-6.12.0-1-amd64 /lib/modules/6.12.0-1-amd64
  modsign verify --installed`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringArrayVarP(&o.certs, "cert", "c", nil, "trust the certificates in `FILE` (PEM or DER, any number; may be repeated)")
	flags.StringVar(&o.image, "kernel", "", "trust what the kernel `IMAGE` has built in")
	o.installedOptions.addFlags(flags)
	flags.Lookup("root").Usage = "root directory `DIR` of the system, in which all links are resolved"
	flags.BoolVarP(&o.all, "all", "a", false, "list every module")
	flags.BoolVar(&o.allowEmpty, "allow-empty", false, "no module at all is fine")
	flags.BoolVar(&u.json, "json", false, "write one JSON object a line to stdout")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but results and errors")
	flags.IntVarP(&o.jobs, "jobs", "j", 0, "modules looked at at once, `N` (default: the number of processors)")
	flags.Var(&o.maxSize, "max-module-size", "refuse a compressed module that is larger than `SIZE` when decompressed")
	return cmd
}

func (o *verifyOptions) run(ctx context.Context, u *ui, args []string) error {
	start := time.Now()
	kernel, err := o.kernel(args)
	if err != nil {
		return err
	}
	roots := kernel.roots(args)
	switch {
	case len(roots) == 0:
		return usagef("nothing to verify: name modules or folders, or give --installed")
	case o.jobs < 0:
		return usagef("--jobs is %d, and has to be a number of modules", o.jobs)
	}
	keys, err := o.keyring(kernel)
	if err != nil {
		return err
	}
	for _, warning := range keys.Warnings() {
		u.note("warning: %s", warning)
	}
	found, err := verify.FindIn(o.root, roots)
	if err != nil {
		return err
	}
	if found.Len() == 0 && !o.allowEmpty {
		u.skipped(found.Skipped())
		return withHint(fmt.Errorf("no kernel module found in %s, so that nothing is verified", strings.Join(roots, ", ")), "--allow-empty makes that a success")
	}

	counts, linked := make(map[verify.Verdict]int), 0
	err = found.Verify(ctx, keys, verify.Options{Jobs: o.jobs, MaxSize: int64(o.maxSize), Progress: func(n int) {
		u.progress(false, func() string { return fmt.Sprintf("verifying %d of %s", n, plural(found.Len(), "module")) })
	}}, func(r verify.Result) {
		counts[r.Verdict]++
		if r.Target != "" {
			linked++
		}
		o.show(u, r)
	})
	u.progress(true, nil)
	refused, unreadable := errors.Is(err, verify.ErrRefused), errors.Is(err, verify.ErrIncomplete)
	if err != nil && !refused && !unreadable { // what these are about is shown
		return err
	}
	took := time.Since(start)
	if u.json {
		named := make(map[string]int)
		for verdict, n := range counts {
			named[string(verdict)] = n
		}
		u.object(jsonVerifySummary{Type: "summary", Modules: found.Len(), Linked: linked, Skipped: found.Skipped(), Verdicts: named, Certificates: keys.Names(), Seconds: took.Seconds(), Warnings: keys.Warnings()})
	}
	u.note("%s", verdictSentence(found.Len(), linked, counts, keys.Len(), took))
	u.skipped(found.Skipped())
	switch {
	case refused:
		return exitStatus(exitRefused)
	case unreadable:
		return exitStatus(exitSome)
	}
	return nil
}

// keyring is whom to trust; never nobody.
func (o *verifyOptions) keyring(kernel *kernel) (*verify.Keyring, error) {
	keys := new(verify.Keyring)
	switch {
	case len(o.certs) > 0 || o.image != "":
		if o.image != "" {
			if err := keys.AddImage(o.image); err != nil {
				return nil, withHint(err, "give the certificates with --cert alone")
			}
		}
		for _, path := range o.certs {
			if err := keys.AddFile(path); err != nil {
				return nil, hintFor(path, err)
			}
		}
		return keys, nil
	case kernel != nil:
		keys, err := kernel.keyring()
		if err != nil {
			return nil, withHint(err, "give the kernel with --kernel IMAGE, or the certificates with --cert FILE")
		}
		return keys, nil
	}
	return nil, withHint(errors.New("no certificate to verify with"), "give --cert FILE, or --kernel IMAGE for those that are built into a kernel")
}

func (o *verifyOptions) show(u *ui, r verify.Result) {
	switch {
	case u.json:
		u.object(newJSONVerified(r))
	case r.Verdict != verify.Trusted:
		u.result("%s", refusal(r))
	case o.all:
		u.result("%s: trusted, signed by %s", r.Path, r.Signer)
	}
	if !u.json {
		for _, warning := range r.Warnings {
			u.note("warning: %s: %s", r.Path, warning)
		}
	}
}

// refusal is all about a module that is not trusted, in a line.
func refusal(r verify.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", r.Path, r.Verdict)
	if r.Err != nil && r.Verdict != verify.NotSigned {
		text := describe(r.Path, r.Err)
		fmt.Fprintf(&b, ": %s", strings.TrimPrefix(text, r.Path+": "))
	}
	if r.Errno == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, " (%s", errnoName(r.Errno))
	if r.Tolerated {
		b.WriteString(" where signatures are enforced")
	}
	if len(r.Dmesg) > 0 {
		fmt.Fprintf(&b, "; the kernel logs %q", strings.Join(r.Dmesg, "; "))
	}
	b.WriteString(")")
	return b.String()
}

// verdictSentence is the one true summary.
func verdictSentence(modules, linked int, counts map[verify.Verdict]int, certs int, took time.Duration) string {
	against := fmt.Sprintf("against %s in %s", plural(certs, "certificate"), seconds(took))
	if linked > 0 {
		against = fmt.Sprintf("(%d over symbolic links) %s", linked, against)
	}
	if modules == 0 {
		return "there is no module to verify " + against
	}
	if modules == counts[verify.Trusted] {
		return fmt.Sprintf("verified %s %s: all trusted", plural(modules, "module"), against)
	}
	var parts []string
	for _, verdict := range verify.Verdicts {
		if n := counts[verdict]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, verdict))
		}
	}
	return fmt.Sprintf("verified %s %s: %s", plural(modules, "module"), against, strings.Join(parts, ", "))
}
