package keyscan

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"strconv"
	"strings"
)

// maxBlock is how much of a PEM block is looked at, in bytes. A key of ML-DSA-87 with seed
// has 7 KB; of OpenPGP's blocks the first packet is enough.
const maxBlock = 64 << 10

// maxLabel bounds the text from BEGIN to the words that the labels of all kinds of
// private keys have in common.
const maxLabel = 48

var (
	privateKey = []byte("PRIVATE KEY")
	begin      = []byte("BEGIN ")
	dashes     = []byte("----")
)

// A located key is a key and where it begins.
type located struct {
	key
	at int // bytes from the beginning of the data
}

// findPEM finds the private keys in PEM, anywhere in a line and in any text, whose label has
// these words between from and limit. A label alone, as in a program that writes keys, is
// none. It returns false if found does, which ends the search.
func findPEM(data []byte, from, limit int, found func(located) bool) bool {
	for at := from; at < limit; {
		i := bytes.Index(data[at:], privateKey)
		if i < 0 || at+i >= limit {
			return true
		}
		at += i
		start := labelStart(data, at)
		at += len(privateKey)
		if start < 0 {
			continue
		}
		label := string(data[start:at])
		rest, ok := labelEnd(data[at:min(len(data), at+maxBlock)], &label)
		if !ok {
			continue
		}
		if k, ok := parseBlock(label, linePrefix(data[:start-len("-----BEGIN ")]), rest); ok {
			k.pem = true
			if !found(located{k, start - len("-----BEGIN ")}) {
				return false
			}
		}
	}
	return true
}

// labelStart returns where the label begins that ends with the words at that place, or -1.
func labelStart(data []byte, at int) int {
	before := data[max(0, at-maxLabel):at]
	i := bytes.LastIndex(before, begin)
	if i < 5 || !bytes.HasSuffix(bytes.TrimRight(before[:i], " "), dashes) {
		return -1
	}
	label := before[i+len(begin):]
	for _, c := range label {
		if c != ' ' && c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return -1
		}
	}
	return at - len(label)
}

// labelEnd returns what follows the line of BEGIN, and completes the label.
func labelEnd(rest []byte, label *string) ([]byte, bool) {
	if after, ok := bytes.CutPrefix(rest, []byte(" BLOCK")); ok {
		rest = after
		*label += " BLOCK"
	}
	rest, ok := bytes.CutPrefix(bytes.TrimLeft(rest, " "), dashes)
	return bytes.TrimLeft(rest, "-"), ok
}

// linePrefix returns what stands before BEGIN in its line: an indentation, the sign of a
// comment, the plus of a patch. The other lines of the block have it too, or not.
func linePrefix(before []byte) []byte {
	before = before[max(0, len(before)-maxLabel):]
	return before[bytes.LastIndexAny(before, "\n\r")+1:]
}

// parseBlock recognizes what stands between BEGIN and END.
func parseBlock(label string, prefix, text []byte) (key, bool) {
	ended := false
	if i := bytes.Index(text, begin); i >= 0 { // first of all, so that each byte is looked at once
		text = text[:i]
	}
	if i := bytes.Index(text, []byte("-----END")); i >= 0 {
		text, ended = text[:i], true
	} else if i := bytes.Index(text, []byte("---- END")); i >= 0 {
		text, ended = text[:i], true
	}
	b := unarmor(prefix, text)
	switch {
	case label == "TSS2 PRIVATE KEY":
		k, ok := parseDER(b.data, true)
		return k, ok && k.form == "TPM 2.0 key"
	case label == "OPENSSH PRIVATE KEY":
		if k, ok := parseOpenSSH(b.data); ok {
			return k, true
		}
	case label == "PGP PRIVATE KEY BLOCK":
		if k, ok := parseOpenPGP(b.data); ok {
			return k, true
		}
	case strings.HasPrefix(label, "SSH2 "):
		if bytes.HasPrefix(b.data, []byte("\x3f\x6f\xf9\xeb")) {
			return key{form: "SSH2", encrypted: true}, true
		}
	case b.encrypted:
		if k, ok := legacyForms[label]; ok && len(b.data) >= 32 {
			k.encrypted = true
			return k, true
		}
	default:
		if k, ok := parseDER(b.data, true); ok {
			return k, true
		}
	}
	// A key of which the end is missing, or a part, is one for whoever completes it. An
	// example in a document shows a few characters and dots.
	if looksCutOff(label, b, text) {
		return key{form: "PEM", damaged: true, encrypted: strings.Contains(label, "ENCRYPTED")}, true
	}
	if _, known := knownLabels[label]; !known && ended && len(b.data) >= 32 && !b.odd {
		return key{form: "PEM", encrypted: strings.Contains(label, "ENCRYPTED")}, true
	}
	return key{}, false
}

// legacyForms are the kinds that OpenSSL encrypts with a header in the PEM block.
var legacyForms = map[string]key{
	"RSA PRIVATE KEY": {form: "PKCS #1", algorithm: "RSA"},
	"EC PRIVATE KEY":  {form: "SEC 1", algorithm: "ECDSA"},
	"DSA PRIVATE KEY": {form: "OpenSSL's", algorithm: "DSA"},
	"PRIVATE KEY":     {form: "PKCS #8"},
	"ANY PRIVATE KEY": {form: "PEM"},
}

// knownLabels are the labels whose content has a form that is checked.
var knownLabels = map[string]struct{}{
	"PRIVATE KEY": {}, "ENCRYPTED PRIVATE KEY": {}, "RSA PRIVATE KEY": {}, "EC PRIVATE KEY": {}, "DSA PRIVATE KEY": {},
	"OPENSSH PRIVATE KEY": {}, "PGP PRIVATE KEY BLOCK": {}, "TSS2 PRIVATE KEY": {},
}

