package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/sign/manifest"
)

type attachOptions struct {
	signingOptions
	cert       string
	signatures string
	format     string
	keyID      bool
}

// signatureFormats are how attach takes signatures; lines is a file, the others are the
// layouts of directories.
var signatureFormats = []string{"lines", sign.P7S.String(), sign.Debian.String(), sign.Raw.String()}

func newAttachCommand(u *ui) *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:   "attach --cert FILE {PATH... | --installed [KVER]} [--signatures FILE] < SIGNATURES",
		Short: "Append signatures that were made elsewhere",
		Long: `Attach appends signatures to the modules that modsign digest has read. Before it writes
the first module, it checks that each signature is by the key of the certificate and
valid for its digest, that each module has a signature, and that each signature has a
module. A module that has changed since then fails and stays as it is.

Paths are relative to the directories that were given to modsign digest. The modules may
lie elsewhere now, compressed or not.

--format names the form of the signatures:
  - lines: the output of modsign sign-digests, in a file or from stdin.
  - p7s: NAME.ko.p7s with a CMS message in DER, as sign-file -d and modsign sign
    --detached write it, in the directory --signatures or beside the modules.
  - debian: a directory with files.json, which lists what was to be signed, and
    messages in signatures/PACKAGE/PATH.sig.
  - raw: NAME.ko.sig with the bare signature: RSA (PKCS #1 v1.5), as the signing
    server of the Open Build Service returns it, or ML-DSA. In the directory
    --signatures or beside the modules.

Attach replaces a module whole or not at all, as modsign sign does.`,
		Example: `  modsign attach --cert signing_key.x509 /tmp/stage/lib/modules/6.12.0 < signatures
  modsign attach --cert cert.der --output signed --compress xz --signatures signatures stage
  modsign attach --cert cert.der --format p7s --signatures sigs modules
  modsign attach --cert cert.pem --format debian --signatures debian/sign debian/linux-image`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&o.cert, "cert", "c", "", "certificate of the key, in `FILE` (PEM or DER)")
	flags.StringVarP(&o.signatures, "signatures", "s", "", "`FILE` or directory with the signatures (default: stdin)")
	addChoice(flags, &o.format, "format", "lines", "`FORMAT` of signatures: lines (default), p7s, debian or raw")
	flags.BoolVar(&o.keyID, "key-id", false, "with --format raw: name the certificate by key identifier")
	o.installedOptions.addFlags(flags)
	o.existing.addFlag(flags)
	o.compress.addFlag(flags)
	o.treeOptions.addFlags(flags, u)
	o.addForceUntrusted(flags)
	return cmd
}

// check refuses what makes no sense together.
func (o *attachOptions) check(args []string) error {
	switch {
	case o.cert == "":
		return usagef("no certificate: give --cert FILE, that of the signing key")
	case !slices.Contains(signatureFormats, o.format):
		return usagef("--format: invalid value %q: want lines, p7s, debian or raw", o.format)
	case o.format == "debian" && o.signatures == "":
		return usagef("--format debian needs --signatures DIR, the directory with files.json")
	case o.keyID && o.format != "raw":
		return usagef("--key-id goes with --format raw: other signatures name the certificate already")
	}
	return o.installedOptions.check("attach to", args)
}

