package kbuildrun

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/dirfd"
)

// TestPlanted has links at the names of the hook that lead to a file, or a directory,
// outside of the tree: each is refused by its name, and nothing outside is touched.
func TestPlanted(t *testing.T) {
	for name, do := range map[string]func(*Hook) error{
		makefile:          (*Hook).Enable,
		settings:          (*Hook).Enable,
		Dir:               (*Hook).Enable,
		"scripts":         (*Hook).PlaceSignFile,
		unfinished:        func(h *Hook) error { return MarkInstallStarted(t.Context(), h.Objtree, Mark{Dir: h.Objtree}) },
		HashList:          func(h *Hook) error { return WriteHashList(h.Objtree, []byte("x")) },
		"disable":         (*Hook).Disable,
		"remove":          func(h *Hook) error { return Remove(h.Objtree, Certificate) },
		"receipts":        func(h *Hook) error { return RemoveReceipts(h.Objtree) },
		"purge":           (*Hook).Purge,
		"src/" + objtrees: func(h *Hook) error { return h.Enable() },
	} {
		t.Run(name, func(t *testing.T) {
			h := newTrees(t)
			outside := t.TempDir()
			precious := []string{
				"file", "sign-file", "sign-file.kbuild", "certificate.pem", "receipt-0123456789abcdef.json", "hook.mk",
				"unfinished", "hashes",
			}
			for _, file := range precious {
				put(t, filepath.Join(outside, file), "precious", 0o755)
			}
			path, target := filepath.Join(h.Objtree, name), filepath.Join(outside, "file")
			switch name {
			case "disable", "remove", "receipts", "purge":
				path, target = filepath.Join(h.Objtree, Dir), outside
			case Dir, "scripts":
				target = outside
			case "src/" + objtrees:
				path = filepath.Join(h.Srctree, objtrees)
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			err := do(h)
			if planted, ok := errors.AsType[*dirfd.PlantedError](err); !ok || planted.Path != path ||
				planted.What != "a symbolic link" {
				t.Errorf("error is %v, want one about %s", err, path)
			}
			if to, err := os.Readlink(path); to != target || err != nil {
				t.Errorf("the link leads to %s (%v)", to, err)
			}
			for _, file := range precious {
				if text, err := os.ReadFile(filepath.Join(outside, file)); err != nil || string(text) != "precious" {
					t.Errorf("%s outside of the tree is %q (%v)", file, text, err)
				}
			}
			const planted = "file sign-file sign-file.kbuild certificate.pem receipt-0123456789abcdef.json hook.mk unfinished hashes"
			if all := list(t, outside); len(all) != len(planted) {
				t.Errorf("outside of the tree are %s", all)
			}
		})
	}
}

// TestSwapped has somebody exchange the hook's directory with a link all the time:
// whatever is done in the tree, nothing is done behind the link.
func TestSwapped(t *testing.T) {
	h := newTrees(t)
	outside := t.TempDir()
	dir, link := filepath.Join(h.Objtree, Dir), filepath.Join(h.Objtree, "link")
	hashes, receipt := ownFile{h.Objtree, HashList}, ownFile{h.Objtree, Dir + "/receipt-0123456789abcdef.json"}
	behind := []string{"hashes", "receipt-0123456789abcdef.json"}
	for _, name := range behind {
		put(t, filepath.Join(outside, name), "precious", 0o644)
	}
	put(t, filepath.Join(dir, "something"), "", 0o644) // keeps the directory from being removed
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	ended := make(chan error)
	go func() {
		for !stop.Load() {
			if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	done, refused := 0, 0
	for range 400 {
		errs := []error{hashes.write("ours", 0o644), receipt.write("ours", 0o644)}
		text, err := hashes.read()
		if string(text) == "precious" {
			t.Error("a file behind the link was read")
		}
		errs = append(errs, err, hashes.rename("hashes.old"), hashes.remove(), RemoveReceipts(h.Objtree))
		for _, err := range errs {
			if err == nil {
				done++
			} else if errors.Is(err, dirfd.ErrLink) {
				refused++
			}
		}
	}
	stop.Store(true)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if done == 0 || refused == 0 {
		t.Errorf("%d things were done and %d refused: nothing was tried", done, refused)
	}
	if all := list(t, outside); all != strings.Join(behind, " ") {
		t.Errorf("behind the link are %s", all)
	}
	for _, name := range behind {
		if text, err := os.ReadFile(filepath.Join(outside, name)); err != nil || string(text) != "precious" {
			t.Errorf("%s behind the link is %q (%v)", name, text, err)
		}
	}
}

// TestSignFileLink has a link at scripts/sign-file, as people make one to modsign: it
// is moved aside itself, and comes back.
func TestSignFileLink(t *testing.T) {
	h := newTrees(t)
	outside := filepath.Join(t.TempDir(), "program")
	put(t, outside, "precious", 0o755)
	put(t, filepath.Join(h.Objtree, "scripts/x"), "", 0o644)
	path := filepath.Join(h.Objtree, signFile)
	if err := os.Symlink(outside, path); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.Enable(); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		t.Errorf("sign-file is %v (%v)", info, err)
	}
	if err := h.Disable(); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(path); err != nil || to != outside {
		t.Errorf("sign-file leads to %s (%v)", to, err)
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != "precious" {
		t.Errorf("the program is %q (%v)", text, err)
	}
}
