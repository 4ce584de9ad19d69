package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/sign/manifest"
)

type signDigestsOptions struct {
	keyOptions
	keyID  bool
	hash   hashFlag
	attrs  bool
	output string
	jobs   jobsFlag
	policy policyFlag
	audit  auditFlag
}

func newSignDigestsCommand(u *ui) *cobra.Command {
	var o signDigestsOptions
	cmd := &cobra.Command{
		Use:   "sign-digests --key FILE [MANIFEST] > SIGNATURES",
		Short: "Sign the digests of modules, without the modules",
		Long: `Sign-digests runs where the key is. It reads a manifest that modsign digest wrote, from
a file or from stdin, and writes the signatures for modsign attach. It never sees a
module and signs whatever digests the manifest holds: accept manifests only from a sender
that you trust, or under a --policy (docs/policy.md). With a hash list in it, sign-digests
signs known modules alone. --audit FILE gets a line of JSON for each signature.

A key of ML-DSA signs digests that modsign digest --cert took for it, or with --mldsa-attrs
those of sha512.

It checks the whole manifest before it reads the key, and rejects one that is cut off,
or in which a line is missing, doubled, moved or changed.`,
		Example: `  modsign sign-digests --key signing_key.pem manifest > signatures
  ssh builder modsign digest stage | modsign sign-digests -k key.pem -o signatures`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.keyOptions.addFlags(flags)
	addKeyID(flags, &o.keyID)
	o.hash.addFlag(flags)
	flags.Lookup("hash").Usage = "`NAME` of the hash that ML-DSA signatures name (default: sha512)"
	addAttributes(flags, &o.attrs)
	o.addRSA(flags)
	o.policy.addFlag(flags)
	o.audit.addFlag(flags)
	addOutputFile(flags, &o.output, "the signatures")
	addQuiet(flags, u)
	o.jobs.addFlag(flags)
	return cmd
}

func (o *signDigestsOptions) run(ctx context.Context, u *ui, args []string) (err error) {
	switch {
	case o.key == "":
		return usagef("no key: give --key FILE")
	case len(args) > 1:
		return usagef("more than one manifest: unexpected argument %q", args[1])
	}
	if err := o.jobs.check(); err != nil {
		return err
	}
	file := append(args, "")[0]
	if err := checkOutput("--output", o.output, file, o.key, o.cert, o.passphraseFile); err != nil {
		return err
	}
	others := []string{file, o.key, o.cert, o.passphraseFile, string(o.policy), o.output}
	if err := checkOutput("--audit", string(o.audit), others...); err != nil {
		return err
	}
	policy, err := o.policy.read()
	if err != nil {
		return err
	}
	m, err := readManifest(u, file)
	if err != nil {
		return err
	}
	hash := m[0].Hash
	if err := checkManifest(policy, hash); err != nil {
		return err
	}
	log, err := o.audit.open()
	if err != nil {
		return err
	}
	defer log.Close()
	pair, err := o.load(ctx, u)
	if err != nil {
		return err
	}
	recordIn(log, pair)
	defer closeKey(pair, &err)
	warnUnloadable(u, o.certFile(), pair.Certificate)
	options := sign.SignerOptions{Hash: hash, UseKeyID: o.keyID, Attributes: o.attrs}
	if cms.IsMu(hash) {
		if options.Hash, err = o.hash.or(crypto.SHA512); err != nil {
			return err
		}
	} else if o.hash != "" {
		return usagef("--hash goes with digests for a key of ML-DSA: these are %s", cms.HashName(hash))
	}
	signer, err := newSigner(pair, o.certFile(), options)
	if err != nil {
		return err
	}
	start := time.Now()
	progress := func(done, total int) {
		u.Progress(false, func() string { return fmt.Sprintf("signing %d of %d digests", done, total) })
	}
	if signer.Hash() != hash && keyed(signer.Hash(), hash) {
		hint := "modsign digest --cert FILE takes those for the key of a certificate"
		if !cms.IsMu(signer.Hash()) {
			hint = "modsign digest without --cert takes those"
		}
		return withHint(fmt.Errorf("%s: its digests are %s, and the key signs %s", cmp.Or(file, "stdin"), cms.HashName(hash),
			cms.HashName(signer.Hash())), "%s", hint)
	}
	if of, err := sign.HashOf(pair.Certificate, options); err == nil && !bytes.Equal(m[0].Key, cms.KeyOf(of)) {
		return withHint(fmt.Errorf("%s: its digests are for another key of the same kind", cmp.Or(file, "stdin")),
			"modsign digest --cert FILE takes those for the key of a certificate")
	}
	signatures, err := signer.SignManifest(ctx, m, sign.SignManifestOptions{
		Jobs: int(o.jobs), Progress: progress, Policy: policy,
	})
	u.Progress(true, nil)
	if err != nil {
		return refusedBy(u, policy, err, 0)
	}
	if err := writeResult(u, o.output, signatures); err != nil {
		return err
	}
	u.Note("signed %s%s, in %s", plural(len(signatures), "digest"), signedWith(pair.Certificate, hash),
		seconds(time.Since(start)))
	return nil
}

// keyed reports whether one of two digests depends on the key.
func keyed(a, b crypto.Hash) bool { return cms.IsMu(a) || cms.IsMu(b) }

func readManifest(u *ui, file string) (manifest.Manifest, error) {
	in, name, err := openInput(u, file, "manifest")
	if err != nil {
		return nil, err
	}
	defer in.Close()
	m, err := manifest.Read(in)
	if err != nil {
		return nil, withHint(fmt.Errorf("%s: %w", name, err), "nothing was signed: write the manifest again with modsign digest")
	}
	return m, nil
}
