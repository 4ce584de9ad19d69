package kbuildrun

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

// A recorder is a front that notes what it is told.
type recorder struct{ lines []string }

func (r *recorder) Say(format string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func (r *recorder) Note(format string, args ...any) { r.Say("note: "+format, args...) }

func (r *recorder) Sign(context.Context, *keygen.Pair, crypto.Hash, sign.Options, Pass) error {
	return errors.New("nothing is signed here")
}

func (r *recorder) Prove(context.Context, sign.Options, Pass) error {
	return errors.New("nothing is proven here")
}

func (r *recorder) Hash(context.Context, hashlist.Source, hashlist.BuildOptions) (*hashlist.Built, error) {
	return nil, errors.New("nothing is hashed here")
}

func (r *recorder) Embedded(e *Embedding)             { r.Say("embedded: %v", e) }
func (r *recorder) Unsigned(extmod string, why error) { r.Say("unsigned: %s: %v", extmod, why) }
func (r *recorder) Rejected(rejected hashlist.Result) { r.Say("rejected: %v", rejected) }
func (r *recorder) said(text string) bool             { return strings.Contains(strings.Join(r.lines, "\n"), text) }

// TestRun has a real make reach goals of a Makefile that tells which goals each make is
// for. No key is configured.
func TestRun(t *testing.T) {
	make := testmod.Program(t, "make", "make")
	const makefile = `$(info make $(MAKECMDGOALS) $(if $(filter command,$(origin CONFIG_MODULE_SIG_ALL)),unsigned,)$(filter-out 0,$(MAKELEVEL)))
%:; $(if $(filter broken,$@),@exit 1,@:)
all:; @:
`
	objtree := makeTree(t, map[string]string{
		"Makefile": makefile, "Kconfig": "", "scripts/Makefile.modinst": "",
		"include/config/auto.conf":      "CONFIG_MODULES=y\nCONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_ALL=y\n",
		"include/config/kernel.release": "6.12.0\n",
	})
	t.Chdir(objtree)
	for _, test := range []struct {
		flags, goals string
		makes        string // the goals of each
		status       int
	}{
		{"", "", "", 0},
		{"", "defconfig all modules_install install", "defconfig|all|modules_install unsigned|install", 0},
		{"", "vmlinux modules", "vmlinux modules", 0},
		{"", "bindeb-pkg", "scripts|bindeb-pkg", 0},
		{"", "clean all", "clean|all", 0},
		{"", "kernelrelease broken install", "kernelrelease|broken", 2},
		{"k", "kernelrelease broken install", "kernelrelease|broken|install", 2},
		{"n", "modules_install all", "all", 0},
		{"n", "bindeb-pkg", "bindeb-pkg", 0},
	} {
		var out bytes.Buffer
		front := new(recorder)
		d := Driver{
			Objtree: objtree, Make: make, Flags: ParseMakeFlags(test.flags), Front: front,
			System: System{
				Environ: []string{"PATH=" + os.Getenv("PATH"), "MAKELEVEL=7", "MAKEFLAGS=" + test.flags},
				Stdout:  &out, Stderr: &out,
			},
		}
		err := d.Run(t.Context(), strings.Fields(test.goals))
		var makes []string
		for line := range strings.Lines(out.String()) {
			if goals, ok := strings.CutPrefix(line, "make "); ok {
				makes = append(makes, strings.TrimSpace(goals))
			}
		}
		if got := strings.Join(makes, "|"); got != test.makes {
			t.Errorf("make -%s %s: the makes are %q, want %q\n%s", test.flags, test.goals, got, test.makes, out.String())
		}
		exit, failed := errors.AsType[*ExitError](err)
		if failed && exit.Status() != test.status || failed != (test.status != 0) || !failed && err != nil {
			t.Errorf("make -%s %s: %v, want status %d", test.flags, test.goals, err, test.status)
		}
		said := front.said("would run " + make + " -f Makefile modules_install")
		if said != strings.HasPrefix(test.goals, "modules_install") {
			t.Errorf("make -%s %s says %q", test.flags, test.goals, front.lines)
		}
	}
}

// TestRunWarns has directories with modules that an interrupted install left.
func TestRunWarns(t *testing.T) {
	objtree := makeTree(t, map[string]string{
		"Makefile": "%:; @:\nall:; @:\n", "Kconfig": "", "scripts/Makefile.modinst": "", "include/config/auto.conf": "",
		"include/config/kernel.release": "6.12.0\n",
	})
	root := filepath.Join(objtree, "root")
	modlib := filepath.Join(root, "lib/modules/6.12.0")
	if err := os.MkdirAll(modlib, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := MarkInstallStarted(t.Context(), objtree, Mark{Dir: filepath.Join(modlib, "kernel")}); err != nil {
		t.Fatal(err)
	}
	t.Chdir(objtree)
	for goals, warned := range map[string]bool{"all": true, "modules_install": false, "clean": true} {
		front := new(recorder)
		d := Driver{
			Objtree: objtree, Make: testmod.Program(t, "make", "make"), Front: front,
			Flags:  MakeFlags{Vars: map[string]string{"INSTALL_MOD_PATH": root}},
			System: System{Environ: []string{"PATH=" + os.Getenv("PATH")}},
		}
		if err := d.Run(t.Context(), []string{goals}); err != nil {
			t.Errorf("%s: %v", goals, err)
		}
		if front.said("modules in "+modlib+"/kernel may be unsigned") != warned {
			t.Errorf("make %s says %q", goals, front.lines)
		}
	}
}

// TestRunHashed has a kernel with hashes: one make is enough if it changes nothing.
func TestRunHashed(t *testing.T) {
	make := testmod.Program(t, "make", "make")
	for does, want := range map[string]string{":": "all", "touch a.ko": "all|vmlinux modules"} {
		objtree := makeTree(t, map[string]string{
			"Makefile": "$(info make $(MAKECMDGOALS))\nvmlinux modules:; @:\nall:; @" + does + "\n",
			"Kconfig":  "", "scripts/Makefile.modinst": "", "modules.order": "a.o\n", "a.ko": "", "vmlinux": "",
			"include/config/auto.conf":      "CONFIG_MODULES=y\nCONFIG_MODULE_HASHES_LIST=y\n",
			"include/config/kernel.release": "6.12.0\n",
		})
		t.Chdir(objtree)
		for _, name := range []string{"modules.order", "a.ko", "vmlinux", "include/config/auto.conf"} {
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(name, old, old); err != nil {
				t.Fatal(err)
			}
		}
		then := time.Now().Add(-time.Minute)
		if err := errors.Join(WriteHashList(objtree, []byte("list")), os.Chtimes(HashList, then, then)); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		d := Driver{
			Objtree: objtree, Make: make, Front: new(recorder),
			System: System{Environ: []string{"PATH=" + os.Getenv("PATH")}, Stdout: &out, Stderr: &out},
		}
		// After a change it would hash, for which the recorder is no front.
		if err := d.Run(t.Context(), []string{"all"}); (err != nil) != (does != ":") {
			t.Errorf("%s: %v", does, err)
		}
		var makes []string
		for line := range strings.Lines(out.String()) {
			if goals, ok := strings.CutPrefix(line, "make "); ok {
				makes = append(makes, strings.TrimSpace(goals))
			}
		}
		if got := strings.Join(makes, "|"); got != want {
			t.Errorf("%s: the makes are %q, want %q", does, got, want)
		}
	}
}
