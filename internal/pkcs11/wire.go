package pkcs11

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The wire is p11-kit's (p11-kit/rpc-message.c of its source). A frame is
//
//	be32 number of the call, be32 length of options, be32 length of the body, options, body
//
// and a body is
//
//	be32 function, counted string: types of the arguments, the arguments
//
// Numbers have eight bytes, and are big-endian; a string has its length in four bytes
// before it. An answer repeats the number and the function, or has function 0 and a CKR_.
const (
	maxBody    = 1 << 20 // certificates and lists of objects are the largest
	maxOptions = 4096    // they have the name of the module, and have no effect
)

// A function is one of PKCS #11, and what its arguments and results look like.
type function struct {
	number            uint32
	name              string
	arguments, result string
}

// The types of arguments: u a number, y a byte, s a counted string, v a version of two
// bytes, M a mechanism, A an attribute; a before a type is an array of it, and f is room for
// one.
var (
	fnInitialize        = function{1, "C_Initialize", "ayyay", ""}
	fnFinalize          = function{2, "C_Finalize", "", ""}
	fnGetInfo           = function{3, "C_GetInfo", "", "vsusv"}
	fnGetSlotList       = function{4, "C_GetSlotList", "yfu", "au"}
	fnGetSlotInfo       = function{5, "C_GetSlotInfo", "u", "ssuvv"}
	fnGetTokenInfo      = function{6, "C_GetTokenInfo", "u", "ssssuuuuuuuuuuuvvs"}
	fnOpenSession       = function{10, "C_OpenSession", "uu", "u"}
	fnLogin             = function{18, "C_Login", "uuay", ""}
	fnLogout            = function{19, "C_Logout", "u", ""}
	fnGetAttributeValue = function{24, "C_GetAttributeValue", "uufA", "aAu"}
	fnFindObjectsInit   = function{26, "C_FindObjectsInit", "uaA", ""}
	fnFindObjects       = function{27, "C_FindObjects", "ufu", "au"}
	fnFindObjectsFinal  = function{28, "C_FindObjectsFinal", "u", ""}
	fnSignInit          = function{42, "C_SignInit", "uMu", ""}
	fnSign              = function{43, "C_Sign", "uayfy", "ay"}
)

// An encoder appends arguments.
type encoder []byte

func (e *encoder) u32(v uint32)   { *e = binary.BigEndian.AppendUint32(*e, v) }
func (e *encoder) ulong(v uint64) { *e = binary.BigEndian.AppendUint64(*e, v) }
func (e *encoder) byte(v byte)    { *e = append(*e, v) }

func (e *encoder) string(s []byte) {
	e.u32(uint32(len(s)))
	*e = append(*e, s...)
}

// bytes appends an array of bytes ("ay"), which may be NULL.
func (e *encoder) bytes(b []byte) {
	e.byte(1)
	if b == nil {
		e.u32(null)
		return
	}
	e.string(b)
}

const null = 0xffffffff // the length of a string that is NULL

// An attribute is one of an object, and its value as it is on the wire. A number has eight
// bytes and a truth value has one.
type attribute struct {
	kind  uint32
	value []byte
}

func ulong(kind uint32, v uint64) attribute {
	return attribute{kind, binary.BigEndian.AppendUint64(nil, v)}
}

// template appends attributes to search for ("aA").
func (e *encoder) template(attributes []attribute) {
	e.u32(uint32(len(attributes)))
	for _, a := range attributes {
		e.u32(a.kind)
		e.byte(1)
		e.u32(uint32(len(a.value)))
		if typeOf(a.kind) == byteString {
			e.string(a.value)
		} else {
			*e = append(*e, a.value...)
		}
	}
}

// room appends the attributes to get the values of ("fA").
func (e *encoder) room(kinds []uint32) {
	e.u32(uint32(len(kinds)))
	for _, kind := range kinds {
		e.u32(kind)
		e.u32(uint32(roomFor(kind)))
	}
}

type valueType int

const (
	byteString valueType = iota
	number
	truth
)

func typeOf(kind uint32) valueType {
	switch kind {
	case attrClass, attrKeyType, attrCertificateType:
		return number
	case attrSign, attrAlwaysAuthenticate:
		return truth
	}
	return byteString
}

// roomFor is the longest value that is taken.
func roomFor(kind uint32) int {
	switch typeOf(kind) {
	case number:
		return 8
	case truth:
		return 1
	}
	if kind == attrValue {
		return 64 << 10 // a certificate
	}
	return 4096 // the modulus of RSA-16384 has 2048
}

var errMalformed = errors.New("malformed answer")

// A decoder reads results. It remembers the first failure, after which all are zero.
type decoder struct {
	data   []byte
	failed bool
}

