// Package kerneltest lets a real Linux kernel judge modules: it builds one from
// Debian's source, boots it under QEMU, loads modules there and returns what the
// kernel said. It is imported by _test.go files alone; its own tests have the
// build tag kerneltest and are run by scripts/kernel-test, which installs what is
// needed and unpacks the source.
//
// # The cache
//
// Source and builds lie outside of the repository, in the folder that
// scripts/kernels uses as well:
//
//	$MODSIGN_CACHE/linux/VERSION/source          the source as packaged, whole or not there
//	$MODSIGN_CACHE/linux/VERSION/NAME-KEY/       an object tree (O=), KEY being a hash of its configuration
//	$MODSIGN_CACHE/linux/VERSION/NAME-KEY.log    what make said there
//	$MODSIGN_CACHE/linux/VERSION/NAME-KEY.lock   held by the test that uses it
//	$MODSIGN_CACHE/linux/VERSION/NAME-KEY.config the configuration as it was before Reconfigure
//
// Another name or another configuration is another object tree, and a full build
// of some minutes. An object tree that is there is built again by make, which has
// little to do. [Tree.Reconfigure] changes the configuration of a tree in place: it
// is for changes that make can follow with a relink, such as another format of
// compressed modules or other built-in certificates.
//
// # The kernel
//
// [Base] is a configuration for a kernel that judges modules: MODULE_SIG_FORCE,
// MODULE_DECOMPRESS, the digests and keys that sign-file knows, a dozen small
// modules, a serial console, and else as little as possible.
//
// # The judgement
//
// [Boot] puts the modules and a loader of our own (the command in the folder init)
// into an initramfs. The loader calls finit_module(2) for one after the other and
// unloads what has been loaded, so that the same module may come again and again. A
// [Verdict] is the errno and what the kernel logged meanwhile. A kernel that
// panics, hangs or leaves a case out fails the test.
package kerneltest

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/testmod"
)

// Base is what a configuration begins with: lines of a .config, on top of
// tinyconfig. A later line about the same symbol wins.
//
//go:embed base.config
var Base string

// Source returns the folder of the kernel's source. It is to be built out of
// tree only: other tests use it.
func Source(t testing.TB) string {
	t.Helper()
	cache, err := testmod.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, _ := filepath.Glob(filepath.Join(cache, "linux", "*", "source"))
	switch len(found) {
	case 0:
		testmod.Missing(t, "the kernel's source", "run scripts/kernel-test")
	case 1:
		return found[0]
	}
	t.Fatalf("more than one source of the kernel: %s: run scripts/kernel-test, which keeps the newest", strings.Join(found, ", "))
	return ""
}

// A Tree is an object tree of the kernel. Until the test that asked for it ends, it
// is locked.
type Tree struct {
	Srctree, Objtree string
	Log              string // what make says is appended to this file
}

// Image is where make leaves the kernel that boots.
func (tree *Tree) Image() string { return filepath.Join(tree.Objtree, "arch/x86/boot/bzImage") }

// Configure returns the object tree of that name and configuration as it is, with
// no more done than to configure it: again, when it was reconfigured since.
func Configure(t testing.TB, name, config string) *Tree {
	t.Helper()
	return configure(t, Source(t), name, config)
}

func configure(t testing.TB, source, name, config string) *Tree {
	t.Helper()
	key := sha256.Sum256([]byte(config))
	objtree := filepath.Join(filepath.Dir(source), fmt.Sprintf("%s-%x", name, key[:6]))
	tree := &Tree{Srctree: source, Objtree: objtree, Log: objtree + ".log"}
	lock(t, objtree+".lock")
	// The configuration as Kconfig has completed it is kept beside the tree.
	completed := objtree + ".config"
	want, err := os.ReadFile(completed)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(objtree, 0o755)
		if err == nil {
			tree.Make(t, "tinyconfig")
			tree.Reconfigure(t, config)
			want, err = os.ReadFile(tree.config())
		}
		if err == nil {
			err = os.WriteFile(completed+".new", want, 0o644)
		}
		if err == nil {
			err = os.Rename(completed+".new", completed)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(objtree, 0o755); err != nil {
		t.Fatal(err)
	}
	if is, err := os.ReadFile(tree.config()); err != nil || !bytes.Equal(is, want) {
		if err := os.WriteFile(tree.config(), want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

func (tree *Tree) config() string { return filepath.Join(tree.Objtree, ".config") }

// Reconfigure adds lines to the configuration. It fails the test unless all of them
// hold once Kconfig has completed it.
func (tree *Tree) Reconfigure(t testing.TB, lines string) {
	t.Helper()
	f, err := os.OpenFile(tree.config(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("\n" + lines)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	tree.Make(t, "olddefconfig")
	config, err := os.ReadFile(tree.config())
	if err != nil {
		t.Fatal(err)
	}
	is := symbols(string(config))
	for symbol, value := range symbols(lines) {
		if is[symbol] != value {
			t.Fatalf("%s: %s=%s is wanted, and Kconfig makes it %q: what does it depend on?", tree.config(), symbol, value, is[symbol])
		}
	}
}

// symbols reads the lines of a configuration. A symbol that is not set has the value
// "", as if it were not there.
func symbols(config string) map[string]string {
	values := make(map[string]string)
	for line := range strings.Lines(config) {
		line = strings.TrimSpace(line)
		if symbol, value, ok := strings.Cut(line, "="); ok && strings.HasPrefix(symbol, "CONFIG_") {
			values[symbol] = value
		} else if symbol, ok := strings.CutSuffix(strings.TrimPrefix(line, "# "), " is not set"); ok {
			values[symbol] = ""
		}
	}
	return values
}

// Make runs make for the object tree, in the source tree and with O=, as many jobs
// as there are processors, and returns what it wrote. A failure fails the test.
func (tree *Tree) Make(t testing.TB, args ...string) []byte {
	t.Helper()
	begin := time.Now()
	cmd := exec.Command(testmod.Program(t, "make", "make"), append([]string{"-C", tree.Srctree, "O=" + tree.Objtree, fmt.Sprintf("-j%d", runtime.NumCPU())}, args...)...)
	out, err := cmd.CombinedOutput()
	log, openErr := os.OpenFile(tree.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if openErr != nil {
		t.Fatal(openErr)
	}
	_, writeErr := fmt.Fprintf(log, "== %s\n%s", strings.Join(cmd.Args, " "), out)
	if err := errors.Join(writeErr, log.Close()); err != nil {
		t.Fatal(err)
	}
	what := strings.TrimSpace("make " + strings.Join(args, " "))
	if err != nil {
		t.Fatalf("%s in %s: %v; all of it is in %s\n%s", what, tree.Objtree, err, tree.Log, tail(out))
	}
	t.Logf("%s in %s: %s", what, filepath.Base(tree.Objtree), time.Since(begin).Round(time.Second/10))
	return out
}

// tail returns the last lines of a program's output.
func tail(out []byte) []byte {
	lines := bytes.SplitAfter(out, []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-40):], nil)
}

// lock waits for a lock on a file and holds it until the test ends.
func lock(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return
	}
	t.Logf("waiting for the run that holds %s", path)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return
		}
		if err != unix.EINTR {
			t.Fatalf("%s: %v", path, err)
		}
	}
}
