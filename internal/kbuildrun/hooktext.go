package kbuildrun

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

//go:embed GNUmakefile.in
var hookText string

// HookText returns the hook as a makefile, for make -f. With a program it also serves a
// tree in which modsign is not enabled.
func HookText(program string) string {
	text := stamp(strings.Replace(hookText, "@OTHERS@", strings.Join(others, " "), 1))
	if program != "" {
		text = "modsign-program := " + program + "\n" + text
	}
	return text
}

// settings is the text of the file hook.mk.
func (h *Hook) settings() string {
	return stamp(fmt.Sprintf(`# modsign kbuild hook, sha256 %s
#
# Written by "modsign kbuild enable".
modsign-program := %s
modsign-options := %s
`, sum, h.Program, strings.Join(h.Options, " ")))
}

// A stamp is the SHA-256 of a file that has @SUM@ in the place of the stamp. It tells that
// modsign wrote the file, and that nobody changed it.
const sum = "@SUM@"

var stamped = regexp.MustCompile(`(?m)^# modsign kbuild hook, sha256 ([0-9a-f]{64})$`)

func stamp(text string) string {
	digest := sha256.Sum256([]byte(text))
	return strings.Replace(text, sum, hex.EncodeToString(digest[:]), 1)
}

func isStamped(text []byte) bool {
	at := stamped.FindSubmatchIndex(text)
	if at == nil {
		return false
	}
	blank := slices.Concat(text[:at[2]], []byte(sum), text[at[3]:])
	digest := sha256.Sum256(blank)
	return hex.EncodeToString(digest[:]) == string(text[at[2]:at[3]])
}
