package kbuild

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A system below a root directory has absolute links, which lead to its own files.
func TestOpenInstalled(t *testing.T) {
	t.Parallel()
	root := makeTree(t, map[string]string{
		"usr/lib/modules/6.12/modules.order": "kernel/a.ko\nkernel/b.ko\n",
		"boot/config-6.12":                   "CONFIG_MODULE_SIG_HASH=\"sha384\"\n",
		"usr/src/vmlinux":                    "",
	})
	for link, text := range map[string]string{"lib": "/usr/lib", "usr/lib/modules/6.12/build": "/usr/src"} {
		if err := os.Symlink(text, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	k, err := OpenInstalled(root, "6.12")
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(root, "usr/lib/modules/6.12"); k.ModLib != want || k.Root != root || k.Release != "6.12" {
		t.Errorf("%+v, want the modules in %s", k, want)
	}
	if names, err := k.Modules(); err != nil || !slices.Equal(names, []string{"kernel/a.ko", "kernel/b.ko"}) {
		t.Errorf("%q, %v", names, err)
	}
	if config, err := k.Config(); err != nil || config.SigHash() != "sha384" {
		t.Errorf("%v, %v", config, err)
	}
	if path, err := k.Image(); err != nil || path != filepath.Join(root, "usr/src/vmlinux") {
		t.Errorf("%s, %v", path, err)
	}
	if err := os.Remove(filepath.Join(root, "usr/src/vmlinux")); err != nil {
		t.Fatal(err)
	}
	if path, err := k.Image(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without an image: %s, %v", path, err)
	}
	for release, want := range map[string]error{"6.13": fs.ErrNotExist, "..": ErrRelease, "6.12/build": ErrRelease} {
		if _, err := OpenInstalled(root, release); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", release, err, want)
		}
	}
	if _, err := OpenInstalled(filepath.Join(root, "nowhere"), "6.12"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a root: %v", err)
	}
}

func TestIsModLib(t *testing.T) {
	t.Parallel()
	root := makeTree(t, map[string]string{"modules/6.12/x": "", "stage/modules.dep": "", "other/x": ""})
	for dir, want := range map[string]bool{"modules/6.12": true, "stage": true, "other": false} {
		if IsModLib(filepath.Join(root, dir)) != want {
			t.Errorf("%s: %t, want %t", dir, !want, want)
		}
	}
}
