package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/verify"
)

type verifyOptions struct {
	installedOptions
	rings      ringOptions
	certs      []string
	image      string
	attributes bool
	all        bool
	allowEmpty bool
	jobs       jobsFlag
	maxSize    size
}

func newVerifyCommand(u *ui) *cobra.Command {
	o := verifyOptions{installedOptions: installedOptions{rootPaths: true}}
	cmd := &cobra.Command{
		Use:   "verify [--kernel IMAGE | --installed [KVER]] [--cert FILE]... {PATH | PACKAGE}...",
		Short: "Check whether a kernel will load modules",
		Long: `Verify reports for each module what a kernel would decide: trusted, not signed,
unknown key, bad signature, malformed, unsupported, revoked or foreign. It also shows
the error of the load, and what the kernel would log. The rules are the kernel's: dates
and usages of certificates do not count. They differ between versions: with an image
they are those of its version, otherwise those of the newest that modsign knows, Linux
7.2.

--cert names the certificates to trust. --kernel trusts those built into a kernel
image: a vmlinux, an Image, or what boots, such as /boot/vmlinuz of any architecture or
a unified kernel image. --installed trusts those built into the installed kernel.

What a kernel learns beyond its image comes with further flags, each beside --kernel or
--installed: --mok, --db and --dbx name lists of shim and the firmware, as certificates
or in the format of EFI; --mok efivars reads all of them on this machine, or below
--root; --secondary and --blacklist are what root adds to these keyrings. --running
judges as the running kernel, with the keyrings it has now. Which keys count follows the
kernel's image and configuration: verify says why a key that it knows does not count.
docs/keyrings.md has the rules. Without a verdict on a module, because something could
not be read, the exit status is 3.

A kernel with CONFIG_MODULE_HASHES trusts a module for its hash or, with
CONFIG_MODULE_SIG, for its signature. Then --kernel and --installed look at both.

Below a directory, verify looks at the files that depmod would find and modprobe may
load: *.ko, *.ko.gz, *.ko.xz and *.ko.zst, also over symbolic links to files and
directories, wherever they lead. Like depmod, it does not follow links named build or
source. With --root, links lead where they would lead after chroot, also from PATHs
below DIR.

A PATH may be a package or an image with modules, which modsign does not unpack: .deb,
.rpm, a container image (OCI layout as directory or tar archive, docker save), a tar
archive, an initramfs, a unified kernel image. All modules inside are verified, wherever
they are. Without --kernel, --installed and --cert, the kernel image inside decides.

Verify lists the modules that are not trusted, one a line, and with --all every module.

Under the name modsign-verify, modsign is SUSE's program of that name, with its options
and exit codes: see docs/exit-codes.md.`,
		Example: `  modsign verify --cert signing_key.x509 /tmp/stage/lib/modules
  modsign verify --kernel /boot/vmlinuz-6.12.0-1-amd64 /lib/modules/6.12.0-1-amd64
  modsign verify --installed
  modsign verify --running --installed
  modsign verify --installed --mok efivars
  modsign verify linux-image-6.12.0-1-amd64_6.12.0-1_amd64.deb
  modsign verify --kernel /boot/vmlinuz-6.12.0-1-amd64 /boot/initrd.img-6.12.0-1-amd64`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringArrayVarP(&o.certs, "cert", "c", nil, "trust the certificates in `FILE`, PEM or DER (repeatable)")
	flags.StringVar(&o.image, "kernel", "", "trust what is built into the kernel `IMAGE`")
	o.rings.addFlags(flags)
	flags.BoolVar(&o.attributes, "mldsa-attrs", false, "judge like a kernel that takes ML-DSA with signed attributes")
	o.installedOptions.addFlags(flags)
	flags.Lookup("root").Usage = "resolve links in the system at `DIR`"
	flags.BoolVarP(&o.all, "all", "a", false, "list every module")
	flags.BoolVar(&o.allowEmpty, "allow-empty", false, "succeed if there is no module")
	addJSON(flags, u)
	addQuiet(flags, u)
	o.jobs.addFlag(flags)
	addMaxSize(flags, &o.maxSize)
	return cmd
}

func (o *verifyOptions) run(ctx context.Context, u *ui, args []string) error {
	if err := o.jobs.check(); err != nil {
		return err
	}
	if err := o.check("verify", args); err != nil {
		return err
	}
	start := time.Now()
	kernel, err := o.kernel(args)
	if err != nil {
		return err
	}
	archives, paths := packages(kernel.roots(args))
	var keys *verify.Keyring
	var hashes *hashlist.Embedded
	files := kernelFiles{installed: kernel, path: o.image}
	if len(paths) > 0 || o.image != "" || len(o.certs) > 0 || kernel != nil || o.rings.running {
		keys, hashes, err = o.keyring(u, &files)
		files.image.Close()
		if err != nil {
			return err
		}
	}
	for _, warning := range keys.Warnings() {
		u.Note("warning: %s", warning)
	}
	judges := &packageJudges{attributes: o.attributes, more: func(keys *verify.Keyring, image *verify.Image) error {
		return o.rings.apply(u, keys, &kernelFiles{image: image}, o.root)
	}}
	options := verify.Options{
		Jobs: int(o.jobs), MaxSize: int64(o.maxSize), Root: o.root, Kernel: judges.keyring, Configs: o.rings.given(),
		Progress: func(done, total int) {
			u.Progress(false, func() string {
				if total == 0 { // nobody knows how many modules a package has
					return fmt.Sprintf("verified %s", plural(done, "module"))
				}
				return fmt.Sprintf("verifying %d of %s", done, plural(total, "module"))
			})
		},
		Result: func(r verify.Result) { o.show(u, r) },
	}
	var all verified
	if len(paths) > 0 || len(archives) == 0 {
		summary, err := verify.Tree(ctx, keys, paths, options)
		if err := all.add(summary, err, ""); err != nil {
			return err
		}
	}
	for _, pkg := range archives {
		summary, err := verify.Archive(ctx, keys, pkg, options)
		if err := all.add(summary, err, pkg); err != nil {
			return packageError(err)
		}
	}
	u.Progress(true, nil)
	if all.Modules == 0 && !o.allowEmpty {
		u.skipped(all.Skipped)
		u.notSeen(all.Outside, all.Inner)
		return withHint(fmt.Errorf("%w: nothing was verified", all.none), "use --allow-empty to succeed without modules")
	}
	took := time.Since(start)
	if u.JSON {
		o.summarize(u, all, archives, keys, hashes, judges, took)
	}
	for _, k := range judges.keys {
		for _, warning := range k.Warnings() {
			u.Note("warning: %s", warning)
		}
	}
	u.Note("%s", verdictSentence(all.Summary, judgedBy(keys, hashes, all.Kernels, judges), took))
	u.skipped(all.Skipped)
	u.notSeen(all.Outside, all.Inner)
	switch {
	case all.refused:
		return exitStatus(exitRefused)
	case all.unreadable:
		return exitStatus(exitSome)
	}
	return nil
}

// summarize writes the last object of --json.
func (o *verifyOptions) summarize(u *ui, all verified, archives []string, keys *verify.Keyring,
	hashes *hashlist.Embedded, judges *packageJudges, took time.Duration) {
	summary := jsonVerifySummary{
		Type: "summary", Modules: all.Modules, Linked: all.Linked, Skipped: all.Skipped, Verdicts: all.Verdicts,
		Packages: archives, Images: all.Kernels, Outside: all.Outside, Inner: all.Inner,
		Certificates: keys.Names(), Kernel: keys.Kernel(), Hashed: hashes != nil, HashesOnly: keys.HashesOnly(),
		Seconds: took.Seconds(), Warnings: keys.Warnings(), Keys: o.known(keys),
	}
	for i, k := range judges.keys {
		if i == 0 {
			summary.Kernel = k.Kernel()
		}
		summary.Certificates = append(summary.Certificates, k.Names()...)
		summary.Hashed = summary.Hashed || k.Hashed()
		summary.HashesOnly = summary.HashesOnly || k.HashesOnly()
		summary.Warnings = append(summary.Warnings, k.Warnings()...)
		summary.Keys = append(summary.Keys, o.known(k)...)
	}
	u.Object(summary)
}

// keyring returns what to trust: at least one certificate, or the hashes of a kernel. It opens the
// image of the kernel, if there is one.
func (o *verifyOptions) keyring(u *ui, files *kernelFiles) (
	keys *verify.Keyring, hashes *hashlist.Embedded, err error,
) {
	keys = new(verify.Keyring)
	if files.running = o.rings.running; files.running {
		if files.installed, err = o.runningKernel(u, files.installed); err != nil {
			return nil, nil, err
		}
	}
	kernel := files.installed
	switch {
	case o.image != "" || kernel != nil:
		if err = files.open(); err == nil {
			hashes, err = addImage(keys, files.image)
		}
		switch {
		case err == nil:
		case o.image != "":
			return nil, nil, imageHint(err)
		case len(o.certs) == 0 && !o.rings.given():
			return nil, nil, withHint(err, "name the kernel with --kernel IMAGE, or the certificates with --cert FILE")
		default:
			keys = kernel.rules()
			u.Note("warning: %v: only the certificates that are given count, by the rules of %s", err, keys.Kernel())
		}
	case len(o.certs) == 0 && !o.rings.given():
		return nil, nil, withHint(errors.New("no certificate to verify with"),
			"use --cert FILE, or --kernel IMAGE for those built into a kernel")
	}
	if o.rings.running {
		if err := runs(keys, o.image); err != nil {
			return nil, nil, withHint(err, "leave out --running to judge as the kernel of the image")
		}
	}
	if o.attributes {
		if err := keys.AcceptAttributes(); err != nil {
			return nil, nil, err
		}
	}
	for _, path := range o.certs {
		if err := keys.AddFile(path); err != nil {
			return nil, nil, hintFor(path, err)
		}
	}
	if err := o.rings.apply(u, keys, files, o.root); err != nil {
		return nil, nil, err
	}
	return keys, hashes, nil
}

// imageHint says what to do without a kernel image that can be read.
func imageHint(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), strings.Contains(err.Error(), "may be cut short"):
		return withHint(err, "the kernel image is broken: copy it again, or take it from its package")
	}
	return withHint(err, "name the certificates with --cert instead of --kernel")
}

