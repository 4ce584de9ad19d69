package cms

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// Keyring holds certificates to trust or to reject. It finds them as the kernel finds
// its keys: by exactly the octets of serial number and issuer, or by exactly those of
// the subject key identifier. A nil Keyring is empty.
type Keyring struct {
	certificates []*Certificate
	byID         map[string]*Certificate
	bySubject    map[string]*Certificate
	blacklisted  func(*Certificate) bool // may be nil
}

// NewKeyring returns a Keyring of these certificates. If two have the same identifier,
// the Keyring finds the first.
func NewKeyring(certs ...*Certificate) *Keyring {
	k := &Keyring{certificates: make([]*Certificate, 0, len(certs)), byID: make(map[string]*Certificate, 2*len(certs)),
		bySubject: make(map[string]*Certificate, len(certs))}
	for _, c := range certs {
		k.Add(c)
	}
	return k
}

// Add adds a certificate, behind those that are there.
func (k *Keyring) Add(c *Certificate) {
	k.certificates = append(k.certificates, c)
	for _, id := range [][]byte{c.id, c.SubjectKeyID} {
		if _, taken := k.byID[string(id)]; !taken && id != nil {
			k.byID[string(id)] = c
		}
	}
	if _, taken := k.bySubject[string(c.subject)]; !taken {
		k.bySubject[string(c.subject)] = c
	}
}

// Blacklist adds the certificates to reject that only their hashes name (tbs:). They matter
// if they are inside the message.
func (k *Keyring) Blacklist(listed func(*Certificate) bool) { k.blacklisted = listed }

// lists reports whether a certificate is on the blacklist.
func (k *Keyring) lists(c *Certificate) bool {
	return k != nil && k.blacklisted != nil && k.blacklisted(c)
}

// Certificates returns the certificates of the Keyring.
func (k *Keyring) Certificates() []*Certificate {
	if k == nil {
		return nil
	}
	return k.certificates
}

// find does what find_asymmetric_key does: the first given id must be one of the
// certificate's ids. If both are given, the second must be its subject key identifier.
func (k *Keyring) find(id, keyID []byte) (*Certificate, syscall.Errno) {
	wanted := id
	if wanted == nil {
		wanted = keyID
	}
	if len(wanted) == 0 {
		return nil, syscall.EINVAL
	}
	if k == nil || k.byID[string(wanted)] == nil {
		return nil, syscall.ENOKEY
	}
	c := k.byID[string(wanted)]
	if id != nil && keyID != nil && !sameID(c.SubjectKeyID, keyID) {
		return nil, syscall.EKEYREJECTED
	}
	return c, 0
}

// Check decides like the kernel whether the message is a trusted signature of a module
// (verify_pkcs7_signature for VERIFYING_MODULE_SIGNATURE), by the rules with which it was
// parsed, and returns the trusted certificate. digest returns the module's digest. Check
// calls it at most once for each hash, and not if no key is known. Errors are of type
// *Error, except those of digest, which are wrapped. With an error of kind BadSignature or Revoked, Check also
// returns the certificate in question.
//
// Check handles several signers, embedded certificates and chains of them as the kernel
// does: one good signer suffices, one bad signer invalidates the message.
//
// If the kernel could use a key and this package cannot, the error is Unsupported.
func (m *Message) Check(digest func(Hash) ([]byte, error), trusted, revoked *Keyring) (*Certificate, error) {
	if err := m.acceptable(); err != nil {
		return nil, err
	}
	return m.check(m.checker(digest, revoked), trusted)
}

// CheckPlatform is Check for the kernels of distributions that look into .platform for a
// key that no other keyring has. The revoked certificates count there in every version
// (certs/system_keyring.c).
func (m *Message) CheckPlatform(
	digest func(Hash) ([]byte, error), platform, revoked *Keyring,
) (*Certificate, error) {
	if err := m.acceptable(); err != nil {
		return nil, err
	}
	k := m.checker(digest, revoked)
	k.revocation = true
	return m.check(k, platform)
}

func (m *Message) check(k *checker, ring *Keyring) (*Certificate, error) {
	if c, err := k.embedded(); err != nil {
		return c, err
	}
	return k.inRings(k.trust, ring)
}

