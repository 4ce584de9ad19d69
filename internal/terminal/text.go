package terminal

import (
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// Printable makes one line of a text, in which names of files and of signers may hold
// anything: they shall not pass for another line, nor speak to the terminal. It hides what
// [HideSecrets] hides.
func Printable(text string) string {
	text = HideSecrets(text)
	if !strings.ContainsFunc(text, unicode.IsControl) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if unicode.IsControl(r) {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
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