// runningKernel is the kernel that runs, whose modules need not be those that are verified. It
// is nil if its files are not installed.
func (o *verifyOptions) runningKernel(u *ui, chosen *kernel) (*kernel, error) {
	if filepath.Clean(o.root) != "/" {
		return nil, usagef("--running asks this machine's kernel, and --root is for another system")
	}
	of := installedOptions{installed: running, root: "/"}
	found, err := of.kernel(nil)
	switch {
	case err != nil && o.image == "":
		u.Note("warning: %v: the built-in keys of the running kernel are not known", err)
	case err == nil && chosen != nil && chosen.Release != found.Release:
		return nil, usagef("--running asks kernel %s, and --installed chooses %s", found.Release, chosen.Release)
	}
	return found, nil
}

// known lists the certificates in the kernel's keyrings if the flags name some of them.
func (o *verifyOptions) known(keys *verify.Keyring) []jsonKey {
	if !o.rings.given() {
		return nil
	}
	return newJSONKeys(keys)
}

// trustedOf says what a keyring trusts: "a list of 23 hashes and 2 certificates".
func trustedOf(keys *verify.Keyring, hashes *hashlist.Embedded) string {
	certs := plural(keys.Len(), "certificate")
	switch {
	case hashes == nil:
		return certs
	case keys.HashesOnly():
		return hashes.String()
	}
	return hashes.String() + " and " + certs
}