// inRings looks for a signer in the revoked certificates, and then in the trusted ones.
func (k *checker) inRings(find func(*Keyring) (*Certificate, error), trusted *Keyring) (*Certificate, error) {
	if revoked := k.revoked; k.revocation && len(revoked.Certificates()) > 0 {
		c, err := find(revoked)
		if err == nil {
			return c, isRevoked(c)
		}
		// Any error means that no revoked certificate has signed the message.
		if _, refused := errors.AsType[*Error](err); !refused {
			return nil, err
		}
	}
	return find(trusted)
}

// Finding is the verdict on one signer of a message.
type Finding struct {
	Certificate *Certificate // as of [Message.Check]
	Err         error
}

// CheckEach returns what [Message.Check] would return for each signer if it were the only
// one of the message.
func (m *Message) CheckEach(digest func(Hash) ([]byte, error), trusted, revoked *Keyring) []Finding {
	return m.checkEach(m.checker(digest, revoked), trusted)
}

// CheckEachPlatform is CheckEach with [Message.CheckPlatform].
func (m *Message) CheckEachPlatform(digest func(Hash) ([]byte, error), platform, revoked *Keyring) []Finding {
	k := m.checker(digest, revoked)
	k.revocation = true
	return m.checkEach(k, platform)
}

func (m *Message) checkEach(k *checker, ring *Keyring) []Finding {
	findings := make([]Finding, len(m.Signers))
	for i := range findings {
		findings[i].Certificate, findings[i].Err = k.alone(i, ring)
	}
	return findings
}

// alone is Check for one signer.
func (k *checker) alone(i int, trusted *Keyring) (*Certificate, error) {
	if err := k.message.acceptable(); err != nil {
		return nil, err
	}
	if err := k.embeddedSigner(i); err != nil {
		return nil, err
	}
	if c := k.blacklisted[i]; c != nil {
		return c, isRevoked(c)
	}
	return k.inRings(func(ring *Keyring) (*Certificate, error) {
		return k.trustSigner(i, ring, make(map[*Certificate]bool), make(map[*Certificate]*Certificate))
	}, trusted)
}

func isRevoked(c *Certificate) error {
	return &Error{Kind: Revoked, Errno: syscall.EKEYREJECTED,
		Reason: fmt.Sprintf("signed with the revoked certificate %q", c.Description())}
}

// waived reports whether the kernel accepts the signed attributes of the message. It looks at
// the first signer alone (pkcs7_check_authattrs): others may be of another kind.
func (m *Message) waived() bool { return m.rules.waiver && m.Signers[0].signsData() }

// acceptable returns an error if no module may have the message, whoever has signed it.
func (m *Message) acceptable() error {
	switch {
	case m.HasContent:
		return &Error{Kind: Malformed, Errno: syscall.EBADMSG,
			Reason: "the signed content is inside the message",
			Dmesg:  "PKCS#7 signature with non-detached data"}
	case m.authenticode:
		return &Error{Kind: Malformed, Errno: syscall.EKEYREJECTED,
			Reason: "content type is not data",
			Dmesg:  "PKCS7: Invalid module sig (not pkcs7-data)"}
	case slices.ContainsFunc(m.Signers, func(s SignerInfo) bool { return s.HasAttributes && !m.waived() }):
		reason := "signed attributes, which no module may have"
		if m.rules.mldsa && !slices.ContainsFunc(m.Signers, func(s SignerInfo) bool { return !s.signsData() }) {
			reason = "signed attributes, which the kernel takes with ML-DSA only if it is built with " +
				"CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA"
		}
		return &Error{Kind: Malformed, Errno: syscall.EKEYREJECTED,
			Reason: reason,
			Dmesg:  "PKCS7: Invalid module sig (has authattrs)"}
	}
	return nil
}

// checker is the state of one Check.
type checker struct {
	message *Message
	digest  func(Hash) ([]byte, error)
	revoked *Keyring
	// revocation tells that the kernel looks into the revoked certificates.
	revocation bool

	signer      []*Certificate                // for each SignerInfo, its embedded certificate
	blacklisted []*Certificate                // for each SignerInfo, a certificate of its chain
	unsupported []error                       // for each SignerInfo
	parent      map[*Certificate]*Certificate // verified issuer; the certificate itself if self-signed
	links       map[*Certificate]error        // result of verifying the certificate's signature
}

