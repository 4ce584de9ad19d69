package agent

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
)

// ErrOtherKey reports a module without a good signature by the key of a receipt.
var ErrOtherKey = errors.New("module is not signed by the key of this receipt")

// ErrOtherModules reports that the key of a receipt signed other modules than those that
// were looked at: more of them, or the same in another form, such as unstripped.
var ErrOtherModules = errors.New("key signed other modules too, or these in another form")

// Digests is a set of digests that were signed.
type Digests map[string]struct{}

// Add adds a digest.
func (d Digests) Add(h crypto.Hash, digest []byte) {
	d[fmt.Sprintf("%s:%x\n", cms.HashName(h), digest)] = struct{}{}
}

// SHA256 returns the hexadecimal SHA-256 of the set: of one line for each digest,
// the name of the hash as CONFIG_MODULE_SIG_HASH has it, a colon, the digest in
// hexadecimal and a newline, such as "sha256:e3b0...b855\n"; the lines sorted by
// their bytes (LC_ALL=C sort -u). The digest of a module is that of its payload,
// decompressed and without signatures. For an ML-DSA key it is mu (FIPS 204), with the
// name mldsa44-mu, mldsa65-mu or mldsa87-mu; of the signed attributes, if the signature has
// such.
func (d Digests) SHA256() string {
	h := sha256.New()
	for _, line := range slices.Sorted(maps.Keys(d)) {
		io.WriteString(h, line)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// AddSigned checks the signature of a module, which is not compressed, with the
// certificate in the receipt, and adds the digest that it is over. The error is
// [ErrOtherKey] when the receipt's key did not sign the module.
func (r *Receipt) AddSigned(ctx context.Context, d Digests, m io.ReaderAt, size int64) error {
	cert, err := r.X509()
	if err != nil {
		return err
	}
	signer, err := cms.ParseCertificate(cert.Raw)
	if err != nil {
		return err
	}
	err = addSigned(ctx, d, m, size, signer)
	_, untrusted := errors.AsType[*cms.Error](err)
	_, malformed := errors.AsType[*module.FormatError](err)
	if untrusted || malformed || err == module.ErrNotSigned {
		return fmt.Errorf("%w: %w", ErrOtherKey, err)
	}
	return err
}

func addSigned(ctx context.Context, d Digests, m io.ReaderAt, size int64, signer *cms.Certificate) error {
	layer, err := module.Check(m, size, module.TypePKCS7)
	if err != nil {
		return err
	}
	signature, err := layer.Signature(m)
	if err != nil {
		return err
	}
	message, err := cms.Parse(signature)
	if err != nil {
		return err
	}
	mu := signer.Mu()
	_, err = message.Check(func(h cms.Hash) ([]byte, error) {
		sum := h.New()
		_, err := io.Copy(sum, module.Reader(ctx, io.NewSectionReader(m, 0, layer.Offset)))
		if mu == nil || h == mu {
			d.Add(h.HashFunc(), sum.Sum(nil))
		}
		return sum.Sum(nil), err
	}, cms.NewKeyring(signer), nil)
	if err != nil || mu == nil {
		return err
	}
	for i := range message.Signers {
		if sum := message.Signers[i].SumAttributes(mu); sum != nil {
			d.Add(mu.HashFunc(), sum)
		}
	}
	return nil
}

// SignedExactly reports whether the key signed all of these digests and no others.
func (r *Receipt) SignedExactly(d Digests) bool { return d.SHA256() == r.DigestsSHA256 }

// MatchModules checks that the key signed exactly the modules that roots name: files, and
// below directories what depmod would find. It returns their number. The error wraps
// [ErrOtherKey], [ErrOtherModules], or what prevented it from reading a module.
func (r *Receipt) MatchModules(ctx context.Context, roots []string) (int, error) {
	found, err := module.FindLoadable(nil, roots)
	if err != nil {
		return 0, err
	}
	digests := make(Digests)
	for _, e := range found.Entries {
		if err := r.addEntry(ctx, digests, e); ctx.Err() != nil {
			return 0, context.Cause(ctx)
		} else if err != nil {
			return 0, failures.Name(e.Path, err)
		}
	}
	if !r.SignedExactly(digests) {
		return len(found.Entries), ErrOtherModules
	}
	return len(found.Entries), nil
}

func (r *Receipt) addEntry(ctx context.Context, digests Digests, e module.Entry) error {
	m, err := e.Open(ctx, module.Limits{})
	if err != nil {
		return err
	}
	defer m.Close()
	return r.AddSigned(ctx, digests, m, m.Size)
}
