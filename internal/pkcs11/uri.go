package pkcs11

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/modsign/modsign/internal/keyfile"
)

// A URI names a private key in a token and how to get there, as in RFC 7512. An attribute
// that is given as empty names an empty value.
type URI struct {
	path map[string]string // attributes of the token and the key, decoded

	PINSource  string // the path of a file
	PINValue   string
	ModulePath string
	ModuleName string
}

var (
	pathAttributes = []string{
		"token", "manufacturer", "serial", "model", "library-manufacturer", "library-description", "library-version",
		"slot-manufacturer", "slot-description", "slot-id", "object", "type", "id",
	}
	queryAttributes = []string{"pin-source", "pin-value", "module-path", "module-name"}
)

// maxURI is more than the names of all objects of any token need.
const maxURI = 8192

// ParseURI parses a pkcs11: URI strictly. Vendors' attributes, which begin with "x-", have
// no effect. No error quotes a value.
func ParseURI(text string) (*URI, error) {
	const scheme = "pkcs11:"
	if len(text) < len(scheme) || !strings.EqualFold(text[:len(scheme)], scheme) {
		return nil, errors.New("not a pkcs11: URI")
	}
	if len(text) > maxURI {
		return nil, fmt.Errorf("URI has more than %d bytes", maxURI)
	}
	path, query, hasQuery := strings.Cut(text[len(scheme):], "?")
	u := &URI{path: make(map[string]string)}
	err := eachAttribute(path, ";", func(name, value string) error {
		if slices.Contains(queryAttributes, name) {
			return fmt.Errorf("attribute %s belongs behind the question mark", name)
		}
		if !slices.Contains(pathAttributes, name) {
			return unknownAttribute(name)
		}
		if _, twice := u.path[name]; twice {
			return fmt.Errorf("attribute %s stands twice", name)
		}
		var err error
		if u.path[name], err = decode(name, value, pathCharacters); err != nil {
			return err
		}
		return checkAttribute(name, u.path[name])
	})
	if err != nil || !hasQuery {
		return u, err
	}
	seen := make(map[string]bool)
	err = eachAttribute(query, "&", func(name, value string) error {
		if slices.Contains(pathAttributes, name) {
			return fmt.Errorf("attribute %s belongs before the question mark", name)
		}
		if !slices.Contains(queryAttributes, name) {
			if seen["pin-value"] { // it may be a part of the PIN
				return errors.New("unknown attribute after pin-value: an & in a PIN has to be written as %26")
			}
			return unknownAttribute(name)
		}
		if seen[name] {
			return fmt.Errorf("attribute %s stands twice", name)
		}
		seen[name] = true
		value, err := decode(name, value, queryCharacters)
		if err != nil {
			return err
		}
		return u.setQuery(name, value)
	})
	if err == nil && u.PINSource != "" && seen["pin-value"] {
		err = errors.New("pin-source and pin-value exclude each other")
	}
	if err == nil && u.ModulePath != "" && u.ModuleName != "" {
		err = errors.New("module-path and module-name exclude each other")
	}
	return u, err
}

func unknownAttribute(name string) error {
	if strings.HasPrefix(name, "x-") {
		return nil
	}
	return fmt.Errorf("unknown attribute %q", name)
}

// The characters that may stand for themselves in values (RFC 7512, 2.3).
const (
	unreserved      = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	available       = unreserved + ":[]@!$'()*+,="
	pathCharacters  = available + "&"
	queryCharacters = available + "/?|"
)

// eachAttribute calls f for each attribute of a list.
func eachAttribute(list, separator string, f func(name, value string) error) error {
	if list == "" {
		return nil
	}
	for number, attribute := range strings.Split(list, separator) {
		name, value, found := strings.Cut(attribute, "=")
		if !found || name == "" || strings.Trim(name, unreserved) != "" {
			return fmt.Errorf("attribute number %d is not of the form NAME=VALUE", number+1)
		}
		if err := f(name, value); err != nil {
			return err
		}
	}
	return nil
}

