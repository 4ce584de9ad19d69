package sign

import "testing"

func TestEnumerate(t *testing.T) {
	for want, items := range map[string][]string{
		"":           nil,
		"a":          {"a"},
		"a and b":    {"a", "b"},
		"a, b and c": {"a", "b", "c"},
	} {
		if got := enumerate(items, "and"); got != want {
			t.Errorf("%q: %q, want %q", items, got, want)
		}
	}
}
