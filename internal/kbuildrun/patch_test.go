package kbuildrun

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

var hunkHeader = regexp.MustCompile(`^@@ -(\d+),\d+ \+\d+,\d+ @@`)

// patchable makes the least source that the patch for 6.12 fits.
func patchable(t *testing.T) string { return patchableFor(t, version{6, 12}) }

// patchableFor makes the least source that the patch for a kernel fits: of each file the
// lines that the patch has, where it has them, among others of no meaning.
func patchableFor(t *testing.T, v version) string {
	t.Helper()
	testmod.Program(t, "patch", "patch")
	text, err := patches.ReadFile("patches/linux-" + v.String() + "/" + patchName)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"Kconfig": ""}
	var lines []string
	fill := func(until int) {
		for len(lines) < until-1 {
			lines = append(lines, fmt.Sprintf("# line %d", len(lines)+1))
		}
	}
	for part := range strings.SplitSeq(string(text), "\n--- ") {
		lines = nil
		from, hunks, _ := strings.Cut(part, "\n")
		name, ok := strings.CutPrefix(from, "a/")
		if !ok {
			continue
		}
		for line := range strings.SplitSeq(hunks, "\n") {
			if at := hunkHeader.FindStringSubmatch(line); at != nil {
				start, _ := strconv.Atoi(at[1])
				fill(start)
			} else if strings.HasPrefix(line, " ") || strings.HasPrefix(line, "-") {
				lines = append(lines, line[1:])
			}
		}
		fill(len(lines) + 10)
		if name == "Makefile" {
			copy(lines, []string{
				fmt.Sprint("VERSION = ", v[0]), fmt.Sprint("PATCHLEVEL = ", v[1]), "SUBLEVEL = 3", "EXTRAVERSION =",
			})
		}
		files[name] = strings.Join(lines, "\n") + "\n"
	}
	return makeTree(t, files)
}

// makeTree writes files, named by their paths, into a directory of the test's own, and
// returns the directory without symbolic links.
func makeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		put(t, filepath.Join(root, name), text, 0o644)
	}
	return root
}

// contents returns all files below a directory.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for name := range strings.FieldsSeq(list(t, dir)) {
		path := filepath.Join(dir, name)
		if target, err := os.Readlink(path); err == nil {
			files[name] = "-> " + target
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
	}
	return files
}

// same fails the test unless two sets of files are alike.
func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for name, text := range want {
		if is, ok := got[name]; !ok || is != text {
			t.Errorf("%s: %s has changed, or gone", what, name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s has come", what, name)
		}
	}
}

