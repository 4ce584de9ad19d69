package cms

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// ErrMixed reports signers of which one is named by issuer and serial number and another by
// subject key identifier.
var ErrMixed = errors.New("the kernel rejects a message that names signers in two ways")

// Add returns a message with the signers of m and those of added, a message over the same
// data without certificates. A signer of added takes the place of the same one in m, with
// whatever digest. All else of m stays as it is, byte for byte; bytes after m are left
// out. The encoding around it is DER, in which the order of the signers is by their bytes
// and not by their age.
//
// Add returns an error if the kernel would reject every module with the new message,
// whoever has signed it. The kernel also rejects a module if one signature is bad by a
// certificate that it knows, or good by one that it has revoked: Add checks no signature.
func (m *Message) Add(added *Message) ([]byte, error) {
	if err := added.acceptable(); err != nil {
		return nil, err
	}
	if len(added.between) > 0 {
		return nil, errors.New("the added message holds certificates")
	}
	old := *m
	old.Signers = slices.DeleteFunc(slices.Clone(m.Signers), func(s SignerInfo) bool {
		return slices.ContainsFunc(added.Signers, func(a SignerInfo) bool { return s.sameAs(&a) })
	})
	if err := old.acceptable(); err != nil {
		return nil, err
	}
	for i := range old.Signers {
		s := &old.Signers[i]
		switch {
		case (s.Version == 1) != (s.RawIssuer != nil):
			// The kernel gives it the identifier of the signer before it.
			return nil, fmt.Errorf("signer %s has no identifier of the kind that version %d requires", s, s.Version)
		case s.Version != added.Version:
			return nil, fmt.Errorf("%w: %s and %s", ErrMixed, s, &added.Signers[0])
		}
	}
	signers := slices.Concat(old.Signers, added.Signers)
	elements := make([][]byte, len(signers))
	for i := range signers {
		elements[i] = signers[i].raw
	}
	der := encodeMessage(added.Version, digestsOf(signers, slices.Concat(m.digests, added.digests)), m.content, m.between,
		elements)
	if _, err := Parse(der); err != nil {
		return nil, fmt.Errorf("the kernel cannot parse the message with one more signer: %w", err)
	}
	return der, nil
}

// sameAs reports whether two SignerInfos name the same certificate in the same way.
func (s *SignerInfo) sameAs(other *SignerInfo) bool {
	return bytes.Equal(s.RawIssuer, other.RawIssuer) && bytes.Equal(s.Serial, other.Serial) &&
		bytes.Equal(s.SubjectKeyID, other.SubjectKeyID)
}

// digestsOf returns the elements of digestAlgorithms for these signers: those of the given
// ones that they use.
func digestsOf(signers []SignerInfo, given []algorithm) [][]byte {
	missing := make(map[string]bool)
	for _, s := range signers {
		missing[s.digest] = true
	}
	var elements [][]byte
	for _, a := range given {
		if missing[a.oid] {
			elements = append(elements, a.raw)
			delete(missing, a.oid)
		}
	}
	for oid := range missing { // of a message that does not list it
		elements = append(elements, appendAlgorithm(nil, oid))
	}
	return elements
}
