package main

import (
	"cmp"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/kernelimage"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/verify"
)

type kernelAddCertOptions struct {
	cert string
	kernelimage.Options
}

func newKernelAddCertCommand(u *ui) *cobra.Command {
	var o kernelAddCertOptions
	cmd := &cobra.Command{
		Use:   "add-cert IMAGE --cert FILE",
		Short: "Add a certificate to those that a kernel image trusts",
		Long: `Add-cert puts a certificate into the room that a kernel with
CONFIG_SYSTEM_EXTRA_CERTIFICATE keeps for it. The kernel then loads modules that the key
of the certificate has signed, as those of its own key. IMAGE is a vmlinux, an Image of
arm64, RISC-V or LoongArch, or an x86 bzImage. Other images are made around one of these:
take it out, add the certificate, and make the image again.

The room is found by the symbols of a vmlinux or by --system-map, else by a search, which
finds it if it has the default size or is in use. A certificate that is there stays, unless
--replace is given, as with the kernel's scripts/insert-sys-cert.

The kernel in a bzImage is compressed anew and has to fit in its old place. For gzip, the
program libdeflate-gzip makes the room, and for xz the program xz makes some. There is
none with zstd and other compressions: add the certificate to the vmlinux of the build,
and run make bzImage there.

A signature for Secure Boot does not match the changed image. Add-cert refuses such an
image, or removes the signature with --drop-signature. It signs nothing: use sbsign. The
old file is replaced as a whole, or stays as it is. A symbolic link is followed, for IMAGE
and for --output; another hard link of IMAGE keeps the old kernel, with a warning.`,
		Example: `  modsign kernel add-cert vmlinux --cert signing_key.x509
  modsign kernel add-cert /boot/vmlinuz-6.12.0 --cert key.pem --output vmlinuz.new
  sbsign --key db.key --cert db.pem --output vmlinuz.signed vmlinuz.new`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&o.cert, "cert", "c", "", "add the certificate in `FILE`, PEM or DER")
	flags.StringVarP(&o.Output, "output", "o", "", "write the new image to `FILE` (default: replace IMAGE)")
	flags.StringVar(&o.SystemMap, "system-map", "", "find the room by the System.map in `FILE`")
	flags.BoolVar(&o.Replace, "replace", false, "remove the certificates that were added before")
	flags.BoolVar(&o.DropSignature, "drop-signature", false, "remove the image's signature for Secure Boot")
	addQuiet(flags, u)
	return cmd
}

func (o *kernelAddCertOptions) run(ctx context.Context, u *ui, args []string) error {
	switch {
	case len(args) == 0:
		return usagef("no kernel image given")
	case len(args) > 1:
		return usagef("unexpected argument %q", args[1])
	case o.cert == "":
		return usagef("no certificate given: use --cert FILE")
	}
	image := args[0]
	if err := checkOutput("--output", o.Output, image, o.cert, o.SystemMap); err != nil {
		return err
	}
	certs, err := keygen.LoadCertificates(o.cert)
	if err != nil {
		return err
	}
	if len(certs) > 1 {
		return fmt.Errorf("%s holds %d certificates: name a file with one", o.cert, len(certs))
	}
	// An image without a certificate does not tell the rules that it has for them.
	keys := new(verify.Keyring)
	if err := keys.AddImage(image); err != nil {
		keys = new(verify.Keyring)
	}
	if err := keys.Loads(certs[0]); err != nil {
		return fmt.Errorf("%s: the kernel would not trust the certificate: %w", o.cert, err)
	}
	u.Begin()
	added, err := kernelimage.AddCertificate(ctx, image, certs[0], o.Options)
	if err != nil {
		return o.explain(image, err)
	}
	target := cmp.Or(o.Output, image)
	if !added.Changed {
		u.Note("%s has the certificate already; nothing is written", image)
		if o.Output != "" {
			return fmt.Errorf("%s is not written: %s has the certificate already", o.Output, image)
		}
		return nil
	}
	if len(added.Removed) > 0 {
		u.Note("removed %d bytes of certificates that were added before", len(added.Removed))
	}
	u.Note("%s (%s) now trusts the certificate; %d of %d bytes for such are in use", target, added.Packing, added.Used,
		added.Room)
	if added.Links > 0 {
		u.Say("warning: %s: not changed under %s of the file: hard links keep the old image", target,
			plural(added.Links, "other name"))
	}
	if added.Dropped {
		u.Note("%s is no longer signed for Secure Boot: sign it with sbsign", target)
	}
	return nil
}

// explain adds what to do.
func (o *kernelAddCertOptions) explain(image string, err error) error {
	none, _ := errors.AsType[*kernelimage.NoReserveError](err)
	switch {
	case none != nil && !slices.Contains([]elf.Machine{elf.EM_X86_64, elf.EM_386, elf.EM_AARCH64}, none.Machine):
		return err // there is no shim for it
	case none != nil:
		return withHint(err, "mokutil --import FILE, with the certificate in DER, makes a machine with shim trust it")
	case errors.Is(err, kernelimage.ErrSigned):
		return withHint(err, "use --drop-signature, and sign the new image with sbsign")
	case errors.Is(err, kernelimage.ErrNoRoom):
		return withHint(err, "in the kernel's build tree: modsign kernel add-cert vmlinux --cert %s && make bzImage",
			shell.Quote(o.cert))
	case errors.Is(err, kernelimage.ErrWrapped):
		return withHint(err, "take the kernel out of %s, add the certificate to it, and make the image again", shell.Quote(image))
	}
	return err
}
