package gpgagent

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"strconv"
)

// sexp is a canonical S-expression: an atom or a list.
type sexp struct {
	atom []byte
	list []sexp
}

const maxDepth = 8

var errSexp = errors.New("gpg-agent's answer is damaged")

// parseSexp parses data that are one list.
func parseSexp(data []byte) (sexp, error) {
	e, rest, err := parseOne(data, 0)
	if err == nil && (len(rest) > 0 || e.list == nil) {
		err = errSexp
	}
	return e, err
}

func parseOne(data []byte, depth int) (e sexp, rest []byte, err error) {
	if len(data) == 0 || depth > maxDepth {
		return e, nil, errSexp
	}
	if data[0] != '(' {
		return parseAtom(data)
	}
	e.list = []sexp{}
	for data = data[1:]; len(data) > 0 && data[0] != ')'; data = rest {
		var item sexp
		if item, rest, err = parseOne(data, depth+1); err != nil {
			return e, nil, err
		}
		e.list = append(e.list, item)
	}
	if len(data) == 0 {
		return e, nil, errSexp
	}
	return e, data[1:], nil
}

// parseAtom parses "LENGTH:BYTES".
func parseAtom(data []byte) (sexp, []byte, error) {
	length, rest, ok := bytes.Cut(data[:min(len(data), 7)], []byte(":"))
	n, err := strconv.ParseUint(string(length), 10, 16)
	if rest = data[len(data[:min(len(data), 7)])-len(rest):]; !ok || err != nil || n > uint64(len(rest)) {
		return sexp{}, nil, errSexp
	}
	return sexp{atom: rest[:n:n]}, rest[n:], nil
}

// name returns the atom that a list begins with, or "".
func (e sexp) name() string {
	if len(e.list) == 0 {
		return ""
	}
	return string(e.list[0].atom)
}

// value returns V of a list with an item (NAME V), or nil.
func (e sexp) value(name string) []byte {
	for _, item := range e.list {
		if item.name() == name && len(item.list) == 2 {
			return item.list[1].atom
		}
	}
	return nil
}

// inner returns the list in a list (NAME (...)).
func (e sexp) inner(name string) sexp {
	if e.name() != name || len(e.list) < 2 {
		return sexp{}
	}
	return e.list[1]
}

// curveOf returns the curve of a name, or nil.
func curveOf(name string) elliptic.Curve {
	switch name {
	case "NIST P-256", "nistp256":
		return elliptic.P256()
	case "NIST P-384", "nistp384":
		return elliptic.P384()
	case "NIST P-521", "nistp521":
		return elliptic.P521()
	}
	return nil
}

// usable are the keys of the agent that sign modules.
const usable = "modsign signs with RSA and ECDSA keys (P-256, P-384, P-521) of gpg-agent"

// parsePublic parses (public-key (rsa (n N)(e E))) or (public-key (ecc (curve C)(q Q))).
func parsePublic(data []byte) (crypto.PublicKey, error) {
	e, err := parseSexp(data)
	if err != nil {
		return nil, err
	}
	key := e.inner("public-key")
	switch name := key.name(); name {
	case "rsa":
		n, exponent := new(big.Int).SetBytes(key.value("n")), new(big.Int).SetBytes(key.value("e"))
		if n.BitLen() < 1024 || !exponent.IsInt64() || exponent.BitLen() > 31 || exponent.Int64() < 3 {
			return nil, errSexp
		}
		return &rsa.PublicKey{N: n, E: int(exponent.Int64())}, nil
	case "ecc", "ecdsa":
		curve := curveOf(string(key.value("curve")))
		if curve == nil {
			return nil, fmt.Errorf("key is on the curve %.30q; "+usable, key.value("curve"))
		}
		public, err := ecdsa.ParseUncompressedPublicKey(curve, key.value("q"))
		if err != nil {
			return nil, errSexp
		}
		return public, nil
	case "":
		return nil, errSexp
	default:
		return nil, fmt.Errorf("key is of type %.30q; "+usable, name)
	}
}

// parseSignature parses (sig-val (rsa (s S))) or (sig-val (ecdsa (r R)(s S))) of a key.
func parseSignature(data []byte, public crypto.PublicKey) ([]byte, error) {
	e, err := parseSexp(data)
	if err != nil {
		return nil, err
	}
	signature := e.inner("sig-val")
	r, s := new(big.Int).SetBytes(signature.value("r")), new(big.Int).SetBytes(signature.value("s"))
	switch key := public.(type) {
	case *rsa.PublicKey:
		if signature.name() != "rsa" || s.Sign() == 0 || s.BitLen() > 8*key.Size() {
			return nil, errSexp
		}
		return s.FillBytes(make([]byte, key.Size())), nil // the agent drops zeros in front
	default:
		if signature.name() != "ecdsa" || r.Sign() == 0 || s.Sign() == 0 {
			return nil, errSexp
		}
		return asn1.Marshal(struct{ R, S *big.Int }{r, s})
	}
}
