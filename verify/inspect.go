package verify

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
)

// Description describes a module, without a verdict.
type Description struct {
	Path     string  // or the path in the Archive
	Archive  string  // the path of the package, or other archive, that has it; else empty
	Target   string  // the file, if Path leads to it over symbolic links
	Format   string  // none, gzip, xz, zstd
	FileSize int64   // on disk, in bytes
	Size     int64   // decompressed, with signatures, in bytes
	Payload  int64   // decompressed, without signatures, in bytes
	Layers   []Layer // the outermost first
	Warnings []string
}

// Layer is one appended signature.
type Layer struct {
	Type    string // as modinfo names it (PKCS#7, X509, PGP), or Merkle
	Offset  int64  // where it begins, which is how many bytes it signs
	Size    int    // of the signature in bytes, without the name and the key id of its signer
	Signers []Signer
	Problem string   // why it cannot be parsed
	Notes   []string // how it differs from a signature of sign-file, and why current kernels reject it
}

// Signer is one SignerInfo of a signature, or the signer of a signature in the format used
// before Linux 4.3.
type Signer struct {
	Name         string // of the subject of the certificate; only in the format used before Linux 4.3
	Issuer       string // as the kernel names it; empty if the key id names the signer
	Serial       string // hexadecimal, as in modinfo's sig_key but without colons
	KeyID        string // the subject key identifier, hexadecimal
	Hash         string // sha512, sha3-256, ...
	Algorithm    string // rsa, ecdsa, ...
	Size         int    // of the signature value, in bytes
	HasAttribute bool   // it has signed attributes, which the kernel rejects for modules
}

// Inspect describes a module, over symbolic links too. A signature that cannot be parsed
// is described as such, and is no error.
func Inspect(ctx context.Context, path string) (*Description, error) {
	return inspect(ctx, module.Follow(nil, path), module.Limits{})
}

// InspectTree describes the modules that [Tree] would verify, in the same order. For each
// it calls result with the path, and the description or the error of [Inspect]. It
// returns the links that were not followed, as [Summary] has them. The error is
// [ErrIncomplete] if some modules could not be described, [ErrNoModules] if there are
// none, or the cause of the context if that has ended.
func InspectTree(ctx context.Context, roots []string, o Options,
	result func(path string, d *Description, err error)) (skipped []string, err error) {
	found, err := o.find(roots)
	if err != nil {
		return nil, err
	}
	if len(found.Entries) == 0 {
		return found.Skipped, noModules(roots)
	}
	type described struct {
		path string
		d    *Description
		err  error
	}
	var failed failures.List
	limits := module.SharedLimits(o.MaxSize)
	work := func(i int) described {
		d, err := inspect(ctx, found.Entries[i], limits)
		return described{found.Entries[i].Path, d, err}
	}
	err = batch.Map(ctx, len(found.Entries), o.Jobs, work, func(d described) {
		if d.err != nil {
			failed.Add(d.path, d.err)
		}
		if result != nil {
			result(d.path, d.d, d.err)
		}
	})
	if err != nil {
		return found.Skipped, err
	}
	return found.Skipped, failed.Err(ErrIncomplete,
		fmt.Sprintf("%d of %d modules could not be described", failed.Len(), len(found.Entries)))
}

func inspect(ctx context.Context, e module.Entry, limits module.Limits) (*Description, error) {
	m, err := e.Open(ctx, limits)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return inspectOpen(m, e.Path, e.Real)
}

func inspectOpen(m *module.File, path, target string) (*Description, error) {
	stored, size := m.Stored()
	d := &Description{Path: path, Target: target, Format: m.Format.String(), FileSize: size, Size: m.Size, Payload: m.Size}
	if err := compress.KernelError(m.Format, stored, size); err != nil {
		d.Warnings = append(d.Warnings, err.Error())
	}
	layers, err := module.Layers(m, m.Size)
	if _, malformed := errors.AsType[*module.FormatError](err); malformed || err == module.ErrLayers {
		d.Warnings = append(d.Warnings, err.Error())
	} else if err != nil {
		return nil, err
	}
	for _, l := range layers {
		described, err := describe(m, l)
		if err != nil {
			return nil, err
		}
		d.Layers = append(d.Layers, described)
		d.Payload = l.Offset
	}
	if err := module.CheckELF(m, d.Payload); err != nil {
		d.Warnings = append(d.Warnings, err.Error())
	}
	return d, nil
}

func describe(m *module.File, l module.Layer) (Layer, error) {
	d := Layer{Type: l.Info.IDType.String(), Offset: l.Offset, Size: int(l.Info.SigLen)}
	refused := l.Check(module.TypePKCS7, module.TypeMerkle)
	if refused != nil {
		d.Notes = append(d.Notes, refused.Error())
	}
	switch {
	case l.Info.IDType == module.TypePKCS7:
		return d, d.describeMessage(m, l)
	case refused != nil:
		return d, d.describeOld(m, l)
	}
	return d, nil
}

func (d *Layer) describeMessage(m *module.File, l module.Layer) error {
	message, err := parse(cms.Any, m, l)
	if refusal, ok := errors.AsType[*cms.Error](err); ok {
		d.Problem = refusal.Error()
		return nil
	}
	if err != nil {
		return err
	}
	d.Notes = append(d.Notes, message.Warnings()...)
	for i := range message.Signers {
		d.Signers = append(d.Signers, signerOf(&message.Signers[i]))
	}
	return nil
}

func signerOf(s *cms.SignerInfo) Signer {
	return Signer{
		Issuer:       s.Issuer(),
		Serial:       hex.EncodeToString(s.Serial),
		KeyID:        hex.EncodeToString(s.SubjectKeyID),
		Hash:         s.HashName,
		Algorithm:    s.Algorithm,
		Size:         len(s.Signature),
		HasAttribute: s.HasAttributes,
	}
}

// describeOld describes a signature in the format used before Linux 4.3, whose algorithms
// and signer are fields beside it. The fields are read the same way for other types.
func (d *Layer) describeOld(m *module.File, l module.Layer) error {
	name, err := l.Signer(m)
	if err != nil {
		return err
	}
	id, err := l.KeyID(m)
	if err != nil {
		return err
	}
	s := Signer{
		Name:      strings.ToValidUTF8(string(name), string(utf8.RuneError)),
		KeyID:     hex.EncodeToString(id),
		Hash:      l.Info.HashName(),
		Algorithm: l.Info.AlgoName(),
		Size:      d.Size,
	}
	if l.Info.IDType == module.TypeX509 {
		n, err := l.NumberSize(m)
		if err != nil {
			return err
		}
		if n < 0 {
			d.Problem = "the length field does not fit the signature value"
		} else {
			s.Size = n
		}
	}
	d.Signers = []Signer{s}
	return nil
}
