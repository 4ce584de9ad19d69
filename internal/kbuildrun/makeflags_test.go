package kbuildrun

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/kbuild"
)

// recipeEnv runs the real make and returns the environment that a recipe of it
// sees. The goals all, deeper and deepest have the recipe in the make itself, in
// one that it calls, and in one that this one calls.
func recipeEnv(t *testing.T, goal string, args ...string) map[string]string {
	t.Helper()
	makefile := testmod.WriteFile(t, "Makefile", []byte(`all:; +@env -0 >"$$OUT"
deeper:; +@$(MAKE) -f $(firstword $(MAKEFILE_LIST)) all
deepest:; +@$(MAKE) -f $(firstword $(MAKEFILE_LIST)) deeper
`))
	out := filepath.Join(filepath.Dir(makefile), "env")
	cmd := exec.Command(testmod.Program(t, "make", "make"), append([]string{"-f", makefile, goal}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "OUT=" + out}
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %q: %v\n%s", args, err, text)
	}
	dump, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	env := make(map[string]string)
	for entry := range strings.SplitSeq(strings.TrimSuffix(string(dump), "\x00"), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		env[name] = value
	}
	return env
}

func TestParseMakeFlagsOfRealMake(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args string
		want MakeFlags
	}{
		{"", MakeFlags{}},
		{"-s", MakeFlags{Silent: true}},
		{"-n", MakeFlags{DryRun: true}},
		{"-k", MakeFlags{KeepGoing: true}},
		{"-k -S", MakeFlags{}},
		{"-t", MakeFlags{Touch: true}},
		{"-q", MakeFlags{Question: true}},
		{"-nks", MakeFlags{Silent: true, DryRun: true, KeepGoing: true}},
		{"--silent --dry-run --keep-going", MakeFlags{Silent: true, DryRun: true, KeepGoing: true}},
		{"-rR --no-print-directory", MakeFlags{}},
		{"-j4", MakeFlags{Jobs: 4}},
		{"-j1", MakeFlags{Jobs: 1}},
		{"-j", MakeFlags{Jobs: -1}},
		{"-k -j", MakeFlags{Jobs: -1, KeepGoing: true}},
		{"-s -j 12 -l2.5 -Oline --trace", MakeFlags{Jobs: 12, Silent: true}},
		{"-l2.5 -I nks -Iqt", MakeFlags{}},
		{"-I nks --eval=nks:=qt -B", MakeFlags{}},
		{"INSTALL_MOD_PATH=/x/n", MakeFlags{Vars: map[string]string{"INSTALL_MOD_PATH": "/x/n"}}},
		{
			"-s V=1 -j3 X=--dry-run Y=-n",
			MakeFlags{Silent: true, Jobs: 3, Vars: map[string]string{"V": "1", "X": "--dry-run", "Y": "-n"}},
		},
	}
	for _, test := range tests {
		for _, goal := range []string{"all", "deeper", "deepest"} {
			makeflags := recipeEnv(t, goal, strings.Fields(test.args)...)["MAKEFLAGS"]
			want := test.want
			if want.Vars == nil {
				want.Vars = map[string]string{}
			}
			if got := ParseMakeFlags(makeflags); !reflect.DeepEqual(got, want) {
				t.Errorf("make %s %s: MAKEFLAGS is %q:\n got %+v\nwant %+v", test.args, goal, makeflags, got, want)
			}
		}
	}
}

