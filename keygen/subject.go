package keygen

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Attribute is one attribute of a distinguished name, in an RDN of its own.
type Attribute struct {
	Type  asn1.ObjectIdentifier
	Value string
	// Tag is the ASN.1 string type: asn1.TagUTF8String, asn1.TagPrintableString
	// or asn1.TagIA5String. Zero means the one that OpenSSL chooses for Type
	// under string_mask=utf8only: see the package comment.
	Tag int
}

// attributeType is what OpenSSL knows about a type of attribute
// (crypto/asn1/a_strnid.c): its names, its string type where that is no
// choice, and its bounds in characters, zero for none.
type attributeType struct {
	short, long string
	oid         asn1.ObjectIdentifier
	tag         int
	min, max    int
}

// attributeTypes returns the types of attribute that have a name here.
func attributeTypes() []attributeType {
	x520 := func(arc int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 4, arc} }
	pilot := func(arc int) asn1.ObjectIdentifier {
		return asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, arc}
	}
	const text, printable, ia5 = asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String
	return []attributeType{
		{"CN", "commonName", x520(3), text, 1, 64},
		{"O", "organizationName", x520(10), text, 1, 64},
		{"OU", "organizationalUnitName", x520(11), text, 1, 64},
		{"C", "countryName", x520(6), printable, 2, 2},
		{"ST", "stateOrProvinceName", x520(8), text, 1, 128},
		{"L", "localityName", x520(7), text, 1, 128},
		{"emailAddress", "emailAddress", asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, ia5, 1, 128},
		{"serialNumber", "serialNumber", x520(5), printable, 1, 64},
		{"SN", "surname", x520(4), text, 1, 32768},
		{"GN", "givenName", x520(42), text, 1, 32768},
		{"title", "title", x520(12), text, 0, 0},
		{"description", "description", x520(13), text, 0, 0},
		{"street", "streetAddress", x520(9), text, 0, 0},
		{"DC", "domainComponent", pilot(25), ia5, 1, 0},
		{"UID", "userId", pilot(1), text, 0, 0},
	}
}

// attributeTypeOf returns what is known about a type of attribute; one without
// a name takes any UTF8String.
func attributeTypeOf(oid asn1.ObjectIdentifier) attributeType {
	for _, a := range attributeTypes() {
		if a.oid.Equal(oid) {
			return a
		}
	}
	return attributeType{short: oid.String(), oid: oid, tag: asn1.TagUTF8String}
}

// NewAttribute returns an attribute. The name is OpenSSL's short or long name (CN,
// commonName, O, emailAddress; upper and lower case differ), or an object identifier
// in dots. The value is UTF-8. Like OpenSSL, NewAttribute refuses a name that it does
// not know, and a value that is too short, too long, or has a character that the type
// does not allow. Its errors quote neither name nor value, as any file may have been
// given for a configuration.
func NewAttribute(name, value string) (Attribute, error) {
	a := Attribute{Value: value}
	for _, known := range attributeTypes() {
		if name == known.short || name == known.long {
			a.Type = known.oid
		}
	}
	if a.Type == nil {
		oid, err := parseOID(name)
		if err != nil {
			return Attribute{}, errors.New(
				"unknown type of attribute: use a name such as CN, O, OU, C, emailAddress, or an object identifier in dots")
		}
		a.Type = oid
	}
	return a, a.check()
}

// ParseSubject parses a distinguished name in the form of "openssl req -subj":
// /type=value/type=value..., where a backslash escapes the next character. The types
// are those of [NewAttribute].
func ParseSubject(s string) ([]Attribute, error) {
	rest, ok := strings.CutPrefix(s, "/")
	if !ok {
		return nil, fmt.Errorf("subject %q does not begin with a slash: write it as /O=organization/CN=name", s)
	}
	var subject []Attribute
	for more := true; more; {
		var part strings.Builder
		more = false
		for rest != "" && !more {
			switch c := rest[0]; {
			case c == '\\' && len(rest) > 1:
				part.WriteByte(rest[1])
				rest = rest[1:]
			case c == '\\':
				return nil, fmt.Errorf("subject %q ends in a backslash that escapes nothing", s)
			case c == '/':
				more = true
			default:
				part.WriteByte(c)
			}
			rest = rest[1:]
		}
		name, value, ok := strings.Cut(part.String(), "=")
		if !ok {
			return nil, fmt.Errorf("subject %q: %q is not type=value", s, part.String())
		}
		a, err := NewAttribute(name, value)
		if err != nil {
			return nil, fmt.Errorf("subject %q: %q: %w", s, part.String(), err)
		}
		subject = append(subject, a)
	}
	return subject, nil
}

// tag returns the string type that the attribute is written with.
func (a Attribute) tag() int {
	if a.Tag != 0 {
		return a.Tag
	}
	return attributeTypeOf(a.Type).tag
}

func (a Attribute) check() error {
	known := attributeTypeOf(a.Type)
	switch n := utf8.RuneCountInString(a.Value); {
	case !validOID(a.Type):
		return fmt.Errorf("attribute type %v is not an object identifier", a.Type)
	case !utf8.ValidString(a.Value):
		return fmt.Errorf("%s is not valid UTF-8", known.short)
	case n < known.min:
		return fmt.Errorf("%s has %d characters, and at least %d are needed", known.short, n, known.min)
	case known.max > 0 && n > known.max:
		return fmt.Errorf("%s has %d characters, and at most %d are allowed", known.short, n, known.max)
	}
	var allowed func(rune) bool
	var kind string
	switch tag := a.tag(); tag {
	case asn1.TagUTF8String:
		return nil
	case asn1.TagPrintableString:
		kind, allowed = "PrintableString", printable
	case asn1.TagIA5String:
		kind, allowed = "IA5String", func(r rune) bool { return r < utf8.RuneSelf }
	default:
		return fmt.Errorf("%s: ASN.1 tag %d is not one of the string types UTF8String, PrintableString, IA5String",
			known.short, tag)
	}
	if i := strings.IndexFunc(a.Value, func(r rune) bool { return !allowed(r) }); i >= 0 {
		return fmt.Errorf("%s is a %s, which cannot hold its character %d", known.short, kind,
			utf8.RuneCountInString(a.Value[:i])+1)
	}
	return nil
}

// printable reports whether a PrintableString may hold the character
// (X.680, 41.4).
func printable(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(" '()+,-./:=?", r)
}

// addName writes a Name with one RDN for each attribute.
func addName(b *cryptobyte.Builder, subject []Attribute) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, a := range subject {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(a.Type)
					b.AddASN1(cbasn1.Tag(a.tag()), func(b *cryptobyte.Builder) { b.AddBytes([]byte(a.Value)) })
				})
			})
		}
	})
}

var errNotOID = errors.New("not an object identifier")

// parseOID reads an object identifier in dots.
func parseOID(s string) (asn1.ObjectIdentifier, error) {
	var oid asn1.ObjectIdentifier
	for arc := range strings.SplitSeq(s, ".") {
		n, err := strconv.ParseUint(arc, 10, 31)
		if err != nil {
			return nil, errNotOID
		}
		oid = append(oid, int(n))
	}
	if !validOID(oid) {
		return nil, errNotOID
	}
	return oid, nil
}

// validOID reports whether the arcs can be encoded (X.690, 8.19).
func validOID(oid asn1.ObjectIdentifier) bool {
	if len(oid) < 2 || oid[0] > 2 || oid[0] < 2 && oid[1] >= 40 {
		return false
	}
	for _, arc := range oid {
		if arc < 0 {
			return false
		}
	}
	return true
}