func openPatch(t *testing.T, source string) *Patch {
	t.Helper()
	p, err := OpenPatch(source)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// edit changes a file as an editor does that writes a new one.
func edit(t *testing.T, path, old, new string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(old)) {
		t.Fatalf("%s does not have %q", path, old)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	put(t, path, strings.Replace(string(text), old, new, 1), 0o644)
}

func TestPatch(t *testing.T) {
	testmod.Slow(t, "it copies a source and patches it in many ways")
	t.Parallel()
	for _, v := range patchVersions() {
		t.Run(v.String(), func(t *testing.T) { testPatch(t, v) })
	}
}

func testPatch(t *testing.T, v version) {
	source := patchableFor(t, v)
	before := contents(t, source)
	p := openPatch(t, source)
	if p.Version != v.String()+".3" || p.For != v.String() {
		t.Errorf("the patch for Linux %s, and the source is %s", p.For, p.Version)
	}
	mode := filepath.Join(source, "scripts/link-vmlinux.sh")
	if err := os.Chmod(mode, 0o555); err != nil {
		t.Fatal(err)
	}

	state, err := p.Apply()
	if err != nil || !state.Absent() {
		t.Fatalf("Apply: %v, %v", state, err)
	}
	after := contents(t, source)
	if got := len(after) - len(before); got != 2 ||
		!strings.Contains(after["kernel/module/Kconfig"], "config MODULE_HASHES\n") {
		t.Errorf("Apply has made %d new files: %s", got, list(t, source))
	}
	if info, err := os.Stat(mode); err != nil || info.Mode().Perm() != 0o555 {
		t.Errorf("%s has lost its mode: %v, %v", mode, info, err)
	}
	if state, err := p.Apply(); err != nil || !state.Applied() {
		t.Errorf("Apply once more: %v, %v", state, err)
	}
	same(t, "Apply once more", contents(t, source), after)

	// Lines above move the others, which patch finds, and leaves nothing behind.
	edit(t, filepath.Join(source, "Makefile"), "VERSION", "# a line\n\n# and another\nVERSION")
	if state, err := p.Revert(); err != nil || !state.Applied() {
		t.Errorf("Revert: %v, %v", state, err)
	}
	edit(t, filepath.Join(source, "Makefile"), "# a line\n\n# and another\n", "")
	same(t, "Revert", contents(t, source), before)
	if state, err := p.Revert(); err != nil || !state.Absent() {
		t.Errorf("Revert once more: %v, %v", state, err)
	}
}

// TestPatchHardLinks patches a copy whose files are those of another tree.
func TestPatchHardLinks(t *testing.T) {
	t.Parallel()
	source := patchable(t)
	if err := os.Chmod(filepath.Join(source, "Makefile"), 0o444); err != nil {
		t.Fatal(err)
	}
	before := contents(t, source)
	copied := filepath.Join(t.TempDir(), "copy")
	testmod.Run(t, "cp", "-al", source, copied)
	p := openPatch(t, copied)
	if _, err := p.Apply(); err != nil {
		t.Fatal(err)
	}
	same(t, "the other tree after Apply", contents(t, source), before)
	if _, err := p.Revert(); err != nil {
		t.Fatal(err)
	}
	same(t, "the copy after Revert", contents(t, copied), before)
	same(t, "the other tree after Revert", contents(t, source), before)
}

// TestPatchInterrupted has a tree in which not all files were reached.
func TestPatchInterrupted(t *testing.T) {
	testmod.Slow(t, "it interrupts the patch at every step")
	t.Parallel()
	source := patchable(t)
	before := contents(t, source)
	p := openPatch(t, source)
	half := func() {
		for _, f := range p.files[:5] {
			if fits, said, err := p.run("patch", f.text); err != nil || !fits {
				t.Fatalf("%v: %s", err, said)
			}
		}
		state, err := p.State()
		if err != nil || len(state.With) != 5 || len(state.Without) != len(p.files)-5 || state.Applied() || state.Absent() {
			t.Fatalf("half a patch: %+v, %v", state, err)
		}
		if said := state.String(); !strings.Contains(said, "in Makefile, ") || !strings.Contains(said, "and not in ") {
			t.Errorf("half a patch: %s", said)
		}
	}
	half()
	if state, err := p.Revert(); err != nil || len(state.With) != 5 {
		t.Errorf("Revert: %+v, %v", state, err)
	}
	same(t, "Revert", contents(t, source), before)
	half()
	if state, err := p.Apply(); err != nil || len(state.With) != 5 {
		t.Errorf("Apply: %+v, %v", state, err)
	}
	if state, err := p.State(); err != nil || !state.Applied() {
		t.Errorf("after Apply: %+v, %v", state, err)
	}
}

// TestPatchRefused has trees that patch can do nothing with: nothing is written.
func TestPatchRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		patched bool // before it is spoilt
		spoil   func(t *testing.T, source string)
		want    []string
	}{
		"another's change": {false, func(t *testing.T, source string) {
			edit(t, filepath.Join(source, "include/linux/module_signature.h"), "PKEY_ID_PKCS7,", "PKEY_ID_PKCS8,")
		}, []string{
			"the patch for Linux 6.12 does not apply to", "Linux 6.12.3: include/linux/module_signature.h (hunk 1 of ",
			"nothing was written",
		}},
		"a change like it": {false, func(t *testing.T, source string) { // fuzz would take it
			edit(
				t, filepath.Join(source, "kernel/module/main.c"),
				"\tmod->sig_ok = info->sig_ok;\n\tif (!mod->sig_ok) {\n",
				"\tmod->sig_ok = info->sig_ok;\n\tif (mod->sig_ok) {\n",
			)
		}, []string{"kernel/module/main.c (hunk 1 of "}},
		"two hunks": {false, func(t *testing.T, source string) {
			edit(t, filepath.Join(source, "Makefile"), "KBUILD_MODULES := 1", "KBUILD_MODULES := y")
			edit(t, filepath.Join(source, "Makefile"), "-o -name '*.ll'", "-o -name '*.l'")
			edit(t, filepath.Join(source, "init/Kconfig"), "def_bool n", "bool")
		}, []string{": Makefile (hunks ", ") and init/Kconfig (hunk 1 of "}},
		"a file of its own": {false, func(t *testing.T, source string) {
			put(t, filepath.Join(source, "kernel/module/hashes.c"), "mine\n", 0o644)
		}, []string{": kernel/module/hashes.c (hunk 1 of "}},
		"a file that is gone": {false, func(t *testing.T, source string) {
			if err := os.Remove(filepath.Join(source, "kernel/module/signing.c")); err != nil {
				t.Fatal(err)
			}
		}, []string{": kernel/module/signing.c (is not there); "}},
		"a file that is a link": {false, func(t *testing.T, source string) {
			path := filepath.Join(source, "kernel/module/signing.c")
			if err := os.Rename(path, path+".real"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("signing.c.real", path); err != nil {
				t.Fatal(err)
			}
		}, []string{": kernel/module/signing.c (", "not a regular file"}},
		"a directory that is a link": {false, func(t *testing.T, source string) {
			path := filepath.Join(source, "kernel")
			if err := os.Rename(path, path+".real"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("kernel.real", path); err != nil {
				t.Fatal(err)
			}
		}, []string{"/kernel is not a directory, and patch follows no links"}},
		"an edit of the patched": {true, func(t *testing.T, source string) {
			edit(t, filepath.Join(source, "kernel/module/signing.c"), "module_hash_proven(", "module_hash_checked(")
		}, []string{"has the patch in ", "in kernel/module/signing.c (hunk", "put these back as they were"}},
		"an edit of the new": {true, func(t *testing.T, source string) {
			edit(t, filepath.Join(source, "kernel/module/hashes.c"), "\n#endif\n", "\n#endif\n/* mine */\n")
		}, []string{"has the patch in ", "in kernel/module/hashes.c (", "put these back as they were"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := patchable(t)
			p := openPatch(t, source)
			if test.patched {
				testmod.Run(t, "sh", "-c", `patch -s -p1 -d "$1" <"$2"`, "sh", source, testmod.WriteFile(t, "p", p.Text()))
			}
			test.spoil(t, source)
			before := contents(t, source)
			_, applied := p.Apply()
			refusals := []error{applied}
			state, reverted := p.Revert()
			if test.patched {
				refusals = append(refusals, reverted)
			} else if reverted != nil || len(state.With) > 0 { // there is nothing to take out
				t.Errorf("Revert: %v, %v", state, reverted)
			}
			for _, err := range refusals {
				for _, want := range test.want {
					if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), source) {
						t.Errorf("%v\nand should have %q", err, want)
					}
				}
			}
			same(t, "after a refusal", contents(t, source), before)
		})
	}
}

