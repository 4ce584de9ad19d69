package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// programNames are names for the program, and whether it is sign-file then.
var programNames = map[string]bool{
	"sign-file": true, "kernel-sign-file": true, "sign-file-6.1": true, "sign-file.kbuild": true, "kmodsign": true,
	"modsign-2": false, "kmodsign-6.1": false, "signfile": false,
}

// TestSignFileNames calls the program by the names that distributions give sign-file.
func TestSignFileNames(t *testing.T) {
	world := newSignFileWorld(t)
	for name, is := range programNames {
		program, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		r := signFileRun(t, program, world.make(t), "022", nil, []string{"sha256", "key.pem", "cert.pem", "m.ko"})
		switch {
		case is && r != (ran{}):
			t.Errorf("%s: exit code %d: %s", name, r.code, r.stderr)
		case !is && (r.code != exitUsage || strings.Contains(r.stderr, "key.pem") ||
			!strings.HasPrefix(r.stderr, "modsign: there is no command \"sha256\"\n")):
			t.Errorf("%s: exit code %d: %s", name, r.code, r.stderr)
		}
	}
}

// TestKmodsign compares kmodsign -D with what the kernel's sign-file appends to a module.
// Debian's sbsigntool lacks kmodsign, which is Ubuntu's patch.
func TestKmodsign(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("kmodsign")
	if err != nil {
		t.Fatal(err)
	}
	world := newSignFileWorld(t)
	usual := []string{"sha512", "key.pem", "cert.der", "m.ko"}
	read := func(elem ...string) string {
		b, err := os.ReadFile(filepath.Join(elem...))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, options := range [][]string{nil, {"-k"}} {
		theirs, dir := world.make(t), world.make(t)
		if r := signFileRun(t, testmod.SignFile(t), theirs, "022", nil, slices.Concat(options, usual)); r.code != 0 {
			t.Fatalf("the kernel's: %s", r.stderr)
		}
		args := slices.Concat([]string{"-D"}, options, usual, []string{"m.ko.sig"})
		if r := signFileRun(t, program, dir, "022", nil, args); r != (ran{}) {
			t.Fatalf("%q: exit code %d: %s", args, r.code, r.stderr)
		}
		module, want := read(dir, "m.ko"), read(theirs, "m.ko")
		if got := module + read(dir, "m.ko.sig"); got != want || module != string(world.files["m.ko"]) {
			t.Errorf("%q: module and signature are not what the kernel's program makes", args)
		}
	}

	// Behind a signature, the next one has to be of the first too.
	dir := world.make(t)
	for _, args := range [][]string{usual, append([]string{"-D"}, append(usual, "sig")...)} {
		if r := signFileRun(t, program, dir, "022", nil, args); r != (ran{}) {
			t.Fatalf("%q: exit code %d: %s", args, r.code, r.stderr)
		}
	}
	twice := testmod.WriteFile(t, "twice.ko", []byte(read(dir, "m.ko")+read(dir, "sig")))
	testmod.Run(t, "modsign", "verify", "--quiet", "--cert", filepath.Join(dir, "cert.pem"), twice)

	// Nothing is written over the module, and the kernel's program does not know -D.
	for _, test := range []struct {
		program string
		args    []string
		code    int
		says    string
	}{
		{"kmodsign", append([]string{"-D"}, usual...), exitUsage, "-D needs a <dest>"},
		{"kmodsign", append([]string{"-D"}, append(usual, "dir/../m.ko")...), exitError, "the module itself"},
		{"sign-file", append([]string{"-D"}, append(usual, "sig")...), exitUsage, "invalid option -- 'D'"},
		{"kmodsign", append([]string{"-x"}, usual...), exitUsage, "Usage: kmodsign [-dpkD] "},
	} {
		dir := world.make(t)
		before := snapshot(t, dir)
		program, err := exec.LookPath(test.program)
		if err != nil {
			t.Fatal(err)
		}
		r := signFileRun(t, program, dir, "022", nil, test.args)
		if r.code != test.code || !strings.HasPrefix(r.stderr, test.program+": ") || !strings.Contains(r.stderr, test.says) {
			t.Errorf("%s %q: exit code %d: %s", test.program, test.args, r.code, r.stderr)
		}
		if changed := differences(snapshot(t, dir), before); len(changed) > 0 {
			t.Errorf("%s %q: %q", test.program, test.args, changed)
		}
	}
}

// TestSignFileWarnsOnce signs as a kernel's build does, in shells of their own, by
// several at once: the key that others can read is warned of once a build.
func TestSignFileWarnsOnce(t *testing.T) {
	dir := newSignFileWorld(t).make(t)
	if err := os.Chmod(filepath.Join(dir, "key.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	const modules = 8
	for i := range modules {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i, ".ko")), []byte("module"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := func(script string) string {
		cmd := exec.Command("sh", "-c", script, ours(t))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does for what is typed, and a CI for a step
		r := wait(t, cmd)
		if r.code != 0 || r.stdout != "" {
			t.Fatalf("exit code %d: %s", r.code, r.stderr)
		}
		return r.stderr
	}
	const all = `seq 0 7 | xargs -P 4 -I{} sh -c '"$0" sha256 key.pem cert.pem {}.ko; true' "$0"`
	for range 2 { // a second build warns again
		warnings := build(all)
		if strings.Count(warnings, "\n") != 1 ||
			!strings.HasPrefix(warnings, "sign-file: warning: key.pem: private key is open to others") ||
			!strings.Contains(warnings, "chmod 600 key.pem") ||
			!strings.Contains(warnings, "--allow-insecure-key") {
			t.Errorf("got %q, want one warning", warnings)
		}
	}
	// Another key is another matter.
	if got := build(all + `; cp -p key.pem key2.pem; chmod 644 key2.pem; "$0" sha256 key2.pem cert.pem m.ko`); strings.Count(
		got,
		"warning",
	) != 2 {
		t.Errorf("got %q, want a warning for each key", got)
	}
	// Where nothing can be noted, it warns each time.
	if os.Geteuid() != 0 {
		if got := build("XDG_RUNTIME_DIR=/proc; export XDG_RUNTIME_DIR; " + all); strings.Count(got, "warning") != modules {
			t.Errorf("got %q, want %d warnings", got, modules)
		}
	}
}
