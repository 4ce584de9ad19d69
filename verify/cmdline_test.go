package verify

import (
	"slices"
	"strings"
	"testing"
)

func TestParameters(t *testing.T) {
	for cmdline, want := range map[string][]string{
		"":                                   nil,
		" quiet\tro ":                        {"quiet", "ro"},
		"a.b-c=d-e":                          {"a.b_c=d-e"},
		`"a=b c" d`:                          {"a=b c", "d"},
		`a="b c" d`:                          {"a=b c", "d"},
		`a="b c`:                             {"a=b c"},
		`a=b" "c`:                            {`a=b" "c`},
		`a=b"`:                               {`a=b"`},
		`"a="b""`:                            {`a=b"`}, // one quote is removed at the end
		`a="`:                                {"a="},
		`"a"`:                                {"a"},
		`"`:                                  {""},
		"=a=b":                               {"=a=b"},
		"a -- b":                             {"a"},
		"a --=1 --b":                         {"a", "__=1", "__b"},
		"a\xa0b\x00c":                        {"a", "b"},
		`foo="a module.sig_enforce=1" "x y"`: {"foo=a module.sig_enforce=1", "x y"},
	} {
		var got []string
		for _, p := range parameters(cmdline) {
			text := p.name
			if p.given {
				text += "=" + p.value
			}
			got = append(got, text)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, expected %q", cmdline, got, want)
		}
	}
}

func FuzzParameters(f *testing.F) {
	for _, seed := range []string{
		"BOOT_IMAGE=/boot/vmlinuz-6.12.117+deb12-amd64 root=UUID=1f ro quiet module.sig_enforce=1",
		`"module.sig-enforce=1" module_blacklist="a,b" foo="a b" -- single`,
		`lsm=capability,lockdown lockdown=integrity sysctl.kernel.modules_disabled=1 nomodule`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, cmdline string) {
		all, length := parameters(cmdline), 0
		for _, p := range all {
			length += len(p.text)
			if strings.Contains(p.name, "-") || !p.given && p.value != "" || len(p.name) > len(p.text) {
				t.Errorf("%q: %+v", cmdline, p)
			}
			// What needs no quotes is itself, in quotes as well.
			if strings.ContainsAny(p.text, "\"") || p.text == "" || p.text == "--" {
				continue
			}
			again := parameters(`"` + p.text + `"`)
			if len(again) != 1 || again[0] != p {
				t.Errorf("%q: %+v becomes %+v", cmdline, p, again)
			}
		}
		if length > len(cmdline) {
			t.Errorf("%q: %d bytes of parameters", cmdline, length)
		}
	})
}
