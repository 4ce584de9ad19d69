package kerneltest

import (
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Other lines on a kernel's console must not be taken for verdicts.
func TestParseConsole(t *testing.T) {
	cases := []Case{{Name: "a"}, {Name: "b"}}
	const (
		start = "[    1.42] Run /init as init process\r\n"
		a     = `modsign-case: {"Name":"a","Errno":0,"Log":null}` + "\r\n"
		b     = `modsign-case: {"Name":"b","Errno":129,"Log":["why: not"]}` + "\r\n"
		end   = "modsign-end: 2\r\n"
	)
	verdicts, err := parseConsole([]byte(start+a+b+end+"[    2.1] reboot: Restarting system\r\n"), cases)
	if err != nil || len(verdicts) != 2 || verdicts[0].Errno != 0 || verdicts[1].Errno != syscall.EKEYREJECTED ||
		verdicts[1].Log[0] != "why: not" {
		t.Errorf("%+v, %v", verdicts, err)
	}
	for name, test := range map[string]struct{ console, want string }{
		"nothing": {"", `no verdict on case 0, "a"`},
		"panic": {start + a + "[    2.0] Kernel panic - not syncing: Attempted to kill init!\r\n",
			`no verdict on case 1, "b"`},
		"another":      {start + b + a + end, `no verdict on case 0, "a"`},
		"cut off":      {start + a + b, "came to its end: false"},
		"one too many": {start + a + b + b + end, "3 verdicts on 2 cases"},
		"error":        {start + a + "modsign-error: case \"b\": no space left\r\n", `the loader: case "b": no space left`},
		"garbled":      {start + "modsign-case: {\"Na[ 2.0] oops\r\n", "line of the loader"},
	} {
		if verdicts, err := parseConsole([]byte(test.console), cases); err == nil ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v; want %q", name, verdicts, err, test.want)
		}
	}
}

func TestSymbols(t *testing.T) {
	got := symbols("# a comment\nCONFIG_A=y\nCONFIG_B=\"b=c\"\n" +
		"# CONFIG_A is not set\n\n# CONFIG_C is not set\nCONFIG_C=m\n")
	if want := map[string]string{"CONFIG_A": "", "CONFIG_B": `"b=c"`, "CONFIG_C": "m"}; !maps.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWithout(t *testing.T) {
	got := without("# about A\nCONFIG_A=y\n# CONFIG_AB is not set\nCONFIG_ABC=m\n# CONFIG_D is not set\nCONFIG_A=m\n", "A", "AB")
	if want := "# about A\nCONFIG_ABC=m\n# CONFIG_D is not set\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLoadedCertificates(t *testing.T) {
	console := "[    0.50] Loading compiled-in X.509 certificates\r\n" +
		"[    0.51] Loaded X.509 cert 'one: it's: 00'\r\n[    0.52] Problem loading in-kernel X.509 certificate (-65)\r\n" +
		"[    0.53] Loaded X.509 cert 'two: 01'\r\n[    0.54] blacklist: Loading compiled-in revocation X.509 certificates\r\n" +
		"[    0.55] Loaded X.509 cert 'revoked: 02'\r\n"
	if got := loadedCertificates([]byte(console)); !slices.Equal(got, []string{"one: it's: 00", "two: 01"}) {
		t.Errorf("%q", got)
	}
}
