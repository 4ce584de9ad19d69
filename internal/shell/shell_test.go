package shell

import (
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// bash reads the words that were quoted.
func TestQuote(t *testing.T) {
	words := []string{
		"", "plain.ko", "-rf", "a b", "it's", `back\slash`, "$(touch x)", "~root", "new\nline\n", "\x1b[2J", "bad\xff.ko",
		"é", "both'and\n\\", "*",
	}
	out := testmod.Run(t, testmod.Program(t, "bash", "bash"), "-c", "printf '%s\\0' "+Quote(words...))
	if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); !slices.Equal(got, words) {
		t.Errorf("%q, not %q", got, words)
	}
	if got := Quote("modsign", "verify", "/lib/modules/6.12.0-1+b"); got != "modsign verify /lib/modules/6.12.0-1+b" {
		t.Errorf("quoted without need: %s", got)
	}
}
