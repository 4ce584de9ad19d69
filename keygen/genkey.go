package keygen

import (
	"cmp"
	"crypto"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// LoadConfig reads an x509.genkey file with [ParseConfig]. If path is empty, or the file
// has no default_bits, the result is that of the kernel's build.
func LoadConfig(path string) (Template, Algorithm, error) {
	if path == "" {
		return DefaultTemplate(), RSA4096, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return Template{}, 0, err
	}
	defer f.Close()
	template, algorithm, err := ParseConfig(f)
	if err != nil {
		return template, 0, fmt.Errorf("%s: %w", path, err)
	}
	return template, cmp.Or(algorithm, RSA4096), nil
}

// ParseConfig reads an x509.genkey file: the configuration that the kernel's
// build hands to "openssl req -x509 -utf8 -batch" to make its key. Days, and the
// hash where the file has no default_md, are those of [DefaultTemplate]. The
// algorithm is the RSA one of default_bits, or zero when there is none; it does
// not bind: for an ECDSA key the kernel uses the same file.
//
// In the section req, ParseConfig understands default_bits (2048, 3072, 4096),
// default_md, distinguished_name, x509_extensions, prompt (only no) and
// string_mask (only utf8only). It skips what concerns requests and key files alone
// (req_extensions, attributes, default_keyfile, encrypt_key, ...). In the section of
// the distinguished name it understands the types of [NewAttribute], with or without a
// prefix that tells several apart (0.organizationName); in the section of the
// extensions basicConstraints, keyUsage, extendedKeyUsage, subjectKeyIdentifier (only
// hash; it is added at the end when missing, as OpenSSL does) and
// authorityKeyIdentifier (only keyid, which writes nothing, and keyid:always).
// Anything else that would change the certificate is an error that names the line.
func ParseConfig(r io.Reader) (Template, Algorithm, error) {
	c, err := parseConf(r)
	if err != nil {
		return Template{}, 0, err
	}
	req := c.sections["req"]
	if req == nil {
		return Template{}, 0, errors.New("there is no section [req]: this is no x509.genkey")
	}
	t := DefaultTemplate()
	t.Subject, t.Extensions = nil, nil
	var a Algorithm
	for _, name := range []string{"oid_file", "oid_section", "openssl_conf"} {
		if e, ok := c.get("req", name); ok {
			return Template{}, 0, e.errorf("%s is not supported: write object identifiers in dots", name)
		}
	}
	for _, e := range req.entries {
		switch e.name {
		case "": // replaced by a later one
		case "default_bits", "default_md", "distinguished_name", "x509_extensions", "prompt", "string_mask":
		case "utf8": // the kernel's build says -utf8
		case "default_keyfile", "encrypt_key", "encrypt_rsa_key", "input_password", "output_password",
			"req_extensions", "attributes": // not about certificates
		default:
			return Template{}, 0, e.errorf("a name in [req] that is not understood")
		}
	}
	if e, ok := c.get("req", "prompt"); !ok {
		return Template{}, 0, errors.New(
			"[req] has no line prompt = no, without which OpenSSL takes the distinguished name for prompts")
	} else if e.value != "no" {
		return Template{}, 0, e.errorf("prompt is not supported: write prompt = no")
	}
	if e, ok := c.get("req", "string_mask"); ok && e.value != "utf8only" {
		return Template{}, 0, e.errorf("string_mask is not supported: the kernel's keys have utf8only")
	}
	if e, ok := c.get("req", "default_bits"); ok {
		if a, err = ParseAlgorithm("rsa:" + e.value); err != nil {
			return Template{}, 0, e.errorf("default_bits: an RSA key has 2048, 3072 or 4096 bits here")
		}
	}
	if e, ok := c.get("req", "default_md"); ok && e.value != "default" {
		if t.Hash = hashNamed(e.value); t.Hash == 0 {
			return Template{}, 0, e.errorf(
				"default_md is not a hash that the kernel takes: use sha256, sha384, sha512, sha3-256, sha3-384 or sha3-512")
		}
	}

	dn, err := c.sectionOf("distinguished_name")
	if err != nil {
		return Template{}, 0, err
	}
	for _, e := range dn.entries {
		if e.name == "" {
			continue
		}
		a, err := configAttribute(e)
		if err != nil {
			return Template{}, 0, err
		}
		t.Subject = append(t.Subject, a)
	}
	if len(t.Subject) == 0 {
		return Template{}, 0, errors.New("the section of the distinguished_name is empty: it needs at least CN = name")
	}

	extensions, err := c.sectionOf("x509_extensions")
	if err != nil {
		return Template{}, 0, err
	}
	for _, e := range extensions.entries {
		if e.name == "" {
			continue
		}
		ext, written, err := configExtension(e)
		if err != nil {
			return Template{}, 0, err
		}
		if written {
			t.Extensions = append(t.Extensions, ext)
		}
	}
	if len(t.Extensions) == 0 {
		// Versions of OpenSSL differ in what they make of it.
		return Template{}, 0, errors.New(
			"the section of the x509_extensions is empty: it needs at least subjectKeyIdentifier = hash")
	}
	isKeyID := func(ext pkix.Extension) bool { return ext.Id.Equal(extension(14)) }
	if !slices.ContainsFunc(t.Extensions, isKeyID) {
		t.Extensions = append(t.Extensions, pkix.Extension{Id: extension(14)})
	}
	return t, a, nil
}

// sectionOf returns the section that a name in [req] refers to.
func (c *conf) sectionOf(name string) (*confSection, error) {
	e, ok := c.get("req", name)
	if !ok {
		return nil, fmt.Errorf("[req] names no section for %s", name)
	}
	s := c.sections[e.value]
	if s == nil {
		return nil, e.errorf("%s: there is no section of this name", name)
	}
	return s, nil
}

// configAttribute reads a line of the distinguished name.
func configAttribute(e confEntry) (Attribute, error) {
	// All up to the first point or comma only tells lines of one type apart,
	// unless nothing follows. An object identifier needs such a prefix too.
	name := e.name
	if i := strings.IndexAny(name, ".,"); i >= 0 && i+1 < len(name) {
		name = name[i+1:]
	}
	if strings.HasPrefix(name, "+") {
		return Attribute{}, e.errorf("a second attribute in one RDN is not supported: leave the + out")
	}
	a, err := NewAttribute(name, e.value)
	if err != nil {
		return Attribute{}, e.errorf("%w", err)
	}
	return a, nil
}

// configExtension reads a line of the extensions' section. The authority key
// identifier may be one that is not written.
func configExtension(e confEntry) (ext pkix.Extension, written bool, err error) {
	if !slices.Contains([]string{"basicConstraints", "keyUsage", "extendedKeyUsage", "subjectKeyIdentifier",
		"authorityKeyIdentifier"}, e.name) {
		return pkix.Extension{}, false, e.errorf(
			"extension is not supported: it is basicConstraints, keyUsage, extendedKeyUsage, subjectKeyIdentifier or " +
				"authorityKeyIdentifier")
	}
	value, critical := strings.CutPrefix(e.value, "critical,")
	list, err := valueList(value)
	if err != nil {
		return pkix.Extension{}, false, e.errorf("%s: %w", e.name, err)
	}
	ext.Critical = critical
	written = true
	var b cryptobyte.Builder
	switch e.name {
	case "basicConstraints":
		ext.Id = extension(19)
		err = addBasicConstraints(&b, list)
	case "keyUsage":
		ext.Id = extension(15)
		err = addKeyUsage(&b, list)
	case "extendedKeyUsage":
		ext.Id = extension(37)
		err = addExtendedKeyUsage(&b, list)
	case "subjectKeyIdentifier":
		ext.Id = extension(14)
		if len(list) != 1 || list[0] != (nameValue{name: "hash"}) {
			err = errors.New("value is not supported: use hash")
		}
	case "authorityKeyIdentifier":
		ext.Id = extension(35)
		if len(list) != 1 || list[0].name != "keyid" || list[0].value != "" && list[0].value != "always" {
			err = errors.New("value is not supported, because versions of OpenSSL differ in what they make of it: use keyid")
		}
		written = len(list) == 1 && list[0].value == "always"
	}
	// RFC 5280, 4.2.1.1 and 4.2.1.2; crypto/x509 parses no such certificate.
	if err == nil && critical && (ext.Id.Equal(extension(14)) || ext.Id.Equal(extension(35))) {
		err = errors.New("extension must not be critical")
	}
	if err != nil {
		return pkix.Extension{}, false, e.errorf("%s: %w", e.name, err)
	}
	der, err := b.Bytes()
	if err != nil {
		return pkix.Extension{}, false, e.errorf("%s: %w", e.name, err)
	}
	if len(der) > 0 {
		ext.Value = der
	}
	return ext, written, nil
}

// nameValue is an element of an extension's value, name or name:value.
type nameValue struct{ name, value string }

func valueList(s string) ([]nameValue, error) {
	var list []nameValue
	for part := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(part, ":")
		const space = " \t\n\v\f\r"
		nv := nameValue{strings.Trim(name, space), strings.Trim(value, space)}
		if nv.name == "" || ok && nv.value == "" {
			return nil, errors.New("value has an empty part")
		}
		list = append(list, nv)
	}
	return list, nil
}

