package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

// defaultHash is what the kernel's build uses when nobody chooses.
const defaultHash = "sha512"

type signOptions struct {
	keyOptions
	installedOptions
	treeOptions
	hash           string
	keyID          bool
	oneTime        bool
	keyType        string
	certOut        string
	detached       bool
	existing       string
	forceUntrusted bool
	debugOptions
}

func newSignCommand(u *ui) *cobra.Command {
	var o signOptions
	cmd := &cobra.Command{
		Use:   "sign {--key FILE | --one-time} {PATH... | --installed [KVER]}",
		Short: "Sign modules, or all modules of a tree",
		Long: `Sign signs kernel modules: files, and all of *.ko, *.ko.gz, *.ko.xz and *.ko.zst
below folders. What it appends is, byte for byte, what the kernel's sign-file
appends. Compressed modules are signed inside and compressed again.

A module is replaced whole or not at all, and keeps its mode, owner, times,
hard links and attributes. One bad module does not stop the others.

Symbolic links below a directory are not followed: sign counts them, and names the
modules behind them that it does not sign. Where --compress gives a module another
name, links to it in the tree get the new name, too.

With --one-time nothing has to be configured: a key is made, used and dropped,
and only its certificate is kept.

With --installed, the kernel must have the certificate built in. --force-untrusted
is for one that is enrolled by other means, as a key of the machine's owner; one
that no kernel loads is refused all the same.

What the installation of a kernel for a distribution takes can be done on the
way, in the one order that is right: old signature off, debug information out,
sign, compress.`,
		Example: `  modsign sign --key certs/signing_key.pem /tmp/stage/lib/modules
  modsign sign --one-time --output signed modules
  modsign sign --key mok.pem --cert mok.der --installed 6.12.0-1-amd64 --force-untrusted
  modsign sign --key key.pem --hash sha256 --detached --output sigs modules
  modsign sign --key key.pem --split-debug root/usr/lib/debug --compress xz root/lib/modules`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.keyOptions.addFlags(flags)
	flags.BoolVar(&o.oneTime, "one-time", false, "make a key, sign with it, and keep its certificate alone")
	flags.StringVar(&o.certOut, "cert-out", "", "with --one-time: write the certificate to `FILE` (DER; default: modsign-one-time.x509 in the output folder)")
	flags.StringVar(&o.keyType, "key-type", "", "with --one-time: the `TYPE` of key, as in keygen --type (default: rsa:4096)")
	o.installedOptions.addFlags(flags)
	o.addFlags(flags, u)
	flags.BoolVar(&o.forceUntrusted, "force-untrusted", false, "with --installed: sign although this certificate is not built into the kernel")
	return cmd
}

// addFlags adds what all commands have that sign trees.
func (o *signOptions) addFlags(flags *pflag.FlagSet, u *ui) {
	flags.StringVar(&o.hash, "hash", "", "`NAME` of the hash, as CONFIG_MODULE_SIG_HASH spells it (default: sha512, or what the kernel's configuration says)")
	flags.BoolVar(&o.keyID, "key-id", false, "name the certificate by its subject key identifier, as sign-file -k does")
	flags.StringVar(&o.existing, "existing", "replace", "`WHAT` to do with a module that is signed already: replace its signatures, skip it, or refuse it")
	flags.BoolVar(&o.detached, "detached", false, "write NAME.ko.p7s beside each module, and leave the module")
	o.debugOptions.addFlags(flags)
	o.treeOptions.addFlags(flags, u)
}

// run is the command. All that can be refused is refused before a key is loaded,
// and the key before anything is written.
func (o *signOptions) run(ctx context.Context, u *ui, args []string) error {
	if o.oneTime {
		hideFromStart(u)
	}
	options, err := o.options()
	if err != nil {
		return err
	}
	if options.Existing, err = sign.ParseExisting(o.existing); err != nil {
		return usagef("--existing: %v", err)
	}
	options.Detached = o.detached
	if err := o.check(args); err != nil {
		return err
	}
	source := sign.Source{Output: o.output, DryRun: o.dryRun}
	if err := o.debugOptions.apply(&source, &options); err != nil {
		return err
	}
	kernel, err := o.kernel(args)
	if err != nil {
		return err
	}
	source.Roots, source.Root = kernel.roots(args), kernel.rootDir()
	hashName, err := o.hashName(kernel)
	if err != nil {
		return err
	}
	hash, err := cms.HashByName(hashName)
	if err != nil {
		return usagef("--hash: %v", err)
	}

	pair, err := o.pair(ctx, u)
	if err != nil {
		return err
	}
	if kernel != nil {
		if err := refuseUnloadable(o.certFile(), pair.Certificate); err != nil {
			return err
		}
	}
	if kernel != nil && !o.forceUntrusted {
		if err := kernel.guard(pair.Certificate.Raw); err != nil {
			return err
		}
	}
	said := warnUnloadable(u, o.certFile(), pair.Certificate)
	signer, err := newSigner(pair, o.certFile(), hash, o.keyID)
	if err != nil {
		return err
	}
	tree, err := o.open(ctx, u, source)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := o.refuse(ctx, tree, options); err != nil {
		return err
	}
	w := work{ui: u, verb: "signing", options: options}
	w.how, w.said = signedWith(pair, hash), append(o.notes, said...)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	cert := oneTimeCert{chosen: o.certOut != "", wait: o.wait}
	defer cert.unlock()
	if o.oneTime && !o.dryRun {
		// Before the first module: whatever happens, what is signed can be verified.
		cert.path = o.certPath(source.Roots)
		w.cert = cert.path
		if _, err := os.Stat(w.cert); err == nil && options.Existing == sign.Skip {
			return withHint(fmt.Errorf("%s is the certificate of an earlier run, whose modules are to be skipped", w.cert),
				"choose another name with --cert-out, or sign all anew without --existing=skip")
		}
		u.beginAt(cert.path)
		if err := cert.write(ctx, pair); err != nil {
			return err
		}
	}
	err = w.do(ctx, func(options sign.Options) (sign.Summary, error) { return tree.Sign(ctx, signer, options) })
	if err == nil || errors.Is(err, exitStatus(exitSome)) {
		if kept := o.keptCerts(ctx, &cert, source.Roots); kept != nil {
			return kept
		}
		o.after(&w, &cert, kernel, source.Roots)
	}
	return err
}

// keptCerts removes the certificates of earlier runs that nothing needs any more.
func (o *signOptions) keptCerts(ctx context.Context, cert *oneTimeCert, roots []string) error {
	if o.detached || len(cert.kept) == 0 {
		return nil
	}
	if o.output != "" {
		roots = []string{o.output}
	}
	return cert.forget(ctx, roots)
}

// check refuses what makes no sense together.
func (o *signOptions) check(args []string) error {
	switch {
	case o.oneTime && o.key != "":
		return usagef("--one-time makes a key, and --key gives one: choose")
	case o.oneTime && (o.cert != "" || o.passphraseFile != ""):
		return usagef("--cert and --passphrase-file go with --key")
	case !o.oneTime && o.key == "":
		return usagef("no key: give --key FILE (modsign keygen makes one), or --one-time for one that is dropped after")
	case !o.oneTime && (o.certOut != "" || o.keyType != ""):
		return usagef("--cert-out and --key-type go with --one-time")
	case len(args) == 0 && o.installed == "":
		return usagef("nothing to sign: name modules or folders, or give --installed")
	case o.oneTime && o.installed != "" && isRoot(cmp.Or(o.root, "/")):
		return usagef("--one-time with --installed would leave this machine's own modules signed with a key that no kernel knows")
	case o.detached && (o.stripDebug || o.splitDebug != "" || o.compress != ""):
		return usagef("--detached leaves the modules as they are, and --strip-debug, --split-debug and --compress do not: choose")
	case o.forceUntrusted && o.installed == "":
		return usagef("--force-untrusted goes with --installed")
	}
	return nil
}

// isRoot reports whether a folder is the machine's own root folder.
func isRoot(dir string) bool {
	given, err1 := os.Stat(dir)
	root, err2 := os.Stat("/")
	return err1 == nil && err2 == nil && os.SameFile(given, root)
}

// hashName is the hash that was asked for, or what the kernel was configured
// with, or the default.
func (o *signOptions) hashName(kernel *kernel) (string, error) {
	if o.hash != "" || kernel == nil {
		return cmp.Or(o.hash, defaultHash), nil
	}
	name, err := kernel.hash()
	return cmp.Or(name, defaultHash), err
}

// pair loads the key, or makes the one-time key.
func (o *signOptions) pair(ctx context.Context, u *ui) (*keygen.Pair, error) {
	if !o.oneTime {
		return o.load(ctx, u)
	}
	algorithm, err := keygen.ParseAlgorithm(cmp.Or(o.keyType, keygen.RSA4096.String()))
	if err != nil {
		return nil, usagef("--key-type: %v", err)
	}
	keepSecrets()
	return keygen.Generate(algorithm, keygen.DefaultTemplate())
}

func (o *signOptions) certPath(roots []string) string {
	if o.certOut != "" {
		return o.certOut
	}
	return outputCert(o.output, roots, func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && info.IsDir()
	})
}

