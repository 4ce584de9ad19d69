package kbuildrun

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// newTrees makes an empty object tree beside what looks like a source tree.
func newTrees(t *testing.T) *Hook {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &Hook{
		Objtree: filepath.Join(dir, "obj"),
		Srctree: filepath.Join(dir, "src"),
		Program: testmod.Program(t, "true", "coreutils"),
	}
	for _, path := range []string{h.Objtree, filepath.Join(h.Srctree, "scripts")} {
		if err := os.MkdirAll(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func put(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// list returns the names of all files below a directory.
func list(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func TestEnableDisable(t *testing.T) {
	h := newTrees(t)
	for range 2 { // the second time over the first
		if err := h.Enable(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := list(t, h.Objtree), ".modsign/hook.mk GNUmakefile scripts/sign-file"; got != want {
		t.Errorf("the object tree has %s, and should have %s", got, want)
	}
	if got, want := list(t, h.Srctree), ".modsign/objtrees GNUmakefile"; got != want {
		t.Errorf("the source tree has %s, and should have %s", got, want)
	}
	if !Enabled(h.Objtree) || Enabled(h.Srctree) {
		t.Error("the object tree should be enabled, and the source tree not")
	}
	put(t, filepath.Join(h.Objtree, ".config"), "the user's", 0o644)
	if err := h.Disable(); err != nil {
		t.Fatal(err)
	}
	if got, want := list(t, h.Objtree)+list(t, h.Srctree), ".config"; got != want {
		t.Errorf("disable has left %s, and should have left %s", got, want)
	}
}

// TestSharedSource has two object trees of one source.
func TestSharedSource(t *testing.T) {
	h := newTrees(t)
	other := *h
	other.Objtree = filepath.Join(filepath.Dir(h.Objtree), "other")
	inTree := *h
	inTree.Objtree = h.Srctree
	for _, hook := range []*Hook{h, &other, &inTree} {
		if err := hook.Enable(); err != nil {
			t.Fatal(err)
		}
	}
	makefile := filepath.Join(h.Srctree, "GNUmakefile")
	for _, hook := range []*Hook{&inTree, h} {
		if err := hook.Disable(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(makefile); err != nil {
			t.Fatalf("%s has gone while %s needs it", makefile, other.Objtree)
		}
	}
	if err := other.Disable(); err != nil {
		t.Fatal(err)
	}
	if got := list(t, h.Srctree); got != "" {
		t.Errorf("disable has left %s", got)
	}
}

func TestForeignFiles(t *testing.T) {
	for _, name := range []string{"obj/GNUmakefile", "src/GNUmakefile", "obj/.modsign/hook.mk"} {
		t.Run(name, func(t *testing.T) {
			h := newTrees(t)
			path := filepath.Join(filepath.Dir(h.Objtree), name)
			put(t, path, "all:\n", 0o644)
			before := list(t, filepath.Dir(h.Objtree))
			if err := h.Enable(); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("Enable over a foreign file: %v", err)
			}
			if after := list(t, filepath.Dir(h.Objtree)); after != before {
				t.Errorf("a refused Enable has written: %s", after)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := h.Enable(); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			put(t, path, string(text)+"# mine\n", 0o644)
			before = list(t, filepath.Dir(h.Objtree))
			if err := h.Disable(); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("Disable with a changed file: %v", err)
			}
			if after := list(t, filepath.Dir(h.Objtree)); after != before {
				t.Errorf("a refused Disable has removed something: %s is left of %s", after, before)
			}
		})
	}
}

// TestSignFilePlaced has Kbuild build sign-file before and after enable.
func TestSignFilePlaced(t *testing.T) {
	h := newTrees(t)
	path := filepath.Join(h.Objtree, "scripts/sign-file")
	built := "#!/bin/sh\necho built $*\n"
	for round := range 2 {
		put(t, path, built, 0o755)
		if err := h.Enable(); err != nil {
			t.Fatal(err)
		}
		if out := testmod.Run(t, path, "a"); len(out) != 0 { // true says nothing
			t.Errorf("round %d: modsign was not called: %s", round, out)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.PlaceSignFile(); err != nil {
			t.Fatal(err)
		}
		if again, err := os.Stat(path); err != nil || !os.SameFile(info, again) {
			t.Error("what was in its place was written again, and make will take it for new")
		}
		put(t, path, built, 0o755)
		states, err := h.States()
		if err != nil || states[path] != Foreign {
			t.Errorf("Kbuild's program in its place is not noticed: %v, %v", states, err)
		}
	}
	if err := h.PlaceSignFile(); err != nil {
		t.Fatal(err)
	}
	// On a machine without modsign the program that Kbuild built does it.
	script, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, path, strings.ReplaceAll(string(script), h.Program, "/nonexistent/modsign"), 0o755)
	if out := testmod.Run(t, path, "a", "b"); strings.TrimSpace(string(out)) != "built a b" {
		t.Errorf("Kbuild's program was not called: %s", out)
	}
	if err := os.WriteFile(path, script, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.Disable(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != built {
		t.Errorf("disable has not put Kbuild's program back: %q, %v", text, err)
	}
	if got := list(t, h.Objtree); got != "scripts/sign-file" {
		t.Errorf("disable has left %s", got)
	}
}

func TestPathsThatMakeCannotTake(t *testing.T) {
	for _, name := range []string{"with space", "colon:", "percent%", "hash#", "dollar$", "quote'"} {
		h := newTrees(t)
		h.Objtree = filepath.Join(h.Objtree, name)
		if err := h.Enable(); err == nil || !strings.Contains(err.Error(), "make cannot read a path") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestHookUnderMake asks the real make which goals go to modsign.
func TestHookUnderMake(t *testing.T) {
	make := testmod.Program(t, "make", "make")
	h := newTrees(t)
	h.Program = filepath.Join(h.Srctree, "modsign")
	put(t, h.Program, "#!/bin/sh\necho \"modsign $*\"\n", 0o755)
	h.Options = []string{"--lifetime=1h0m0s"}
	if err := h.Enable(); err != nil {
		t.Fatal(err)
	}
	plain := "default:\n\t@echo Makefile $@\n.DEFAULT:\n\t@echo Makefile $@\n"
	put(t, filepath.Join(h.Srctree, "Makefile"), plain, 0o644)
	put(t, filepath.Join(h.Objtree, "Makefile"), plain, 0o644)
	called := "modsign kbuild make --make=" + make + " --program=" + h.Program + " --objtree=" + h.Objtree
	for _, test := range []struct{ dir, args, want string }{
		{h.Objtree, "", called + " --lifetime=1h0m0s --"},
		{h.Objtree, "all modules_install", called + " --lifetime=1h0m0s -- all modules_install"},
		{h.Objtree, "defconfig all", called + " --lifetime=1h0m0s -- defconfig all"},
		{h.Objtree, "defconfig", "Makefile defconfig"},
		{h.Objtree, "help", "Makefile help"},
		{h.Objtree, "-s kernelrelease image_name", "Makefile kernelrelease\nMakefile image_name"},
		{h.Objtree, "certs/system_certificates.o", called + " --lifetime=1h0m0s -- certs/system_certificates.o"},
		{h.Objtree, "kernel/fork.o", "Makefile kernel/fork.o"},
		{h.Objtree, "M=/ext", "Makefile default"},
		{h.Objtree, "M=/ext clean", "Makefile clean"},
		{h.Objtree, "M=/ext modules_install", called + " --extmod=/ext --lifetime=1h0m0s -- modules_install"},
		{h.Srctree, "O=../obj clean", called + " --lifetime=1h0m0s -- clean"},
		{h.Srctree, "all", "Makefile all"},
		{h.Srctree, "O=../elsewhere all", "Makefile all"},
		{h.Srctree, "sub_make_done=1 O=../obj all", "Makefile all"},
	} {
		out := testmod.Run(t, make, append([]string{"--no-print-directory", "-C", test.dir}, strings.Fields(test.args)...)...)
		if got := strings.Join(strings.Fields(string(out)), " "); got != strings.Join(strings.Fields(test.want), " ") {
			t.Errorf("make %s:\n%s\nand should be\n%s", test.args, got, test.want)
		}
	}
}
