package kbuildrun

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign"
)

// A waiter is a front that calls a function when the driver notes that it waits.
type waiter struct {
	recorder
	waits func()
}

func (w *waiter) Note(format string, args ...any) {
	w.recorder.Note(format, args...)
	if strings.HasPrefix(format, "waiting for another install") {
		w.waits()
	}
}

// newInstall makes a tree with one module, which make installs again and again, and a driver
// that installs to the directory root in it.
func newInstall(t *testing.T, front Front) (d *Driver, modlib string) {
	t.Helper()
	make := testmod.Program(t, "make", "make")
	objtree := makeTree(t, map[string]string{
		"Makefile": "modules_install:\n\t@rm -rf root/lib/modules/6.12.0/kernel\n", "Kconfig": "",
		"scripts/Makefile.modinst": "", "modules.order": "a.o\n", "a.ko": string(testmod.ELF()),
		"include/config/auto.conf":                "CONFIG_MODULES=y\nCONFIG_MODULE_SIG=y\n",
		"include/config/kernel.release":           "6.12.0\n",
		"root/lib/modules/6.12.0/kernel/old/a.ko": "old",
	})
	t.Chdir(objtree)
	var out bytes.Buffer
	return &Driver{
		Objtree: objtree, Make: make, Front: front,
		Flags:  MakeFlags{Silent: true, Vars: map[string]string{"INSTALL_MOD_PATH": "root"}},
		System: System{Environ: []string{"PATH=" + os.Getenv("PATH")}, Stdout: &out, Stderr: &out},
	}, filepath.Join(objtree, "root/lib/modules/6.12.0")
}

// install has the driver install modules, of which do makes nothing.
func (d *Driver) installWith(ctx context.Context, do func() error) error {
	tree, err := d.tree()
	if err != nil {
		return err
	}
	return d.finish(ctx, tree, Step{Install, []string{"modules_install"}}, installStep{
		do: func(*sign.Tree, *lines, sign.Options) error { return do() },
	})
}

// TestInstallWaits has another install at work: nothing is removed before that has ended.
func TestInstallWaits(t *testing.T) {
	front := new(waiter)
	d, modlib := newInstall(t, front)
	lock, err := atomicfile.LockName(filepath.Join(modlib, "modules_install"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	waited := false
	front.waits = func() {
		waited = true
		if !exists(filepath.Join(modlib, "kernel/old/a.ko")) {
			t.Error("the modules of the other install are gone")
		}
		lock.Unlock()
	}
	installed := false
	err = d.installWith(t.Context(), func() error {
		installed = true
		_, err := atomicfile.LockName(filepath.Join(modlib, "modules_install"))
		if _, ok := errors.AsType[*atomicfile.LockedError](err); !ok {
			t.Errorf("another install could begin: %v", err)
		}
		return nil
	})
	if err != nil || !waited || !installed || exists(filepath.Join(modlib, "kernel/old/a.ko")) {
		t.Errorf("error %v, waited %t, installed %t", err, waited, installed)
	}
}

// TestInstallInterrupted ends an install between two modules: those that are missing are
// not called unchanged.
func TestInstallInterrupted(t *testing.T) {
	d, modlib := newInstall(t, new(recorder))
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("interrupted")
	err := d.installWith(ctx, func() error {
		cancel(cause)
		return errors.New("1 module left unchanged")
	})
	want := "interrupted: not all modules are installed in " + modlib + "/kernel; run make modules_install again"
	if !errors.Is(err, cause) || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
	if marks, err := Unfinished(d.Objtree); len(marks) != 1 || err != nil {
		t.Errorf("unfinished are %v, %v", marks, err)
	}
}
