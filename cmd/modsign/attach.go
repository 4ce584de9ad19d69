package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

type attachOptions struct {
	installedOptions
	treeOptions
	debugOptions   // of which compress alone
	cert           string
	signatures     string
	format         string
	keyID          bool
	existing       string
	forceUntrusted bool
}

// signatureFormats are how attach takes signatures; lines is a file, and the others
// are folders.
var signatureFormats = []string{"lines", "p7s", "debian", "raw"}

func newAttachCommand(u *ui) *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:   "attach --cert FILE {PATH... | --installed [KVER]} [--signatures FILE] < SIGNATURES",
		Short: "Put signatures on modules that were made elsewhere",
		Long: `Attach puts signatures on the modules that modsign digest has read. Before the
first module is written, all that can be checked is checked: that each signature
is by the certificate and good for its digest, that each module has a signature,
and that each signature has a module. A module that has changed since fails, and
is left as it is.

Paths are those that modsign digest was given. They may lie elsewhere now, and be
compressed or not: what counts is the way from there to the module.

Signatures come as --format says:
  - lines: what modsign sign-digests wrote, in a file or from stdin.
  - p7s: NAME.ko.p7s with a CMS message in DER, as sign-file -d and modsign sign
    --detached leave it, in the folder that --signatures names, or beside the
    modules.
  - debian: the folder has files.json, which says what was to be signed, and
    signatures/PACKAGE/PATH.sig with the messages.
  - raw: NAME.ko.sig with the bare RSA signature (PKCS #1 v1.5), as the signing
    server of the Open Build Service returns it, in a folder or beside the modules.

A module is replaced whole or not at all, as modsign sign does it.`,
		Example: `  modsign attach --cert signing_key.x509 /tmp/stage/lib/modules/6.12.0 < signatures
  modsign attach --cert cert.der --output signed --compress xz --signatures signatures stage
  modsign attach --cert cert.der --format p7s --signatures sigs modules
  modsign attach --cert cert.pem --format debian --signatures debian/sign debian/linux-image`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&o.cert, "cert", "c", "", "the certificate of the key, in `FILE` (PEM or DER)")
	flags.StringVarP(&o.signatures, "signatures", "s", "", "the signatures are in `FILE`, or below that folder (default: stdin, or beside the modules)")
	flags.StringVar(&o.format, "format", "lines", "`HOW` the signatures come: lines, p7s, debian or raw")
	flags.BoolVar(&o.keyID, "key-id", false, "with --format raw: name the certificate by its subject key identifier, as sign-file -k does")
	o.installedOptions.addFlags(flags)
	flags.StringVar(&o.existing, "existing", "replace", "`WHAT` to do with a module that is signed already: replace its signatures, skip it, or refuse it")
	flags.StringVar(&o.compress, "compress", "", "leave all modules in this `FORMAT`, as a kernel can load it: none, gz, xz or zst (default: each in its own)")
	o.treeOptions.addFlags(flags, u)
	flags.BoolVar(&o.forceUntrusted, "force-untrusted", false, "with --installed: attach although this certificate is not built into the kernel")
	return cmd
}

