package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/modsign/modsign/internal/keyfile"
)

// Classes and types of objects, their attributes, and flags (PKCS #11 3.0, pkcs11t.h).
const (
	classCertificate = 1
	classPublicKey   = 2
	classPrivateKey  = 3

	keyRSA   = 0
	keyEC    = 3
	keyMLDSA = 0x4a

	attrClass              = 0x000
	attrLabel              = 0x003
	attrValue              = 0x011
	attrCertificateType    = 0x080
	attrKeyType            = 0x100
	attrID                 = 0x102
	attrSign               = 0x108
	attrModulus            = 0x120
	attrPublicExponent     = 0x122
	attrECParams           = 0x180
	attrECPoint            = 0x181
	attrAlwaysAuthenticate = 0x202

	mechanismRSA   = 0x0001 // CKM_RSA_PKCS
	mechanismECDSA = 0x1041 // CKM_ECDSA

	slotHardware = 0x4 // CKF_HW_SLOT

	tokenLoginRequired = 0x4
	tokenProtectedPath = 0x100 // the PIN is entered at the token
	tokenInitialized   = 0x400
	tokenPINCountLow   = 0x10000
	tokenPINFinalTry   = 0x20000
	tokenPINLocked     = 0x40000

	sessionSerial = 0x4

	userNormal          = 1
	userContextSpecific = 2
)

// The most that is taken from a module.
const (
	maxSlots   = 256
	maxObjects = 1000
	maxListed  = 8 // in a message
)

// A token is one that is in a slot of a module.
type token struct {
	conn        *conn
	slot        uint64
	values      map[string]string // the attributes of its URI
	flags       uint64
	maxSessions uint64 // 0: as many as wanted; ^0: it does not say
	hardware    bool
}

// String returns the URI of the token.
func (t *token) String() string { return format(t.values, "model", "manufacturer", "serial", "token") }

// tokens returns all tokens of the module that are initialized.
func (c *conn) tokens() ([]*token, error) {
	library, err := c.libraryInfo()
	if err != nil {
		return nil, err
	}
	slots, err := c.slots()
	if err != nil {
		return nil, err
	}
	var tokens []*token
	for _, slot := range slots {
		t := &token{conn: c, slot: slot, values: maps.Clone(library)}
		t.values["slot-id"] = fmt.Sprint(slot)
		err := t.readSlotInfo()
		if err == nil {
			err = t.readInfo()
		}
		if c.broken != nil {
			return nil, c.broken
		}
		if err == nil && t.flags&tokenInitialized != 0 { // else it is on its way out of the slot
			tokens = append(tokens, t)
		}
	}
	return tokens, nil
}

func (c *conn) libraryInfo() (map[string]string, error) {
	d, err := c.call(fnGetInfo, nil)
	if err != nil {
		return nil, err
	}
	d.version() // of PKCS #11
	values := map[string]string{"library-manufacturer": d.padded(32)}
	d.ulong()
	values["library-description"] = d.padded(32)
	values["library-version"] = d.version()
	return values, c.check(d)
}

// slots returns the slots with tokens.
func (c *conn) slots() ([]uint64, error) {
	// A module looks for new slots when it is asked for their number only.
	for _, room := range []uint32{0, maxSlots} {
		args := encoder{1}
		args.u32(room)
		d, err := c.call(fnGetSlotList, args)
		if err != nil {
			return nil, err
		}
		slots, rv := d.ulongs(maxSlots)
		if err := c.check(d); err != nil {
			return nil, err
		}
		if room == 0 {
			continue
		}
		if rv != rvOK {
			return nil, fmt.Errorf("%v: more than %d slots", c.peer, maxSlots)
		}
		return slots, nil
	}
	return nil, nil
}

func (t *token) readSlotInfo() error {
	var args encoder
	args.ulong(t.slot)
	d, err := t.conn.call(fnGetSlotInfo, args)
	if err != nil {
		return err
	}
	t.values["slot-description"] = d.padded(64)
	t.values["slot-manufacturer"] = d.padded(32)
	t.hardware = d.ulong()&slotHardware != 0
	d.version()
	d.version()
	return t.conn.check(d)
}

func (t *token) readInfo() error {
	var args encoder
	args.ulong(t.slot)
	d, err := t.conn.call(fnGetTokenInfo, args)
	if err != nil {
		return err
	}
	t.values["token"] = d.padded(32)
	t.values["manufacturer"] = d.padded(32)
	t.values["model"] = d.padded(16)
	t.values["serial"] = d.padded(16)
	t.flags = d.ulong()
	t.maxSessions = d.ulong()
	for range 9 { // sessions, lengths of PINs, memory
		d.ulong()
	}
	d.version()
	d.version()
	d.padded(16) // the time
	return t.conn.check(d)
}