func (d *decoder) next(n int) []byte {
	if d.failed || n < 0 || n > len(d.data) {
		d.failed = true
		return nil
	}
	b := d.data[:n]
	d.data = d.data[n:]
	return b
}

func (d *decoder) u32() uint32 {
	if b := d.next(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) ulong() uint64 {
	if b := d.next(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) byte() byte {
	if b := d.next(1); b != nil {
		return b[0]
	}
	return 0
}

// string returns a counted string, at most max bytes of it.
func (d *decoder) string(max int) []byte {
	n := d.u32()
	if n == null || d.failed {
		return nil
	}
	if uint64(n) > uint64(max) {
		d.failed = true
		return nil
	}
	return d.next(int(n))
}

// padded returns a string of a fixed size without the spaces at its end.
func (d *decoder) padded(size int) string {
	b := d.string(size)
	if len(b) != size {
		d.failed = true
	}
	n := len(b)
	for n > 0 && (b[n-1] == ' ' || b[n-1] == 0) {
		n--
	}
	return string(b[:n])
}

func (d *decoder) version() string {
	b := d.next(2)
	if b == nil {
		return ""
	}
	return fmt.Sprintf("%d.%d", b[0], b[1])
}

// bytes returns an array of bytes ("ay"), at most max. Where the module has more, there is
// only the length, and the result is CKR_BUFFER_TOO_SMALL.
func (d *decoder) bytes(max int) ([]byte, RV) {
	if d.byte() == 0 {
		d.u32()
		return nil, rvBufferTooSmall
	}
	return d.string(max), rvOK
}

// ulongs returns an array of numbers ("au"), at most max.
func (d *decoder) ulongs(max int) ([]uint64, RV) {
	valid, n := d.byte(), d.u32()
	if valid == 0 {
		// An empty array has no address.
		if n == 0 {
			return nil, rvOK
		}
		return nil, rvBufferTooSmall
	}
	if d.failed || uint64(n) > uint64(max) || uint64(n)*8 > uint64(len(d.data)) {
		d.failed = true
		return nil, rvOK
	}
	values := make([]uint64, n)
	for i := range values {
		values[i] = d.ulong()
	}
	return values, rvOK
}

// attributes returns the values of attributes ("aA"), which have to be of these kinds, in
// this order. Attributes that the object does not have, or does not tell, are not there.
func (d *decoder) attributes(kinds []uint32) map[uint32][]byte {
	if n := d.u32(); n != uint32(len(kinds)) {
		d.failed = true
	}
	values := make(map[uint32][]byte)
	for _, kind := range kinds {
		if d.u32() != kind {
			d.failed = true
		}
		if d.byte() == 0 || d.failed {
			continue
		}
		d.u32() // the length in the module's memory
		var value []byte
		switch typeOf(kind) {
		case number:
			value = d.next(8)
		case truth:
			value = d.next(1)
		default:
			value = d.string(roomFor(kind))
		}
		if !d.failed {
			values[kind] = value
		}
	}
	return values
}

// end returns an error if anything was not as it has to be.
func (d *decoder) end() error {
	if d.failed || len(d.data) != 0 {
		return errMalformed
	}
	return nil
}

// appendCall appends the frame of a call.
func appendCall(frame []byte, number uint32, f function, arguments []byte) []byte {
	e := encoder(frame)
	e.u32(number)
	e.u32(0)
	e.u32(uint32(4 + 4 + len(f.arguments) + len(arguments)))
	e.u32(f.number)
	e.string([]byte(f.arguments))
	return append(e, arguments...)
}

// readFrame returns the body of the answer to the call of that number.
func readFrame(r io.Reader, number uint32) ([]byte, error) {
	var header [12]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	d := decoder{data: header[:]}
	answered, options, body := d.u32(), d.u32(), d.u32()
	switch {
	case answered != number:
		return nil, fmt.Errorf("%w: to call %d instead of %d", errMalformed, answered, number)
	case options > maxOptions, body > maxBody:
		return nil, fmt.Errorf("%w: of %d and %d bytes", errMalformed, options, body)
	}
	data := make([]byte, options+body)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	return data[options:], nil
}

// parseAnswer returns the results in the body of an answer, or the [Error] of the module.
func parseAnswer(body []byte, f function) (*decoder, error) {
	d := &decoder{data: body}
	number := d.u32()
	types := string(d.string(32))
	switch {
	case number == 0 && types == "u":
		rv := RV(d.ulong())
		if err := d.end(); err != nil || rv == rvOK {
			return nil, errMalformed
		}
		return nil, &Error{f.name, rv}
	case d.failed || number != f.number || types != f.result:
		return nil, fmt.Errorf("%w: not one to %s", errMalformed, f.name)
	}
	return d, nil
}