func (o *verifyOptions) show(u *ui, r verify.Result) {
	switch {
	case u.JSON:
		u.Object(newJSONVerified(r))
	case r.Verdict != verify.Trusted:
		u.Result("%s", refusal(r))
		showSigners(u, r)
	case o.all && r.ByHash:
		u.Result("%s: trusted, built with the kernel", r.Name())
	case o.all:
		u.Result("%s: trusted, signed by %s", r.Name(), r.Signer)
		showSigners(u, r)
	}
	if !u.JSON {
		for _, warning := range r.Warnings {
			u.Note("warning: %s: %s", r.Name(), warning)
		}
	}
}

// showSigners lists the signers of a module that has several.
func showSigners(u *ui, r verify.Result) {
	if len(r.Signers) < 2 {
		return
	}
	for i, s := range r.Signers {
		name := s.Certificate
		switch {
		case name != "":
		case s.KeyID != "":
			name = "key id " + s.KeyID
		default:
			name = fmt.Sprintf("issuer %q serial %s", s.Issuer, s.Serial)
		}
		u.Result("  signer %d of %d: %s, %s with %s: %s", i+1, len(r.Signers), name, s.Algorithm, s.Hash, s.Verdict)
	}
}

// refusal describes a module that is not trusted in one line.
func refusal(r verify.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", r.Name(), r.Verdict)
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
		fmt.Fprintf(&b, "; the kernel logs %q", strings.Join(withoutNumbers(r.Dmesg), "; "))
	}
	b.WriteString(")")
	return b.String()
}

// withoutNumbers leaves out the place of a number in what the kernel logs, which stands as N: the
// number differs between kernels.
func withoutNumbers(lines []string) []string {
	short := make([]string, len(lines))
	for i, line := range lines {
		short[i] = strings.TrimSuffix(line, ": N")
	}
	return short
}

// verdictSentence sums up a run.
func verdictSentence(s verify.Summary, trusted string, took time.Duration) string {
	against := fmt.Sprintf("against %s in %s", trusted, seconds(took))
	if s.Modules == 0 {
		return "there is no module to verify " + against
	}
	if s.Linked > 0 {
		against = fmt.Sprintf("(%d over symbolic links) %s", s.Linked, against)
	}
	return fmt.Sprintf("verified %s %s: %s", plural(s.Modules, "module"), against, s)
}
