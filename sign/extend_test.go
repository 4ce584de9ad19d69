package sign

import (
	"bytes"
	"crypto"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// TestExtend signs modules of all lengths around a page: the bytes are those of a
// new file, and so are the mode and the time, but the file is the same.
func TestExtend(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA512, false)
	dir, whole := t.TempDir(), t.TempDir()
	then := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	elf := testmod.ELF()
	same, replaced := 0, 0
	before := make(map[string]os.FileInfo)
	for length := len(elf); length < len(elf)+2*markerPage; length += testmod.Rounds(11, 37) {
		name := fmt.Sprintf("m%d.ko", length)
		data := append(bytes.Clone(elf), make([]byte, length-len(elf))...)
		for _, d := range []string{dir, whole} {
			path := filepath.Join(d, name)
			if err := os.WriteFile(path, data, 0o640); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, then, then); err != nil {
				t.Fatal(err)
			}
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		before[name] = info
	}
	sign(t, signer, Source{Roots: []string{dir}}, Options{WriteOptions: WriteOptions{Extend: true}})
	sign(t, signer, Source{Roots: []string{whole}}, Options{})
	for name, old := range before {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(whole, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what a new file would be", name)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !info.ModTime().Equal(then) || info.Mode() != old.Mode() {
			t.Errorf("%s: %v %v", name, info.ModTime(), info.Mode())
		}
		// The marker across the border of two pages is not for one write.
		across := (len(got)-module.TrailerSize)/markerPage != (len(got)-1)/markerPage
		if os.SameFile(info, old) == across {
			t.Errorf("%s of %d bytes: the same file: %v", name, len(got), !across)
		}
		if across {
			replaced++
		} else {
			same++
		}
	}
	if same == 0 || replaced == 0 {
		t.Errorf("%d extended, %d replaced: both are to be seen", same, replaced)
	}
}

// TestExtendKilled is a module as a kill between the two writes leaves it.
func TestExtendKilled(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA512, false)
	dir := t.TempDir()
	path := filepath.Join(dir, "m.ko")
	elf := testmod.ELF()
	if err := os.WriteFile(path, elf, 0o644); err != nil {
		t.Fatal(err)
	}
	sign(t, signer, Source{Roots: []string{path}}, Options{WriteOptions: WriteOptions{Extend: true}})
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	killed := bytes.Clone(want)
	clear(killed[len(elf) : len(killed)-module.TrailerSize])
	if err := os.WriteFile(path, killed, 0o644); err != nil {
		t.Fatal(err)
	}
	summary, _ := sign(t, signer, Source{Roots: []string{path}}, Options{WriteOptions: WriteOptions{Extend: true}})
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) || summary.Replaced != 1 {
		t.Errorf("the next run has not made it whole: %+v, %v", summary, err)
	}
}

// TestExtendNot has what a longer file would not do: another mode, each file on disk
// before it gets its name, and names outside that keep the old module.
func TestExtendNot(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA512, false)
	mode := os.FileMode(0o600)
	for name, opts := range map[string]Options{
		"mode":      {WriteOptions: WriteOptions{Extend: true, Mode: &mode}},
		"sync":      {WriteOptions: WriteOptions{Extend: true, Sync: SyncFile}},
		"elsewhere": {WriteOptions: WriteOptions{Extend: true}},
	} {
		dir := t.TempDir()
		path, outside := filepath.Join(dir, "in", "m.ko"), filepath.Join(dir, "m.ko")
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, testmod.ELF(), 0o644); err != nil {
			t.Fatal(err)
		}
		if name == "elsewhere" {
			if err := os.Link(path, outside); err != nil {
				t.Fatal(err)
			}
		}
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		summary, _ := sign(t, signer, Source{Roots: []string{filepath.Dir(path)}}, opts)
		after, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if summary.Signed != 1 || os.SameFile(before, after) || opts.Mode != nil && after.Mode() != mode {
			t.Errorf("%s: %+v, the same file: %v, mode %v", name, summary, os.SameFile(before, after), after.Mode())
		}
		if old, err := os.ReadFile(outside); name == "elsewhere" && (err != nil || !bytes.Equal(old, testmod.ELF())) {
			t.Errorf("the name outside has not kept its module: %v", err)
		}
	}
}