// addBasicConstraints writes SEQUENCE { cA BOOLEAN DEFAULT FALSE,
// pathLenConstraint INTEGER OPTIONAL }.
func addBasicConstraints(b *cryptobyte.Builder, list []nameValue) error {
	ca, pathLen := false, -1
	for _, nv := range list {
		switch nv.name {
		case "CA":
			switch nv.value {
			case "TRUE", "true", "Y", "y", "YES", "yes":
				ca = true
			case "FALSE", "false", "N", "n", "NO", "no":
				ca = false
			default:
				return errors.New("CA is neither TRUE nor FALSE")
			}
		case "pathlen":
			n, err := strconv.ParseUint(nv.value, 10, 16)
			if err != nil {
				return errors.New("pathlen is not a small number")
			}
			pathLen = int(n)
		default:
			return errors.New("value is neither CA nor pathlen")
		}
	}
	if pathLen >= 0 && !ca {
		return errors.New("pathlen needs CA:TRUE")
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if ca {
			b.AddASN1Boolean(true)
		}
		if pathLen >= 0 {
			b.AddASN1Int64(int64(pathLen))
		}
	})
	return nil
}

// addKeyUsage writes a named bit list (RFC 5280, 4.2.1.3): no zero bits at the
// end.
func addKeyUsage(b *cryptobyte.Builder, list []nameValue) error {
	names := []string{"digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment",
		"keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"}
	var usage uint16 // the first name is the highest bit
	for _, nv := range list {
		i := slices.Index(names, nv.name)
		if i < 0 || nv.value != "" {
			return fmt.Errorf("value is not one of %s", strings.Join(names, ", "))
		}
		usage |= 1 << (15 - i)
	}
	der := []byte{byte(usage >> 8), byte(usage)}
	if der[1] == 0 {
		der = der[:1]
	}
	b.AddASN1(cbasn1.BIT_STRING, func(b *cryptobyte.Builder) {
		b.AddUint8(uint8(bits.TrailingZeros8(der[len(der)-1])))
		b.AddBytes(der)
	})
	return nil
}