func (o *attachOptions) run(ctx context.Context, u *ui, args []string) error {
	options, err := o.options()
	if err != nil {
		return err
	}
	if options.Existing, err = sign.ParseExisting(o.existing); err != nil {
		return usagef("--existing: %v", err)
	}
	if err := o.check(args); err != nil {
		return err
	}
	source := sign.Source{Output: o.output, DryRun: o.dryRun}
	if err := o.apply(&source, &options); err != nil {
		return err
	}
	kernel, err := o.kernel(args)
	if err != nil {
		return err
	}
	source.Roots, source.Root = kernel.roots(args), kernel.rootDir()
	cert, err := oneCertificate(o.cert)
	if err != nil {
		return err
	}
	if kernel != nil {
		if err := refuseUnloadable(o.cert, cert); err != nil {
			return err
		}
	}
	if kernel != nil && !o.forceUntrusted {
		if err := kernel.guard(cert.Raw); err != nil {
			return err
		}
	}
	said := warnUnloadable(u, o.cert, cert)
	var attachment *sign.Attachment
	if o.format == "lines" { // which need no tree to be checked
		signatures, err := readSignatures(u, o.signatures)
		if err != nil {
			return err
		}
		if attachment, err = sign.NewAttachment(ctx, cert, signatures); err != nil {
			return refused(u, err)
		}
	}
	tree, err := o.open(ctx, u, source)
	if err != nil {
		return err
	}
	defer tree.Close()
	if attachment == nil {
		signatures, err := o.find(ctx, u, tree, cert)
		if err != nil {
			return refused(u, err)
		}
		if attachment, err = sign.NewAttachment(ctx, cert, signatures); err != nil {
			return refused(u, err)
		}
	}
	if err := tree.Fits(attachment); err != nil {
		return refused(u, err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	w := work{ui: u, verb: "signing", options: options, said: said}
	w.how = signedWith(&keygen.Pair{Certificate: cert}, attachment.Hash())
	err = w.do(ctx, func(options sign.Options) (sign.Summary, error) { return tree.Attach(ctx, attachment, options) })
	if kernel != nil && !o.dryRun && o.output == "" {
		kernel.outdated(u, w.summary)
	}
	return err
}

// check refuses what makes no sense together.
func (o *attachOptions) check(args []string) error {
	switch {
	case o.cert == "":
		return usagef("no certificate: give --cert FILE, that of the key which signed")
	case !slices.Contains(signatureFormats, o.format):
		return usagef("--format %s: it is one of %s", o.format, strings.Join(signatureFormats, ", "))
	case len(args) == 0 && o.installed == "":
		return usagef("nothing to attach to: name modules or folders, or give --installed")
	case o.format == "debian" && o.signatures == "":
		return usagef("--format debian needs --signatures DIR, the folder with files.json")
	case o.keyID && o.format != "raw":
		return usagef("--key-id goes with --format raw: other signatures name the certificate already")
	case o.forceUntrusted && o.installed == "":
		return usagef("--force-untrusted goes with --installed")
	}
	return nil
}

// find reads the signatures that lie in files.
func (o *attachOptions) find(ctx context.Context, u *ui, tree *sign.Tree, cert *x509.Certificate) (sign.Signatures, error) {
	from := sign.FoundSignatures{Dir: o.signatures, UseKeyID: o.keyID, Note: func(note string) { u.note("%s", note) }}
	switch o.format {
	case "p7s":
		from.Layout = sign.P7S
	case "debian":
		from.Layout = sign.Debian
	case "raw":
		from.Layout = sign.Raw
	}
	return digests(ctx, u, tree, func(options sign.Options) (sign.Signatures, error) {
		options.Jobs, options.MaxSize = o.jobs, int64(o.maxSize)
		return tree.FindSignatures(ctx, cert, from, options)
	})
}

func readSignatures(u *ui, file string) (sign.Signatures, error) {
	in, name, err := openInput(u, file, "signatures")
	if err != nil {
		return nil, err
	}
	defer in.Close()
	s, err := sign.ReadSignatures(in)
	if err != nil {
		return nil, withHint(fmt.Errorf("%s: %w", name, err), "nothing is attached: have modsign sign-digests write it anew")
	}
	return s, nil
}

// oneCertificate reads the certificate of a key.
func oneCertificate(path string) (*x509.Certificate, error) {
	certs, err := keygen.LoadCertificates(path)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("%s: %d certificates, and the one of the key which signed is wanted", path, len(certs))
	}
	return certs[0], nil
}

// refused names all that is refused, where that is more than one thing.
func refused(u *ui, err error) error {
	r, ok := errors.AsType[*sign.RefusedError](err)
	if !ok || len(r.Errs) == 1 || u.json {
		return err
	}
	const most = 20
	for _, err := range r.Errs[:min(len(r.Errs), most)] {
		u.say("%s", err)
	}
	more := ""
	if left := len(r.Errs) - most; left > 0 {
		more = fmt.Sprintf(" (%d are not shown)", left)
	}
	return fmt.Errorf("%d signatures or modules are refused%s: nothing was written", len(r.Errs), more)
}