// decode decodes the value of an attribute.
func decode(name, value, allowed string) (string, error) {
	value, err := decodePercent(value, allowed)
	isBytes := name == "id" || name == "pin-value"
	if err == nil && !isBytes && (!utf8.ValidString(value) || strings.Contains(value, "\x00")) {
		err = errors.New("value is not text in UTF-8")
	}
	if err != nil {
		return "", fmt.Errorf("attribute %s: %w", name, err)
	}
	return value, nil
}

// decodePercent decodes a value. The error quotes nothing of it.
func decodePercent(text, allowed string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '%':
			if i+2 >= len(text) {
				return "", errors.New("% without two hexadecimal digits")
			}
			v, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
			if err != nil {
				return "", errors.New("% without two hexadecimal digits")
			}
			b.WriteByte(byte(v))
			i += 2
		case strings.IndexByte(allowed, c) < 0:
			return "", fmt.Errorf("character %d of the value has to be percent-encoded, as a space is by %%20", i+1)
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

func encodePercent(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		if strings.IndexByte(unreserved, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// checkAttribute checks the values that have a form of their own.
func checkAttribute(name, value string) error {
	switch name {
	case "type":
		if value != "private" {
			return errors.New("attribute type: a private key is wanted: type=private, or no type")
		}
	case "slot-id":
		if _, err := strconv.ParseUint(value, 10, 64); err != nil {
			return errors.New("attribute slot-id: not a number")
		}
	case "library-version":
		major, minor, found := strings.Cut(value, ".")
		_, err := strconv.ParseUint(major, 10, 8)
		if found && err == nil {
			_, err = strconv.ParseUint(minor, 10, 8)
		}
		if err != nil {
			return errors.New("attribute library-version: not of the form MAJOR.MINOR")
		}
	}
	return nil
}

func (u *URI) setQuery(name, value string) error {
	switch name {
	case "pin-value":
		u.PINValue = value
	case "pin-source":
		path, isURI := strings.CutPrefix(value, "file:")
		path = strings.TrimPrefix(path, "//")
		switch {
		case strings.HasPrefix(value, "|"):
			return &keyfile.HintError{
				Err:  errors.New("attribute pin-source: modsign runs no program for a PIN"),
				Hint: "write the PIN to a file that only you can read: pin-source=file:/PATH",
			}
		case isURI && !strings.HasPrefix(path, "/"), path == "":
			return errors.New("attribute pin-source: not of the form file:/PATH")
		}
		u.PINSource = path
	case "module-path":
		if !strings.HasPrefix(value, "/") {
			return errors.New("attribute module-path: not an absolute path")
		}
		u.ModulePath = value
	case "module-name":
		if !isModuleName(value) {
			return errors.New("attribute module-name: not the name of a file")
		}
		u.ModuleName = value
	}
	return nil
}

// isModuleName reports whether p11-kit can take a name for that of a module in its
// directory, and for nothing else.
func isModuleName(name string) bool {
	return name != "" && !strings.Contains(name, "/") && !strings.HasPrefix(name, "-") && !strings.HasPrefix(name, ".") &&
		!strings.Contains(name, ":")
}

// matches reports whether the values of a token or key have all that the URI says about
// them. Attributes that are not in values are not compared.
func (u *URI) matches(values map[string]string) bool {
	for name, value := range values {
		if want, given := u.path[name]; given && !sameValue(name, want, value) {
			return false
		}
	}
	return true
}

func sameValue(name, want, value string) bool {
	if name == "library-version" && !strings.Contains(want, ".") {
		want += ".0"
	}
	return want == value
}

// format returns the URI of what has these values, with the names in the given order.
func format(values map[string]string, names ...string) string {
	var parts []string
	for _, name := range names {
		if value, ok := values[name]; ok && value != "" {
			parts = append(parts, name+"="+encodePercent(value))
		}
	}
	return "pkcs11:" + strings.Join(parts, ";")
}
