package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/sign"
)

type signDigestsOptions struct {
	keyOptions
	keyID  bool
	output string
	jobs   int
}

func newSignDigestsCommand(u *ui) *cobra.Command {
	var o signDigestsOptions
	cmd := &cobra.Command{
		Use:   "sign-digests --key FILE [MANIFEST] > SIGNATURES",
		Short: "Sign what modsign digest wrote, without the modules",
		Long: `Sign-digests runs where the key is. It reads a manifest, from a file or from
stdin, and writes the signatures of all modules in it, which modsign attach takes.
It never sees a module: it signs the digests that the manifest says, and who
sends the manifest has to be trusted with that.

All of the manifest is checked before the key is read. One that is cut off, or
of which a line is missing, doubled, moved or changed, is refused.`,
		Example: `  modsign sign-digests --key signing_key.pem manifest > signatures
  ssh builder modsign digest stage | modsign sign-digests -k key.pem -o signatures`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.keyOptions.addFlags(flags)
	flags.BoolVar(&o.keyID, "key-id", false, "name the certificate by its subject key identifier, as sign-file -k does")
	flags.StringVarP(&o.output, "output", "o", "", "write the signatures to `FILE` instead of stdout")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but errors")
	flags.IntVarP(&o.jobs, "jobs", "j", 0, "signatures made at once, `N` (default: twice the number of processors)")
	return cmd
}

func (o *signDigestsOptions) run(ctx context.Context, u *ui, args []string) error {
	switch {
	case o.jobs < 0:
		return usagef("--jobs is %d, and has to be a number of signatures", o.jobs)
	case o.key == "":
		return usagef("no key: give --key FILE")
	case len(args) > 1:
		return usagef("one manifest at a time: %q is a second", args[1])
	}
	m, err := readManifest(u, append(args, "")[0])
	if err != nil {
		return err
	}
	pair, err := o.load(ctx, u)
	if err != nil {
		return err
	}
	warnUnloadable(u, o.certFile(), pair.Certificate)
	hash := m[0].Hash
	signer, err := newSigner(pair, o.certFile(), hash, o.keyID)
	if err != nil {
		return err
	}
	start := time.Now()
	signatures, err := m.Sign(ctx, signer, sign.Options{Jobs: o.jobs, Report: sign.Report{Progress: func(done, total sign.Count) {
		u.progress(false, func() string { return fmt.Sprintf("signing %d of %d digests", done.Modules, total.Modules) })
	}}})
	u.progress(true, nil)
	if err != nil {
		return err
	}
	if err := writeResult(u, o.output, signatures); err != nil {
		return err
	}
	u.note("signed %s%s, in %s", plural(len(signatures), "digest"), signedWith(pair, hash), seconds(time.Since(start)))
	return nil
}

func readManifest(u *ui, file string) (sign.Manifest, error) {
	in, name, err := openInput(u, file, "manifest")
	if err != nil {
		return nil, err
	}
	defer in.Close()
	m, err := sign.ReadManifest(in)
	if err != nil {
		return nil, withHint(fmt.Errorf("%s: %w", name, err), "nothing is signed: have modsign digest write it anew")
	}
	return m, nil
}
