package sign

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/sign/manifest"
	"github.com/modsign/modsign/sign/policy"
)

// Manifest reads every module, as Digest does, and returns what is to be signed. If a
// module fails, there is no manifest, and the error wraps [ErrIncomplete]: otherwise the
// missing module would be noticed only after signing, when the signatures are attached.
// Two modules with the same path in their trees are an error too.
func (t *Tree) Manifest(ctx context.Context, hash Hash, opts ReadOptions) (manifest.Manifest, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	if _, err := t.names(); err != nil {
		return nil, err
	}
	m := make(manifest.Manifest, 0, len(t.entries))
	key := cms.KeyOf(hash)
	report := opts.Report.Result
	opts.Report.Result = func(r Result) {
		if r.Err == nil {
			m = append(m, manifest.Digest{Path: r.Name, Size: r.Payload, Hash: hash.HashFunc(), Sum: r.Digest, Key: key})
		}
		if report != nil {
			report(r)
		}
	}
	if _, err := t.Digest(ctx, hash, opts); err != nil {
		return nil, err
	}
	slices.SortFunc(m, func(a, b manifest.Digest) int { return strings.Compare(a.Path, b.Path) })
	for _, d := range m {
		if err := d.Check(); err != nil {
			return nil, fmt.Errorf("path %q: %w", d.Path, err)
		}
	}
	return m, nil
}

// names finds the path of the file of each module of the tree.
func (t *Tree) names() (map[string]string, error) {
	names := make(map[string]string, len(t.entries))
	for _, e := range t.entries {
		name := module.BaseName(e.Rel)
		if other, ok := names[name]; ok {
			return nil, fmt.Errorf("%s and %s would both be called %s: give a common parent, or remove the outdated one",
				other, e.Path, name)
		}
		names[name] = e.Path
	}
	return names, nil
}

// SignManifestOptions are those of [Signer.SignManifest].
type SignManifestOptions struct {
	Jobs     int                   // signatures made at once; 0: twice the number of processors, and more for batches
	Progress func(done, total int) // called after each signature, one at a time; may be nil
	// Policy, if it is not nil, says which modules may be signed. A manifest has paths and
	// digests alone: a policy that needs the tags of modules, or their SHA-256 where the
	// digests are others, refuses them.
	Policy *policy.Policy
}

// SignManifest signs every digest of a manifest, and returns the signatures in its order.
// The digests have to be those of the Signer's hash. If a policy refuses one, the error is a
// [*RefusedError], and nothing was signed.
func (s *Signer) SignManifest(
	ctx context.Context, m manifest.Manifest, opts SignManifestOptions,
) (manifest.Signatures, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	switch {
	case opts.Jobs < 0:
		return nil, fmt.Errorf("negative Options.Jobs: %d", opts.Jobs)
	case len(m) == 0:
		return nil, errors.New("no module to sign")
	case len(s.cms) > 1:
		return nil, errors.New("a manifest is signed by one signer: NewAttachment refuses signatures of several")
	}
	if err := s.checkManifest(m, opts.Policy); err != nil {
		return nil, err
	}
	signed := make(manifest.Signatures, len(m))
	var mu sync.Mutex
	done := 0
	key := cms.KeyOf(s.hashes[0])
	err := batch.Each(ctx, len(m), s.jobs(opts.Jobs), func(i int) error {
		if !bytes.Equal(m[i].Key, key) && m[i].Hash == s.hashes[0].HashFunc() {
			return fmt.Errorf("%s: %w", m[i].Path, errOtherKey)
		}
		message, err := s.signLine(&m[i])
		if err != nil {
			return fmt.Errorf("%s: %w", m[i].Path, err)
		}
		signed[i] = manifest.Signature{Digest: m[i], Message: message}
		if opts.Progress != nil {
			mu.Lock()
			defer mu.Unlock()
			done++
			opts.Progress(done, len(m))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return signed, nil
}

var errOtherKey = errors.New("its digest is mu for another key, which depends on the key: " +
	"take the digests with the certificate of this one")

func (s *Signer) signLine(d *manifest.Digest) ([]byte, error) {
	if hash := s.cms[0].Hash().HashFunc(); d.Hash != hash {
		return nil, fmt.Errorf("its digest is %s, and the signer is for %s", cms.HashName(d.Hash), cms.HashName(hash))
	}
	return s.signDigests(d.Path, d.Size, [][]byte{d.Sum})
}

// checkManifest has a policy judge a manifest.
func (s *Signer) checkManifest(m manifest.Manifest, p *policy.Policy) error {
	if p == nil {
		return nil
	}
	if err := p.CheckManifest(s.cms[0].Hash().HashFunc()); err != nil {
		return &RefusedError{Errs: []error{err}}
	}
	var refused []error
	if err := p.CheckRun(time.Now(), s.cms[0].Hash().HashFunc(), len(m)); err != nil {
		refused = append(refused, err)
	}
	for i := range m {
		known := policy.Module{Path: m[i].Path}
		if m[i].Hash == crypto.SHA256 {
			known.SHA256 = m[i].Sum
		}
		if err := p.Check(&known); err != nil {
			refused = append(refused, fmt.Errorf("%s: %w", m[i].Path, err))
		}
	}
	if len(refused) > 0 {
		return &RefusedError{Errs: refused}
	}
	return nil
}
