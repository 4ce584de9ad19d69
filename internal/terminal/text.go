package terminal

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable makes one line of a text, in which names of files and of signers may hold
// anything: they shall not pass for another line, nor speak to the terminal, nor turn what
// is beside them round. It hides what [HideSecrets] hides.
func Printable(text string) string {
	text = HideSecrets(text)
	if utf8.ValidString(text) && !strings.ContainsFunc(text, moves) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case moves(r):
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
		text = text[size:]
	}
	return b.String()
}

// moves reports whether a rune does not stand for itself, but moves or turns what stands
// beside it.
func moves(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp)
}

// pinInURI is where a PKCS #11 URI holds a PIN (RFC 7512).
var pinInURI = regexp.MustCompile(`(pin-value=)[^&;\s"]*`)

// HideSecrets cuts a PIN out of a text, and a private key with all that follows: a shell
// that was given no quotes, or an argument in the wrong place, makes one a file's name or a
// flag, which an error then quotes.
func HideSecrets(text string) string {
	text = pinInURI.ReplaceAllString(text, "${1}(not shown)")
	const begin, end = "-----BEGIN", "PRIVATE KEY"
	if i := strings.Index(text, begin); i >= 0 && strings.Contains(text[i:], end) {
		return text[:i] + "(a private key, not shown)"
	}
	return text
}