func TestPatchVersions(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 0\nEXTRAVERSION = -rc1\n": "6.12 6.12.0-rc1",
		"VERSION = 6\nPATCHLEVEL = 18\nSUBLEVEL = 2\nEXTRAVERSION =\n":      "6.12 6.18.2",
		"VERSION = 6\nPATCHLEVEL = 100\n":                                   "6.12 6.100",
		"VERSION = 7\nPATCHLEVEL = 1\nSUBLEVEL = 4\n":                       "6.12 7.1.4",
		"VERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 13\nEXTRAVERSION =\n":      "7.2 7.2.13",
		"VERSION = 7\nPATCHLEVEL = 20\n":                                    "7.2 7.20",
		"VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 170\nEXTRAVERSION =\n":     "is Linux 6.1.170, and there is no patch for it: modsign has patches for Linux 6.12 and 7.2",
		"VERSION = 5\nPATCHLEVEL = 15\n":                                    "is Linux 5.15, and there is no patch for it: modsign has patches for Linux 6.12 and 7.2",
		"VERSION = 6\n":                                                     `/Makefile does not say which kernel this is: its PATCHLEVEL is ""`,
		"all:\n":                                                            `/Makefile does not say which kernel this is: its VERSION is ""`,
	} {
		root := makeTree(
			t,
			map[string]string{"Makefile": "# SPDX\n" + version, "Kconfig": "", "scripts/Makefile.modinst": ""},
		)
		p, err := OpenPatch(root)
		if err == nil && p.For+" "+p.Version != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v", version, p, err)
		}
	}
	root := makeTree(t, map[string]string{"Makefile": "VERSION = 6\n"})
	for _, dir := range []string{root, filepath.Join(root, "none")} {
		if p, err := OpenPatch(dir); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %+v, %v", dir, p, err)
		}
	}
}

// TestPatchParts looks at all patches: nothing of one is lost among its files.
func TestPatchParts(t *testing.T) {
	t.Parallel()
	dirs, err := patches.ReadDir("patches")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("there are no patches: %v", err)
	}
	for _, dir := range dirs {
		major, minor, _ := strings.Cut(strings.TrimPrefix(dir.Name(), "linux-"), ".")
		p := openPatch(
			t,
			makeTree(
				t,
				map[string]string{
					"Makefile":                 "VERSION = " + major + "\nPATCHLEVEL = " + minor + "\n",
					"Kconfig":                  "",
					"scripts/Makefile.modinst": "",
				},
			),
		)
		var parts []byte
		for _, f := range p.files {
			parts = append(parts, f.text...)
		}
		title := "Authenticate modules by built-in hashes (Linux " + p.For + ")\n"
		if "linux-"+p.For != dir.Name() || !bytes.HasPrefix(p.Text(), []byte(title)) ||
			len(p.files) != bytes.Count(p.Text(), []byte("\n+++ ")) || !bytes.HasSuffix(p.Text(), parts) {
			t.Errorf("%s: the patch for %s has come apart into %d files", dir.Name(), p.For, len(p.files))
		}
	}
}

// TestPatchProgram has no program, or another of its name.
func TestPatchProgram(t *testing.T) {
	p := openPatch(t, patchable(t))
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, want := range []string{"install the package patch", "/patch is not GNU patch"} {
		if _, err := p.Apply(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, and should have %q", err, want)
		}
		put(t, filepath.Join(dir, "patch"), "#!/bin/sh\necho patch 2.0-12u11-Apple\n", 0o755)
	}
}
