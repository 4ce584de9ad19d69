package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// A program outside of the module, with a go.mod of its own, builds without the network,
// signs a tree, and sees which error a broken module makes.
func TestExternalProgram(t *testing.T) {
	testmod.Slow(t, "it builds a program")
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.CopyFS(program, os.DirFS(filepath.Join(root, "testdata/extern"))); err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(program, "go.sum"), sums, 0o644); err != nil {
		t.Fatal(err)
	}
	goTool := func(args ...string) {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Dir = program
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", args, err, out)
		}
	}
	goTool("mod", "edit", "-replace", "github.com/modsign/modsign="+root)
	goTool("build", "-o", "extern", ".")

	modules := filepath.Join(dir, "modules")
	if err := os.CopyFS(modules, os.DirFS(filepath.Join(root, "testdata/modules/arm64"))); err != nil {
		t.Fatal(err)
	}
	run := func() string { return string(testmod.Run(t, filepath.Join(program, "extern"), modules)) }
	if got, want := run(), "signed 12, failed 0, incomplete: false\ntrusted 12, refused: false\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := os.WriteFile(filepath.Join(modules, "plain/broken.ko"), []byte("no module"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := run(), "signed 12, failed 1, incomplete: true\ntrusted 12, refused: true\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
