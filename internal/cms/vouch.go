package cms

import (
	"fmt"
	"syscall"
)

// VouchedBy returns nil if a keyring that only takes certificates of known issuers would
// take this one, and else why not (restrict_link_by_signature, crypto/asymmetric_keys/restrict.c).
func (c *Certificate) VouchedBy(ring *Keyring) error {
	var issuer *Certificate
	switch {
	case c.authority == nil && c.authorityKeyID == nil:
		if ring != nil {
			issuer = ring.bySubject[string(c.issuer)]
		}
	default:
		issuer, _ = ring.find(c.authority, c.authorityKeyID)
	}
	if issuer == nil {
		return &Error{Kind: UnknownKey, Errno: syscall.ENOKEY,
			Reason: fmt.Sprintf("no key in the keyring has signed the certificate, which names the issuer %q", c.Issuer())}
	}
	return issuer.verify(&c.signature, c.tbs)
}
