package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
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