func (m *Message) checker(digest func(Hash) ([]byte, error), revoked *Keyring) *checker {
	sums := make(map[Hash][]byte)
	return &checker{
		message:     m,
		revoked:     revoked,
		revocation:  m.rules.revocation,
		signer:      make([]*Certificate, len(m.Signers)),
		blacklisted: make([]*Certificate, len(m.Signers)),
		unsupported: make([]error, len(m.Signers)),
		parent:      make(map[*Certificate]*Certificate, len(m.Certificates)),
		links:       make(map[*Certificate]error),
		digest: func(h Hash) ([]byte, error) {
			if sum, ok := sums[h]; ok {
				return sum, nil
			}
			sum, err := digest(h)
			if err != nil {
				return nil, fmt.Errorf("digest %s: %w", HashName(h.HashFunc()), err)
			}
			sums[h] = sum
			return sum, nil
		},
	}
}

// embedded does what pkcs7_verify does: it checks the signatures of signers whose
// certificates are in the message, and the signatures of these certificates.
func (k *checker) embedded() (*Certificate, error) {
	var unsupported error
	var blacklisted *Certificate
	good := false
	for i := range k.message.Signers {
		err := k.embeddedSigner(i)
		if e, ok := errors.AsType[*Error](err); ok && e.Errno == syscall.ENOPKG {
			k.unsupported[i] = err
			unsupported = cmp.Or(unsupported, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if k.blacklisted[i] != nil {
			blacklisted = k.blacklisted[i]
		} else {
			good = true
		}
	}
	switch {
	case good:
		return nil, nil
	case blacklisted != nil:
		return blacklisted, isRevoked(blacklisted)
	}
	return nil, unsupported
}

func (k *checker) embeddedSigner(i int) error {
	s := &k.message.Signers[i]
	if err := k.messageDigest(s); err != nil {
		return err
	}
	for _, c := range k.message.Certificates {
		if bytes.Equal(c.id, s.keyID) {
			k.signer[i] = c
			break
		}
	}
	if k.signer[i] == nil {
		return nil
	}
	if at := s.signingTime; !at.IsZero() && (at.Before(k.signer[i].NotBefore) || at.After(k.signer[i].NotAfter)) {
		return &Error{Kind: Malformed, Errno: syscall.EKEYREJECTED,
			Reason: fmt.Sprintf("signed at %s, and the signer's embedded certificate is not valid then",
				at.Format(time.RFC3339)),
			Dmesg: "PKCS7: Message signed outside of X.509 validity window"}
	}
	if err := k.signer[i].verify(&s.signature, k.digest); err != nil {
		return about("embedded certificate of the signer", err)
	}
	seen := make(map[*Certificate]bool)
	for c := k.signer[i]; ; c = k.parent[c] {
		seen[c] = true
		if k.revoked.lists(c) {
			k.blacklisted[i] = c // the rest of the chain is unknown
			return nil
		}
		if c.selfSigned {
			k.parent[c] = c
			return nil
		}
		p, err := k.issuer(c)
		if err != nil {
			return about("embedded certificates", err)
		}
		if p == nil || seen[p] {
			return nil
		}
		// Many signers may share a long chain: verify each link once.
		if _, done := k.links[c]; !done {
			k.links[c] = p.verify(&c.signature, c.tbs)
		}
		if k.links[c] != nil {
			return about("embedded certificates", k.links[c])
		}
		k.parent[c] = p
	}
}

// messageDigest does what pkcs7_digest does: it compares the digest of the module with the
// one in signed attributes.
func (k *checker) messageDigest(s *SignerInfo) error {
	switch {
	case !s.HasAttributes && s.signsData():
		return nil
	case s.Hash == 0:
		return &Error{Kind: Unsupported, Errno: syscall.ENOPKG, Reason: "modsign cannot compute the digest " + s.HashName}
	case !s.HasAttributes:
		return nil // it is compared with the signature
	}
	sum, err := k.digest(s.Hash)
	switch {
	case err != nil:
		return err
	case len(s.messageDigest) != len(sum):
		return &Error{Kind: Malformed, Errno: syscall.EBADMSG,
			Reason: fmt.Sprintf("signed attribute messageDigest of %d bytes, and %s has %d", len(s.messageDigest), s.HashName,
				len(sum)),
			Dmesg: fmt.Sprintf("PKCS7: Sig N: Invalid digest size (%d)", len(s.messageDigest))}
	case !bytes.Equal(s.messageDigest, sum):
		return &Error{Kind: BadSignature, Errno: syscall.EKEYREJECTED,
			Reason: "signed attribute messageDigest is not the digest of the data",
			Dmesg:  "PKCS7: Sig N: Message digest doesn't match"}
	}
	return nil
}

// issuer finds the issuer of a certificate among the embedded ones. A missing issuer is
// not an error.
func (k *checker) issuer(c *Certificate) (*Certificate, error) {
	for _, p := range k.message.Certificates {
		if c.authority == nil && sameID(p.SubjectKeyID, c.authorityKeyID) {
			return p, nil
		}
		if sameID(p.id, c.authority) {
			if c.authorityKeyID != nil && !sameID(p.SubjectKeyID, c.authorityKeyID) {
				return nil, &Error{Kind: BadSignature, Errno: syscall.EKEYREJECTED,
					Reason: "the issuer's subject key identifier is not that of the authority key identifier",
					Dmesg:  "PKCS7: Sig N: X.509 chain contains auth-skid nonmatch (N->N)"}
			}
			return p, nil
		}
	}
	return nil, nil
}

// about adds to an error of verify what was verified.
func about(what string, err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Kind: e.Kind, Errno: e.Errno, Reason: what + ": " + e.Reason, Dmesg: e.Dmesg}
	}
	return err
}

