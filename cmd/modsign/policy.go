package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/sign/policy"
)

// policyFlag is --policy: the file that says what may be signed, or nothing.
type policyFlag string

func (p *policyFlag) addFlag(flags *pflag.FlagSet) {
	flags.Var(once{(*string)(p)}, "policy", "sign nothing unless the policy in `FILE` allows all of it")
}

// read reads the policy, with the hash list that it names. Without a policy it is nil.
func (p policyFlag) read() (*policy.Policy, error) {
	if p == "" {
		return nil, nil
	}
	text, err := readLimited(string(p))
	if err != nil {
		return nil, err
	}
	read, err := policy.Parse(string(p), bytes.NewReader(text))
	if err != nil {
		return nil, withHint(err, "docs/policy.md describes the lines of a policy; modsign sign --help has an example")
	}
	list := read.List()
	if list == "" {
		return read, nil
	}
	if !filepath.IsAbs(list) {
		list = filepath.Join(filepath.Dir(string(p)), list)
	}
	if text, err = readLimited(list); err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	hashes, err := hashlist.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", p, list, err)
	}
	sums := make([][sha256.Size]byte, len(hashes.Modules))
	for i, m := range hashes.Modules {
		sums[i] = m.Hash
	}
	return read, read.SetList(text, sums)
}

// checkManifest refuses a policy that asks what a manifest of digests with a hash does not
// tell.
func checkManifest(p *policy.Policy, hash crypto.Hash) error {
	if p == nil {
		return nil
	}
	err := p.CheckManifest(hash)
	if err == nil {
		return nil
	}
	hint := "modsign digest --policy asks it where the modules are; here, name a hash list, and take SHA-256 digests"
	if cms.IsMu(hash) {
		hint = "modsign digest --policy asks it where the modules are: digests for ML-DSA are in no hash list"
	}
	return &failure{code: exitRefused, err: fmt.Errorf("%w: nothing was signed", err), hint: hint}
}

// checkPolicy has a policy judge all modules that will be signed. The modules that it refuses
// are results.
func checkPolicy(
	ctx context.Context, u *ui, tree *sign.Tree, signer *sign.Signer, options sign.Options,
) error {
	named := 0
	options.Report = sign.Report{Progress: treeProgress(u, "checking"), Result: func(r sign.Result) {
		named++
		if u.JSON {
			u.Object(newJSONSigned(r))
		}
		u.Say("%s", describe(r.Path, r.Err))
	}}
	err := tree.CheckPolicy(ctx, signer, options)
	u.Progress(true, nil)
	return refusedBy(u, options.Policy, err, named)
}

// refusedBy says what a policy refuses, but for what has been said. Other errors stay as they
// are.
func refusedBy(u *ui, p *policy.Policy, err error, said int) error {
	refused, ok := errors.AsType[*sign.RefusedError](err)
	if p == nil || !ok {
		return err
	}
	if len(refused.Errs) == 1 && said == 0 {
		return &failure{code: exitRefused, err: fmt.Errorf("%w: nothing was signed", err)}
	}
	for _, err := range refused.Errs[said:] {
		u.Say("%s", err)
	}
	return &failure{code: exitRefused, err: fmt.Errorf("%s does not allow this: nothing was signed", p.Name())}
}
