// Package kerneltest tests modules with a real Linux kernel. It builds a kernel from
// Debian's source, boots it under QEMU, loads modules and returns the kernel's
// verdicts. Only _test.go files import it. Its own tests have the build tag kerneltest;
// scripts/kernel-test runs them, after it installs what they need and unpacks the
// source.
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
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/testmod"
)

// Base is the beginning of each configuration: lines of a .config, on top of
// tinyconfig. The last line about a symbol counts.
//
//go:embed base.config
var Base string

// Source returns the directory of the source of Linux 6.12, which most tests use. Build out
// of tree only, because other tests use the source.
func Source(t testing.TB) string {
	t.Helper()
	return SourceOf(t, "6.12")
}

// SourceOf returns the directory of the source of a series of Linux, in the words of
// scripts/sources: 6.1, 6.12, or 7 for the newest 7.x.
func SourceOf(t testing.TB, series string) string {
	t.Helper()
	cache, err := testmod.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, _ := filepath.Glob(filepath.Join(cache, "linux", series+".*", "source"))
	switch len(found) {
	case 0:
		testmod.Missing(t, "the source of Linux "+series, "run scripts/sources "+series)
	case 1:
		return found[0]
	}
	t.Fatalf("more than one source of Linux %s: %s: remove all but the newest", series, strings.Join(found, ", "))
	return ""
}

// without returns a configuration without the lines about some symbols, which are those
// that not every version of Linux has.
func without(config string, names ...string) string {
	var kept strings.Builder
	for line := range strings.Lines(config) {
		for symbol := range symbols(line) {
			if slices.Contains(names, strings.TrimPrefix(symbol, "CONFIG_")) {
				line = ""
			}
		}
		kept.WriteString(line)
	}
	return kept.String()
}

// A Tree is an object tree of the kernel. It is locked until the end of the test that
// asked for it.
type Tree struct {
	Srctree, Objtree string
	Log              string // file to which the output of make is appended
	Path             string // directory that stands first in PATH of make, if any
}

// Image returns the path of the boot image that make builds.
func (tree *Tree) Image() string { return filepath.Join(tree.Objtree, "arch/x86/boot/bzImage") }

// Configure returns the object tree of Linux 6.12 with that name and configuration. It
// configures the tree again if the configuration has changed since, and builds nothing.
func Configure(t testing.TB, name, config string) *Tree {
	t.Helper()
	return configure(t, Source(t), name, config)
}

func configure(t testing.TB, source, name, config string) *Tree {
	t.Helper()
	key := sha256.Sum256([]byte(config))
	objtree := filepath.Join(filepath.Dir(source), fmt.Sprintf("%s-%x", name, key[:6]))
	tree := &Tree{Srctree: source, Objtree: objtree, Log: objtree + ".log"}
	if strings.Contains(config, "CONFIG_MODULE_SIG_KEY_TYPE_MLDSA_") {
		// Kconfig asks the program whether it knows ML-DSA, and Kbuild has it make the key.
		tree.Path = filepath.Dir(testmod.OpenSSL35(t))
	}
	lock(t, objtree+".lock")
	// The configuration completed by Kconfig is kept beside the tree.
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

// Reconfigure adds lines to the configuration. It fails the test unless all of them are
// still there after Kconfig has completed the configuration.
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
			t.Fatalf("%s: %s=%s became %q in Kconfig; check the dependencies of the symbol", tree.config(), symbol, value,
				is[symbol])
		}
	}
}

// symbols parses the lines of a configuration. A symbol that is not set has the value
// "", like a missing one.
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

// Make runs make for the object tree, in the source tree with O=, with one job for each
// processor, and returns the output. A failure fails the test.
func (tree *Tree) Make(t testing.TB, args ...string) []byte {
	t.Helper()
	begin := time.Now()
	cmd := exec.Command(testmod.Program(t, "make", "make"),
		append([]string{"-C", tree.Srctree, "O=" + tree.Objtree, fmt.Sprintf("-j%d", runtime.NumCPU())}, args...)...)
	if tree.Path != "" {
		cmd.Env = append(cmd.Environ(), testmod.FirstInPath(tree.Path))
	}
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