// findToken returns the token that the URI names, the only one. It ends the connections to
// the others.
func findToken(ctx context.Context, u *URI, peers []peer) (*token, error) {
	var first error
	var seen []*token
	for _, p := range peers {
		c, err := p.dial(ctx)
		var tokens []*token
		if err == nil {
			tokens, err = c.tokens()
		}
		if err != nil {
			c.finish(0)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if first == nil {
				first = err
			}
			continue
		}
		t, err := choose(u, tokens)
		if t != nil {
			return t, nil
		}
		c.finish(0)
		if err != nil {
			return nil, err
		}
		seen = append(seen, tokens...)
	}
	if first != nil && len(seen) == 0 {
		return nil, first
	}
	return nil, &keyfile.HintError{Err: errors.New("no such token"), Hint: listed("the tokens that are there: ", seen)}
}

// choose returns the token that the URI names, or nil. More than one is an error.
func choose(u *URI, tokens []*token) (*token, error) {
	var found []*token
	for _, t := range tokens {
		if u.matches(t.values) {
			found = append(found, t)
		}
	}
	if len(found) > 1 {
		// A token without a PIN, such as p11-kit's own of certificates, shows its keys to
		// everybody.
		var likely []*token
		for _, t := range found {
			has, err := true, error(nil)
			if t.flags&tokenLoginRequired == 0 {
				has, err = t.hasKey(u)
			}
			if err != nil {
				return nil, err
			}
			if has {
				likely = append(likely, t)
			}
		}
		found = likely
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return found[0], nil
	}
	return nil, &keyfile.HintError{
		Err:  fmt.Errorf("the URI names %d tokens", len(found)),
		Hint: listed("name one of them: ", found),
	}
}

// hasKey reports whether a token that needs no login has a key of the URI.
func (t *token) hasKey(u *URI) (bool, error) {
	s, err := t.open()
	if err != nil {
		return false, err
	}
	keys, err := s.privateKeys(u)
	return len(keys) > 0, err
}

// listed returns a list for a message, or that there is nothing.
func listed[T fmt.Stringer](before string, list []T) string {
	if len(list) == 0 {
		return before + "none"
	}
	var names []string
	for _, x := range list[:min(len(list), maxListed)] {
		names = append(names, x.String())
	}
	if more := len(list) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return before + strings.Join(names, ", ")
}

// A session is one with a token.
type session struct {
	*token
	handle uint64
}

func (t *token) open() (*session, error) {
	var args encoder
	args.ulong(t.slot)
	args.ulong(sessionSerial)
	d, err := t.conn.call(fnOpenSession, args)
	if err != nil {
		return nil, err
	}
	s := &session{t, d.ulong()}
	return s, t.conn.check(d)
}

// login logs in. The PIN is nil where it is entered at the token.
func (s *session) login(user uint64, pin []byte) error {
	args := make(encoder, 0, 64+len(pin)) // grows nowhere, which would leave a copy
	args.ulong(s.handle)
	args.ulong(user)
	args.bytes(pin)
	frame := appendCall(make([]byte, 0, 64+len(args)), s.conn.number, fnLogin, args)
	defer func() { clear(args); clear(frame) }()
	if err := s.conn.send(frame); err != nil {
		return err
	}
	_, err := s.conn.receive(fnLogin)
	if e, ok := errors.AsType[*Error](err); ok && e.RV == rvUserAlreadyLoggedIn && user == userNormal {
		return nil
	}
	return err
}

// find returns the objects with these attributes.
func (s *session) find(template ...attribute) ([]uint64, error) {
	var args encoder
	args.ulong(s.handle)
	args.template(template)
	if _, err := s.conn.call(fnFindObjectsInit, args); err != nil {
		return nil, err
	}
	const room = 64
	var objects []uint64
	for {
		args = nil
		args.ulong(s.handle)
		args.u32(room)
		d, err := s.conn.call(fnFindObjects, args)
		if err != nil {
			return nil, err
		}
		found, _ := d.ulongs(room)
		if err := s.conn.check(d); err != nil {
			return nil, err
		}
		if objects = append(objects, found...); len(found) == 0 || len(objects) >= maxObjects {
			break
		}
	}
	args = nil
	args.ulong(s.handle)
	_, err := s.conn.call(fnFindObjectsFinal, args)
	return objects, err
}

// attributes returns the values of an object's attributes, as far as it tells them.
func (s *session) attributes(object uint64, kinds ...uint32) (map[uint32][]byte, error) {
	var args encoder
	args.ulong(s.handle)
	args.ulong(object)
	args.room(kinds)
	d, err := s.conn.call(fnGetAttributeValue, args)
	if err != nil {
		return nil, err
	}
	values := d.attributes(kinds)
	rv := RV(d.ulong())
	if err := s.conn.check(d); err != nil {
		return nil, err
	}
	switch rv {
	case rvOK, rvAttributeSensitive, rvAttributeTypeInvalid, rvBufferTooSmall: // of some of them
		return values, nil
	}
	return nil, &Error{fnGetAttributeValue.name, rv}
}

// flag returns an attribute that is true or false, or false where the object has none.
func (s *session) flag(object uint64, kind uint32) (bool, error) {
	values, err := s.attributes(object, kind)
	if e, ok := errors.AsType[*Error](err); ok && e.RV == rvAttributeTypeInvalid {
		return false, nil
	}
	return len(values[kind]) == 1 && values[kind][0] != 0, err
}