// TestMakeVariablesRoundTrip compares with the value that make gives a variable,
// which is in the environment too.
func TestMakeVariablesRoundTrip(t *testing.T) {
	t.Parallel()
	for _, value := range []string{
		"", "y", "/x/n", "a b", "a\tb", " a", "a ", "  a  b  ", `a'b"c`, "a#b", "a=b", "==", "--", "-- -n", "-j9 -- s", "X=1",
		`a\b`, `a\ b`, `a\\ b`, `a\\`, `\`, `\\\`, "~/y", "a$$b", "$$", "a$$$$b c", "$$$$$$ ", "%:,;|&", "é", "a\nb", "\n",
		"*",
		"pkcs11:object=a%20b;type=private?pin-source=/x",
	} {
		for _, form := range testmod.Few([]string{"X=", "X:=", "X::=", "X?=", "X+=", "X = "}, 1) {
			args := []string{form + value, "OTHER=1", "-k"}
			env := recipeEnv(t, "all", args...)
			flags := ParseMakeFlags(env["MAKEFLAGS"])
			want := map[string]string{"X": env["X"], "OTHER": "1"}
			if !maps.Equal(flags.Vars, want) || !flags.KeepGoing || flags.DryRun || flags.Silent || flags.Jobs != 0 {
				t.Errorf("make %q: MAKEFLAGS is %q:\n got %+v\nwant %+q", args, env["MAKEFLAGS"], flags, want)
			}
		}
	}
	// A submake sees them again. (GNU make expands what := has expanded once
	// more, so there is no dollar here.)
	args := []string{"X=a b", `Y:=c\ "d`, "Z=", "A=1", "A=2", "-j2"}
	env := recipeEnv(t, "deepest", args...)
	want := map[string]string{"X": "a b", "Y": `c\ "d`, "Z": "", "A": "2"}
	if flags := ParseMakeFlags(env["MAKEFLAGS"]); !maps.Equal(flags.Vars, want) || flags.Jobs != 2 {
		t.Errorf("MAKEFLAGS is %q:\n got %+v\nwant %+q", env["MAKEFLAGS"], flags, want)
	}
}

func TestVarsResolvesReferences(t *testing.T) {
	t.Parallel()
	env := recipeEnv(t, "all", "DESTDIR=/stage", "INSTALL_MOD_PATH=$(DESTDIR)/root")
	vars := kbuild.Vars{Line: ParseMakeFlags(env["MAKEFLAGS"]).Vars, LookupEnv: lookup(env)}
	if got, ok := vars.Lookup("INSTALL_MOD_PATH"); got != "/stage/root" || !ok {
		t.Errorf("INSTALL_MOD_PATH is %q, %v; MAKEFLAGS %q", got, ok, env["MAKEFLAGS"])
	}
	if got, ok := vars.Command("PATH"); ok {
		t.Errorf("PATH is on the command line: %q", got)
	}
	if _, ok := vars.Lookup("PATH"); !ok {
		t.Error("PATH is not in the environment")
	}
	if _, ok := (kbuild.Vars{}).Lookup("PATH"); ok {
		t.Error("PATH out of nothing")
	}
}

func lookup(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}
}

// TestParseMakeFlagsOfOtherMakes has what other versions of GNU make write, and
// users.
func TestParseMakeFlagsOfOtherMakes(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]MakeFlags{
		"ks -j4 --jobserver-auth=fifo:/tmp/GMfifo123 --no-print-directory -- X=1": {
			Silent: true, KeepGoing: true, Jobs: 4, Vars: map[string]string{"X": "1"}, // 4.4
		},
		// 4.4
		" -j8 --sync-mutex=fnm:/tmp/GmMnks -- M=/n": {Jobs: 8, Vars: map[string]string{"M": "/n"}},
		"s --no-silent -- V=1":                      {Vars: map[string]string{"V": "1"}},   // 4.4.1
		"s --jobserver-fds=3,4 -j":                  {Silent: true},                        // 4.1
		" --jobserver-fds=3,4 -j -- X:=a\\ b":       {Vars: map[string]string{"X": "a b"}}, // 4.1
		"kj":                                        {KeepGoing: true, Jobs: -1},
		"jk":                                        {KeepGoing: true, Jobs: -1},
		"-kj 4 -s":                                  {Jobs: 4, KeepGoing: true, Silent: true},
		"-j -s":                                     {Jobs: -1, Silent: true},
		"-nj3k":                                     {DryRun: true, KeepGoing: true, Jobs: 3},
		"--jobs=3":                                  {Jobs: 3},
		"-j0":                                       {},
		"-j99999999999999999999":                    {},
		"-I nks -q":                                 {Question: true},
		"X=n":                                       {Vars: map[string]string{"X": "n"}},
		"n X=1":                                     {DryRun: true, Vars: map[string]string{"X": "1"}},
		"=n":                                        {},
		" -- =1 :=2 -n":                             {},
		" -- X":                                     {},
		`s\`:                                        {Silent: true},
		"- --":                                      {},
		"--recon --touch --question --quiet --stop": {DryRun: true, Touch: true, Question: true, Silent: true},
	} {
		if want.Vars == nil {
			want.Vars = map[string]string{}
		}
		if got := ParseMakeFlags(s); !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v\nwant %+v", s, got, want)
		}
	}
}

func FuzzParseMakeFlags(f *testing.F) {
	for _, s := range []string{
		"", "nks -j4 --jobserver-auth=3,4 -- X=a\\ b Y:=c$$$$", "-I", "X=1", " -- =", "--", "\\", "j", " -l2.5 -Otarget",
		"-- := X:==$$",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		flags := ParseMakeFlags(s)
		if flags.Jobs < -1 {
			t.Errorf("%q: %d jobs", s, flags.Jobs)
		}
		for name := range flags.Vars {
			if name == "" || strings.Contains(name, "=") {
				t.Errorf("%q: a variable %q", s, name)
			}
		}
	})
}
