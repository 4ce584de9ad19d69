package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/sign/manifest"
	"github.com/modsign/modsign/sign/policy"
)

type digestOptions struct {
	installedOptions
	cert    string
	hash    hashFlag
	output  string
	jobs    jobsFlag
	maxSize size
	policy  policyFlag
}

func newDigestCommand(u *ui) *cobra.Command {
	var o digestOptions
	cmd := &cobra.Command{
		Use:   "digest {PATH... | --installed [KVER]} > MANIFEST",
		Short: "Write the digests of modules, to sign them where the key is",
		Long: `Digest is the first of three steps for a key on another machine. It writes a manifest,
one line per module with its path, size and digest, and changes nothing. Only the
manifest has to leave the machine with the modules:

  modsign digest TREE > manifest                               here
  modsign sign-digests --key KEY < manifest > signatures       where the key is
  modsign attach --cert CERT TREE < signatures                 here

With an RSA or ML-DSA key the result is, byte for byte, that of modsign sign. The digest
of a module that is already signed is that of the module without its signatures.

What a key of ML-DSA signs depends on the key: name its certificate with --cert.

If a module cannot be read, or a --policy refuses it, digest writes no manifest. Strip
modules before this step.`,
		Example: `  modsign digest /tmp/stage/lib/modules/6.12.0 > manifest
  modsign digest --installed 6.12.0-1-amd64 --output manifest
  modsign digest --cert mldsa.x509 TREE > manifest`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.installedOptions.addFlags(flags)
	flags.StringVarP(&o.cert, "cert", "c", "", "certificate `FILE` of the key: needed for ML-DSA")
	o.hash.addFlag(flags)
	o.policy.addFlag(flags)
	flags.Lookup("policy").Usage = "write nothing unless the policy in `FILE` allows all of it"
	addOutputFile(flags, &o.output, "the manifest")
	addQuiet(flags, u)
	o.jobs.addFlag(flags)
	addMaxSize(flags, &o.maxSize)
	return cmd
}

func (o *digestOptions) run(ctx context.Context, u *ui, args []string) error {
	if err := o.jobs.check(); err != nil {
		return err
	}
	if err := o.check("digest", args); err != nil {
		return err
	}
	if err := checkOutput("--output", o.output, append(args, o.cert, string(o.policy))...); err != nil {
		return err
	}
	if err := refusePackages(args); err != nil {
		return err
	}
	policy, err := o.policy.read()
	if err != nil {
		return err
	}
	kernel, err := o.kernel(args)
	if err != nil {
		return err
	}
	hash, err := o.digestHash(u, kernel)
	if err != nil {
		return err
	}
	// Nothing is written, so that nothing has to be locked either: a module that
	// changes meanwhile fails.
	tree, err := sign.Open(ctx, sign.Source{Roots: kernel.roots(args), Root: kernel.rootDir(), DryRun: true})
	if err != nil {
		return err
	}
	defer tree.Close()
	start := time.Now()
	m, err := o.digest(ctx, u, tree, hash, policy)
	if err != nil {
		return refusedBy(u, policy, err, 0)
	}
	if err := writeResult(u, o.output, m); err != nil {
		return err
	}
	var bytes int64
	for _, d := range m {
		bytes += d.Size
	}
	u.Note("took the %s digests of %s (%s), in %s", cms.HashName(hash.HashFunc()), plural(len(m), "module"),
		megabytes(bytes), seconds(time.Since(start)))
	for _, note := range linkNotes(tree.Links(), "read") {
		u.Note("%s", note)
	}
	return nil
}

// digestHash is what to take of each module.
func (o *digestOptions) digestHash(u *ui, kernel *kernel) (sign.Hash, error) {
	hash, err := o.hash.ofKernel(kernel)
	if err != nil || o.cert == "" {
		return hash, err
	}
	cert, err := oneCertificate(o.cert)
	if err != nil {
		return nil, err
	}
	warnUnloadable(u, o.cert, cert)
	of, err := sign.HashOf(cert, sign.SignerOptions{Hash: hash})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.cert, err)
	}
	return of, nil
}

func (o *digestOptions) digest(
	ctx context.Context, u *ui, tree *sign.Tree, hash sign.Hash, policy *policy.Policy,
) (manifest.Manifest, error) {
	options := sign.ReadOptions{Jobs: int(o.jobs), MaxSize: int64(o.maxSize), Policy: policy}
	return readTree(u, tree, options, func(options sign.ReadOptions) (manifest.Manifest, error) {
		return tree.Manifest(ctx, hash, options)
	})
}
