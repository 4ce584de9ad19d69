// Package kbuild reads the build tree of a kernel. Call [OpenTree] first: the [Tree] has
// the configuration and the release, lists the modules, and tells where make
// modules_install puts them. Call [OpenInstalled] for a kernel that a distribution has
// installed.
//
// The package writes nothing, starts no program, and reads the environment only through
// [Vars].
package kbuild

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A Tree is an object tree, as a call of make sees it.
type Tree struct {
	Objtree string // absolute, without symbolic links
	Srctree string // the same; equal to Objtree for a build in the source tree

	// Config is include/config/auto.conf or, before that file is made, .config, with the
	// CONFIG_* variables of the command line over it; nil if the tree has neither file.
	Config Config
	// Synced reports that auto.conf is there and not older than .config.
	Synced bool

	Release string // of the kernel, as uname -r; empty before the first build
	ExtMod  string // directory of an external module, absolute; empty for the kernel's own modules
	Vars    Vars

	workdir string // where Kbuild runs: relative paths start here
	modules string // directory of modules.order and of the modules in it
}

// OpenTree reads the object tree in the directory objtree. For an external module,
// extmod is make's M, absolute or relative to objtree; for the kernel's own modules it is
// empty. A tree without a configuration is no error, a tree that leads to no source is.
func OpenTree(objtree, extmod string, vars Vars) (*Tree, error) {
	objtree, err := resolve(objtree)
	if err != nil {
		return nil, err
	}
	t := &Tree{Objtree: objtree, Vars: vars, workdir: objtree, modules: objtree}
	if t.Srctree, err = FindSrctree(objtree); err != nil {
		return nil, err
	}
	if err := t.readConfig(); err != nil {
		return nil, err
	}
	if err := t.readRelease(); err != nil {
		return nil, err
	}
	if extmod != "" {
		t.ExtMod = t.abs(extmod)
		if err := t.enterExtMod(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// resolve is what make's realpath does.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// readConfig reads auto.conf, which is what Kbuild goes by once it is there.
func (t *Tree) readConfig() error {
	name, _ := t.Vars.Lookup("KCONFIG_CONFIG")
	given := t.abs(cmp.Or(name, ".config"))
	auto := t.abs("include/config/auto.conf")
	config, err := OpenConfig(auto)
	if errors.Is(err, fs.ErrNotExist) {
		config, err = OpenConfig(given)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	} else if err == nil {
		t.Synced, err = notOlder(auto, given)
	}
	if err != nil {
		return err
	}
	overrides := make(map[string]string)
	for name := range t.Vars.Line {
		overrides[name], _ = t.Vars.Command(name)
	}
	t.Config = config.With(overrides)
	return nil
}

// notOlder reports whether make has no reason to make path from source. Packages
// of headers may have no source.
func notOlder(path, source string) (bool, error) {
	from, err := os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	made, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return !made.ModTime().Before(from.ModTime()), nil
}

func (t *Tree) readRelease() error {
	var ok bool
	if t.Release, ok = t.Vars.Command("KERNELRELEASE"); ok {
		return nil
	}
	text, err := os.ReadFile(t.abs("include/config/kernel.release"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	t.Release = strings.TrimSpace(string(text))
	return err
}

// enterExtMod finds where an external module is built. From 6.13 on, Kbuild works in the
// directory of the module, or in the one that MO names. The top Makefile of such a kernel
// has the variable KBUILD_EXTMOD_OUTPUT.
func (t *Tree) enterExtMod() error {
	t.modules = t.ExtMod
	text, err := os.ReadFile(filepath.Join(t.Srctree, "Makefile"))
	if err != nil {
		return err
	}
	if !bytes.Contains(text, []byte("KBUILD_EXTMOD_OUTPUT")) {
		return nil
	}
	output, ok := t.Vars.Command("MO")
	if !ok {
		output, _ = t.Vars.Lookup("KBUILD_EXTMOD_OUTPUT")
	}
	if output != "" {
		t.modules = t.abs(output)
	}
	t.workdir = t.modules
	return nil
}

// abs is where Kbuild finds a path.
func (t *Tree) abs(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(t.workdir, path)
}
