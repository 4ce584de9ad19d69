// Package efi reads what UEFI firmware and shim hand to a kernel: variables as efivarfs
// shows them, and signature lists inside of them.
//
// A variable in efivarfs (Documentation/filesystems/efivarfs.rst) is four bytes of
// attributes, little-endian, and the value. The files in /sys/firmware/efi/mok-variables are
// the value alone.
//
// A signature list (UEFI Specification 2.10, 32.4.1; include/linux/efi.h) has numbers in
// little-endian and begins with a header of 28 bytes:
//
//	 0  GUID  type of its elements
//	16  u32   size of the list, with this header
//	20  u32   size of a header of the type, which follows this one
//	24  u32   size of an element
//
// An element is the GUID of its owner and the data: a certificate, or a hash. Lists follow
// one another.
package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxSize is the largest variable, in bytes, that the package reads.
const MaxSize = 4 << 20

// maxElements is the largest number of elements. Real lists have some hundreds.
const maxElements = 1 << 15

// A GUID is an identifier as it is encoded: the first three numbers are little-endian.
type GUID [16]byte

// String returns the form of the specification: 8be4df61-93ca-11d2-aa0d-00e098032b8c.
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g[:]), binary.LittleEndian.Uint16(g[4:]),
		binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:])
}

func guid(a uint32, b, c uint16, rest uint64) (g GUID) {
	binary.LittleEndian.PutUint32(g[:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	binary.BigEndian.PutUint64(g[8:], rest)
	return g
}

// Types of elements.
var (
	X509       = guid(0xa5c059a1, 0x94e4, 0x4aa7, 0x87b5ab155c2bf072) // a certificate in DER
	SHA256     = guid(0xc1c41626, 0x504c, 0x4092, 0xaca941f936934328) // of an EFI program
	X509SHA256 = guid(0x3bd2a492, 0x96c0, 0x4079, 0xb420fcf98ef103ed) // of a TBSCertificate, and a time of 16 bytes
	X509SHA384 = guid(0x7076876e, 0x80c2, 0x4ee6, 0xaad228b349a6865b)
	X509SHA512 = guid(0x446dbf63, 0x2502, 0x4cda, 0xbcfa2465d2b0fe9d)
)

// Owners of variables.
var (
	Global   = guid(0x8be4df61, 0x93ca, 0x11d2, 0xaa0d00e098032b8c) // SecureBoot, SetupMode, PK, KEK
	Security = guid(0xd719b2cb, 0x3d3a, 0x4596, 0xa3bcdad00e67656f) // db, dbx
	Shim     = guid(0x605dab50, 0xe046, 0x4300, 0xabb63dd810dd8b23) // MokListRT and the like
)

// TypeName names a type of elements.
func TypeName(g GUID) string {
	switch g {
	case X509:
		return "X.509 certificate"
	case SHA256:
		return "SHA-256 of a program"
	case X509SHA256:
		return "SHA-256 of a certificate"
	case X509SHA384:
		return "SHA-384 of a certificate"
	case X509SHA512:
		return "SHA-512 of a certificate"
	}
	return "type " + g.String()
}

// An Element of a list. Data refers to what was parsed.
type Element struct {
	Type, Owner GUID
	Data        []byte
}

// ErrMalformed matches the errors of [Parse] and [Value].
var ErrMalformed = errors.New("malformed EFI data")

// Parse reads signature lists, with the checks of the kernel
// (security/integrity/platform_certs/efi_parser.c). With an error it returns the elements in
// front of the malformed place, which the kernel has taken by then.
func Parse(data []byte) (elements []Element, err error) {
	const header, owner = 28, 16
	for at := 0; at < len(data); {
		rest := data[at:]
		if len(rest) < header {
			return elements, fmt.Errorf("%w: %d bytes at offset %d are no signature list", ErrMalformed, len(rest), at)
		}
		size, head, each := uint64(binary.LittleEndian.Uint32(rest[16:])), uint64(binary.LittleEndian.Uint32(rest[20:])),
			uint64(binary.LittleEndian.Uint32(rest[24:]))
		switch {
		case size > uint64(len(rest)):
			return elements, fmt.Errorf("%w: the signature list at offset %d claims %d bytes, and %d are left",
				ErrMalformed, at, size, len(rest))
		case size < header+head || each < owner || size-header-head < each || (size-header-head)%each != 0:
			return elements, fmt.Errorf("%w: the sizes of the signature list at offset %d do not fit one another",
				ErrMalformed, at)
		}
		if n := (size - header - head) / each; n > uint64(maxElements-len(elements)) {
			return elements, fmt.Errorf("%w: more than %d elements", ErrMalformed, maxElements)
		}
		for body := rest[header+head : size]; len(body) > 0; body = body[each:] {
			elements = append(elements, Element{GUID(rest[:16]), GUID(body[:owner]), body[owner:each:each]})
		}
		at += int(size)
	}
	return elements, nil
}

// Append appends a list of elements that are equally long to data.
func Append(data []byte, kind, owner GUID, elements ...[]byte) []byte {
	if len(elements) == 0 {
		return data
	}
	each := 16 + len(elements[0])
	data = append(data, kind[:]...)
	data = binary.LittleEndian.AppendUint32(data, uint32(28+each*len(elements)))
	data = binary.LittleEndian.AppendUint32(data, 0)
	data = binary.LittleEndian.AppendUint32(data, uint32(each))
	for _, e := range elements {
		data = append(append(data, owner[:]...), e...)
	}
	return data
}

// Attributes of a variable.
const (
	NonVolatile = 1
	Runtime     = 4
)

// Value returns the attributes and the value of a variable as efivarfs shows it.
func Value(file []byte) (attributes uint32, value []byte, err error) {
	if len(file) < 4 {
		return 0, nil, fmt.Errorf("%w: a variable of %d bytes has no attributes", ErrMalformed, len(file))
	}
	return binary.LittleEndian.Uint32(file), file[4:], nil
}

// IsList reports whether a file begins as one for [ParseFile]: with a known type of elements.
func IsList(file []byte) bool {
	for _, at := range []int{0, 4} {
		if len(file) < at+16 {
			return false
		}
		switch GUID(file[at:][:16]) {
		case X509, SHA256, X509SHA256, X509SHA384, X509SHA512:
			return true
		}
	}
	return false
}

// ParseFile reads signature lists from a file: bare, or with the attributes of efivarfs in
// front.
func ParseFile(file []byte) ([]Element, error) {
	bare, err := Parse(file)
	if err == nil {
		return bare, nil
	}
	if _, value, short := Value(file); short == nil {
		if elements, inside := Parse(value); inside == nil || len(elements) > len(bare) {
			return elements, inside
		}
	}
	return bare, err
}