func (o *attachOptions) run(ctx context.Context, u *ui, args []string) error {
	if err := o.check(args); err != nil {
		return err
	}
	p, err := o.plan(args)
	if err != nil {
		return err
	}
	cert, err := oneCertificate(o.cert)
	if err != nil {
		return err
	}
	said, err := p.kernel.accept(u, o.cert, cert, o.forceUntrusted)
	if err != nil {
		return err
	}
	var attachment *sign.Attachment
	if o.format == "lines" { // which can be checked without the tree
		if attachment, err = o.fromLines(ctx, u, cert); err != nil {
			return err
		}
	}
	tree, err := openTree(ctx, u, p.source, o.wait)
	if err != nil {
		return err
	}
	defer tree.Close()
	if attachment == nil {
		if attachment, err = o.fromFiles(ctx, u, tree, cert); err != nil {
			return err
		}
	}
	if err := tree.CheckComplete(attachment); err != nil {
		return refused(u, err)
	}
	if err := p.kernel.reads(attachment.Message()); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	w := work{
		ui: u, verb: "signing", options: p.options, said: said, how: signedWith(cert, attachment.Hash()), xattr: true,
		inPlace: p.source.Output == "",
	}
	err = w.do(ctx, func(options sign.Options) (sign.Summary, error) {
		attach := sign.AttachOptions{WriteOptions: options.WriteOptions, Existing: options.Existing}
		return tree.Attach(ctx, attachment, attach)
	})
	p.kernel.outdated(u, p.source, w.summary)
	return err
}

// fromLines reads and checks the signatures in a file of modsign sign-digests.
func (o *attachOptions) fromLines(ctx context.Context, u *ui, cert *x509.Certificate) (*sign.Attachment, error) {
	in, name, err := openInput(u, o.signatures, "signatures")
	if err != nil {
		return nil, err
	}
	defer in.Close()
	s, err := manifest.ReadSignatures(in)
	if err != nil {
		return nil, withHint(fmt.Errorf("%s: %w", name, err),
			"nothing was attached: write the signatures again with modsign sign-digests")
	}
	attachment, err := sign.NewAttachment(ctx, cert, s)
	return attachment, refused(u, o.about(name, err))
}

// about names the file of the signatures, or the certificate's, in an error that is about no
// module.
func (o *attachOptions) about(file string, err error) error {
	if _, ok := errors.AsType[*sign.RefusedError](err); ok || err == nil {
		return err
	}
	return fmt.Errorf("%s, with the certificate in %s: %w", file, o.cert, err)
}

// fromFiles reads and checks the signatures that lie in files.
func (o *attachOptions) fromFiles(
	ctx context.Context, u *ui, tree *sign.Tree, cert *x509.Certificate,
) (*sign.Attachment, error) {
	layout, err := sign.ParseLayout(o.format)
	if err != nil {
		return nil, err
	}
	from := sign.FoundSignatures{Layout: layout, Dir: o.signatures, UseKeyID: o.keyID}
	from.Note = func(note string) { u.Note("%s", note) }
	options := sign.ReadOptions{Jobs: int(o.jobs), MaxSize: int64(o.maxSize)}
	s, err := readTree(u, tree, options, func(options sign.ReadOptions) (manifest.Signatures, error) {
		return tree.FindSignatures(ctx, cert, from, options)
	})
	if err != nil {
		return nil, refused(u, o.about(cmp.Or(o.signatures, "the signatures"), err))
	}
	attachment, err := sign.NewAttachment(ctx, cert, s)
	return attachment, refused(u, o.about(cmp.Or(o.signatures, "the signatures"), err))
}

// oneCertificate reads a file with one certificate.
func oneCertificate(path string) (*x509.Certificate, error) {
	certs, err := keygen.LoadCertificates(path)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("%s: %d certificates, want only that of the signing key", path, len(certs))
	}
	return certs[0], nil
}

// refused names all that a RefusedError names, if that is more than one thing.
func refused(u *ui, err error) error {
	r, ok := errors.AsType[*sign.RefusedError](err)
	if !ok || len(r.Errs) == 1 || u.JSON {
		return err
	}
	const most = 20
	for _, err := range r.Errs[:min(len(r.Errs), most)] {
		u.Say("%s", err)
	}
	more := ""
	if left := len(r.Errs) - most; left > 0 {
		more = fmt.Sprintf(" (%d not shown)", left)
	}
	return fmt.Errorf("%d signatures or modules refused%s: nothing was written", len(r.Errs), more)
}
