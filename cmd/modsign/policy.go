package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/sign/policy"
)

// policyFlag is --policy: the file that says what may be signed, or nothing.
type policyFlag string

func (p *policyFlag) addFlag(flags *pflag.FlagSet) {
	flags.StringVar((*string)(p), "policy", "", "sign nothing unless the policy in `FILE` allows all of it")
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

// refusedBy says what a policy refuses. Other errors stay as they are.
func refusedBy(u *ui, p *policy.Policy, err error) error {
	refused, ok := errors.AsType[*sign.RefusedError](err)
	if p == nil || !ok {
		return err
	}
	f := &failure{code: exitRefused, err: fmt.Errorf("%w: nothing was signed", err)}
	if n := len(refused.Errs); n > 1 {
		for _, err := range refused.Errs {
			u.Say("%s", err)
		}
		if !u.JSON {
			f.err = fmt.Errorf("refused %d times by %s: nothing was signed", n, p.Name())
		}
	}
	return f
}