// minCutOff is the least number of bytes of a key that does not end: more than an example in
// a document has.
const minCutOff = 64

// looksCutOff reports whether a block holds the beginning of a key.
func looksCutOff(label string, b body, text []byte) bool {
	if len(b.data) < minCutOff || b.odd || bytes.Contains(text, []byte("...")) || bytes.Contains(text, []byte("…")) {
		return false
	}
	switch label {
	case "OPENSSH PRIVATE KEY":
		return bytes.HasPrefix(b.data, []byte(opensshMagic))
	case "PGP PRIVATE KEY BLOCK":
		const secretKey = 5
		tag, packet, ok := pgpPacket(b.data)
		return ok && tag == secretKey && packet[0] >= 3 && packet[0] <= 6
	}
	if b.encrypted {
		return true
	}
	rest, ok := skipHeader(b.data)
	return ok && (bytes.HasPrefix(rest, []byte("\x02\x01\x00")) || bytes.HasPrefix(rest, []byte("\x02\x01\x01")) ||
		bytes.HasPrefix(rest, []byte("\x30")) && strings.Contains(label, "ENCRYPTED"))
}

// A body is a PEM block decoded.
type body struct {
	data      []byte
	encrypted bool // a header says so
	odd       bool // there are characters that stand in no PEM, even within quotes or a comment
}

// unarmor decodes the text between BEGIN and END, whatever its lines are wrapped in: an
// indentation, quotes, the sign of a comment, "\n" for line breaks.
func unarmor(prefix, text []byte) body {
	if bytes.ContainsAny(text, `\%&<`) {
		text = escapes.replace(numbered.ReplaceAllFunc(text, fromNumber))
	}
	prefix = bytes.TrimLeft(prefix, " \t")
	if n := len(prefix); n > 0 && isDigit(prefix[n-1]) && prefix[n-1] != '+' {
		prefix = nil // a word, which no further line begins with, but by chance
	}
	digits := make([]byte, 0, len(text))
	var b body
	for len(text) > 0 {
		i := bytes.IndexAny(text, "\n\r")
		line := text
		if i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		if bytes.IndexByte(line, ':') >= 0 { // a header
			b.encrypted = b.encrypted || bytes.Contains(line, []byte("ENCRYPTED"))
			// A shell that was given no quotes has made one line of all.
			_, line, _ = bytes.Cut(line, []byte("DEK-Info: "))
			_, line, _ = bytes.Cut(line, []byte(" "))
		}
		line = bytes.TrimLeft(line, " \t")
		if rest, ok := bytes.CutPrefix(line, prefix); ok {
			line = rest
		}
		if line = bytes.TrimLeft(line, " \t"); bytes.HasPrefix(line, []byte("=")) {
			continue // the checksum of OpenPGP
		}
		for _, c := range line {
			switch {
			case isDigit(c):
				digits = append(digits, c)
			case bytes.IndexByte([]byte(" \t=\"'`,;#*|<>()+-."), c) < 0:
				b.odd = true
			}
		}
	}
	if len(digits)&3 == 1 { // cut off within a byte
		digits = digits[:len(digits)-1]
	}
	b.data = make([]byte, base64.RawStdEncoding.DecodedLen(len(digits)))
	n, _ := base64.RawStdEncoding.Decode(b.data, digits)
	b.data = b.data[:n]
	return b
}

// isDigit reports whether a byte is a digit of base64.
func isDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '+' || c == '/'
}

// escapes are how strings of JSON, C and the like, URLs, HTML and RTF write what PEM blocks
// consist of.
var escapes = replacer{
	{"%0A", "\n"}, {"%0a", "\n"}, {"%0D", "\n"}, {"%0d", "\n"}, {"%20", " "}, {"%2B", "+"}, {"%2b", "+"}, {"%2F", "/"},
	{"%2f", "/"}, {"%3D", "="}, {"%3d", "="}, {"<br>", "\n"}, {"<br/>", "\n"}, {"<br />", "\n"}, {"&#10;", "\n"},
	{"&#xA;", "\n"}, {"&#xa;", "\n"}, {"&#13;", "\n"}, {"&#xD;", "\n"}, {"&#xd;", "\n"}, {`\par`, "\n"},
	{`\r`, "\n"}, {`\n`, "\n"}, {`\t`, " "}, {`\/`, "/"}, {`\"`, `"`}, {`\`, ""},
}

// numbered are the escapes that write a byte as a number: \u000a of JSON, \x0a and \012 of C, &#x0a; and
// &#010; of XML.
var numbered = regexp.MustCompile(`\\u00[0-9A-Fa-f]{2}|\\u\{0{0,6}[0-9A-Fa-f]{1,2}\}|\\x[0-9A-Fa-f]{2}|` +
	`\\[01][0-7]{2}|&#[xX]0{0,6}[0-9A-Fa-f]{1,2};|&#0{0,6}[0-9]{1,3};`)

// fromNumber returns the byte that an escape means.
func fromNumber(escape []byte) []byte {
	digits, base := strings.Trim(string(escape), `\ux{}&#X;`), 16
	switch {
	case escape[1] == '#' && escape[2] != 'x' && escape[2] != 'X':
		base = 10
	case escape[0] == '\\' && escape[1] != 'u' && escape[1] != 'x':
		base = 8
	}
	n, err := strconv.ParseUint(digits, base, 8)
	if err != nil {
		return escape
	}
	return []byte{byte(n)}
}

type replacer [][2]string

func (r replacer) replace(text []byte) []byte {
	for _, pair := range r {
		text = bytes.ReplaceAll(text, []byte(pair[0]), []byte(pair[1]))
	}
	return text
}