// after says what to do next.
func (o *signOptions) after(w *work, cert *oneTimeCert, kernel *kernel, roots []string) {
	u := w.ui
	if o.dryRun {
		return
	}
	if w.cert != "" {
		where := roots
		if o.output != "" {
			where = []string{o.output}
		}
		u.note("the key is gone; its certificate is %s", w.cert)
		for _, kept := range cert.kept {
			u.note("kept %s, the certificate of an earlier run: modules may still carry its signature", kept)
		}
		if !o.detached && w.summary.Signed > 0 {
			certs := ""
			for _, kept := range cert.kept {
				certs += " --cert " + quote(kept)
			}
			u.hint("modsign verify --cert %s%s %s", quote(w.cert), certs, quote(where...))
		}
	}
	if kernel != nil && !o.detached && o.output == "" {
		kernel.outdated(u, w.summary)
	}
}

// quote makes words for a shell.
func quote(words ...string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = word
		if word == "" || strings.ContainsFunc(word, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:@%^,~", r)
		}) {
			quoted[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// outputCert is where a one-time certificate goes when nobody says so: to the
// output folder, or into the folder whose modules are signed in place.
func outputCert(output string, roots []string, isDir func(string) bool) string {
	const name = "modsign-one-time.x509"
	switch {
	case output != "":
		return filepath.Join(output, name)
	case isDir(roots[0]):
		return filepath.Join(roots[0], name)
	}
	return filepath.Join(filepath.Dir(roots[0]), name)
}
