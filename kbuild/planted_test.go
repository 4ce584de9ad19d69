package kbuild

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/treedir"
)

// TestPlanted has links at the names of the hook that lead to a file, or a directory,
// outside of the tree: each is refused by its name, and nothing outside is touched.
func TestPlanted(t *testing.T) {
	for name, do := range map[string]func(*Hook) error{
		makefile:          (*Hook).Enable,
		settings:          (*Hook).Enable,
		Dir:               (*Hook).Enable,
		"scripts":         (*Hook).PlaceSignFile,
		unfinished:        func(h *Hook) error { return Begin(h.Objtree, h.Objtree) },
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
			precious := []string{"file", "sign-file", "sign-file.kbuild", "certificate.pem", "receipt-0123456789abcdef.json", "hook.mk", "unfinished", "hashes"}
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
			if planted, ok := errors.AsType[*treedir.PlantedError](err); !ok || planted.Path != path || planted.What != "a symbolic link" {
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
			if all := list(t, outside); len(all) != len("file sign-file sign-file.kbuild certificate.pem receipt-0123456789abcdef.json hook.mk unfinished hashes") {
				t.Errorf("outside of the tree are %s", all)
			}
		})
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