func addExtendedKeyUsage(b *cryptobyte.Builder, list []nameValue) error {
	pkixUsage := func(arc int) asn1.ObjectIdentifier {
		return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, arc}
	}
	var usages []asn1.ObjectIdentifier
	for _, nv := range list {
		var usage asn1.ObjectIdentifier
		switch nv.name {
		case "serverAuth":
			usage = pkixUsage(1)
		case "clientAuth":
			usage = pkixUsage(2)
		case "codeSigning":
			usage = pkixUsage(3)
		case "emailProtection":
			usage = pkixUsage(4)
		case "timeStamping":
			usage = pkixUsage(8)
		case "msCodeInd":
			usage = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 21}
		case "msCodeCom":
			usage = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 22}
		default:
			oid, err := parseOID(nv.name)
			if err != nil {
				return errors.New("value is no known usage, such as codeSigning, and no object identifier in dots")
			}
			usage = oid
		}
		if nv.value != "" {
			return errors.New("a usage has no value")
		}
		usages = append(usages, usage)
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, usage := range usages {
			b.AddASN1ObjectIdentifier(usage)
		}
	})
	return nil
}

// hashNamed returns the hash with OpenSSL's name, zero for all that
// certificates are not signed with here.
func hashNamed(name string) crypto.Hash {
	switch strings.ToLower(name) {
	case "sha1", "sha-1":
		return crypto.SHA1
	case "sha224", "sha-224", "sha2-224":
		return crypto.SHA224
	case "sha256", "sha-256", "sha2-256":
		return crypto.SHA256
	case "sha384", "sha-384", "sha2-384":
		return crypto.SHA384
	case "sha512", "sha-512", "sha2-512":
		return crypto.SHA512
	case "sha3-256":
		return crypto.SHA3_256
	case "sha3-384":
		return crypto.SHA3_384
	case "sha3-512":
		return crypto.SHA3_512
	}
	return 0
}