// trust does what pkcs7_validate_trust does: it looks up every signer. The first bad
// signer ends it, one good signer suffices, and unsupported takes precedence over
// unknown.
func (k *checker) trust(ring *Keyring) (*Certificate, error) {
	var good *Certificate
	var unsupported, unknown error
	// Results for embedded certificates are valid for one keyring only: a result from
	// the revoked certificates must not affect the trusted ones.
	seen := make(map[*Certificate]bool)
	vouched := make(map[*Certificate]*Certificate)
	for i := range k.message.Signers {
		c, err := k.trustSigner(i, ring, seen, vouched)
		e, refused := errors.AsType[*Error](err)
		switch {
		case err == nil:
			good = cmp.Or(good, c)
		case refused && e.Kind == Unsupported:
			unsupported = cmp.Or(unsupported, err)
		case refused && e.Kind == UnknownKey:
			unknown = cmp.Or(unknown, err)
		default:
			return c, err
		}
	}
	if good != nil {
		return good, nil
	}
	return nil, cmp.Or(unsupported, unknown)
}

// trustSigner does what pkcs7_validate_trust_one does.
func (k *checker) trustSigner(
	i int, ring *Keyring, seen map[*Certificate]bool, vouched map[*Certificate]*Certificate,
) (*Certificate, error) {
	if k.unsupported[i] != nil {
		return nil, k.unsupported[i]
	}
	s := &k.message.Signers[i]
	digest := k.digest
	sig := &s.signature
	vouch := func(key, upTo *Certificate) (*Certificate, error) {
		err := key.verify(sig, digest)
		if e, ok := errors.AsType[*Error](err); ok && e.Kind != Unsupported {
			return key, &Error{Kind: BadSignature, Errno: syscall.EKEYREJECTED,
				Reason: fmt.Sprintf("%s, by the trusted certificate %q", e.Reason, key.Description())}
		} else if err != nil {
			return nil, err
		}
		for c := k.signer[i]; upTo != nil; c = k.parent[c] {
			vouched[c] = key
			if c == upTo {
				break
			}
		}
		return key, nil
	}
	unknown := &Error{Kind: UnknownKey, Errno: syscall.ENOKEY, Reason: "no trusted certificate for " + s.String()}

	var last *Certificate
	for c := k.signer[i]; c != nil; c = k.parent[c] {
		if seen[c] {
			if key := vouched[c]; key != nil {
				return key, nil
			}
			return nil, unknown
		}
		seen[c] = true
		if key, errno := ring.find(c.id, c.SubjectKeyID); errno == 0 {
			return vouch(key, c)
		}
		if k.parent[c] == c {
			return nil, unknown
		}
		last, sig = c, &c.signature
		digest = c.tbs
	}
	if last != nil && (last.authority != nil || last.authorityKeyID != nil) {
		key, errno := ring.find(last.authority, last.authorityKeyID)
		if errno == 0 {
			return vouch(key, last)
		}
		if errno != syscall.ENOKEY {
			return nil, &Error{Kind: Malformed, Errno: errno,
				Reason: "authority key identifier of an embedded certificate names no certificate or two different ones"}
		}
	}
	key, errno := ring.find(s.keyID, nil)
	switch errno {
	case 0:
		sig, digest = &s.signature, k.digest
		return vouch(key, nil)
	case syscall.ENOKEY:
		return nil, unknown
	}
	return nil, &Error{Kind: Malformed, Errno: errno,
		Reason: fmt.Sprintf("signer has no identifier of the kind that version %d requires", s.Version)}
}
