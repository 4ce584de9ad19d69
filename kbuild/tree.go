package kbuild

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Vars answers what a make's variables are.
type Vars struct {
	Line      map[string]string           // the command line's, as in MakeFlags
	LookupEnv func(string) (string, bool) // the environment, as package os looks it up; nil is an empty one
}

// Command looks a variable up on the command line, for those that Kbuild's
// makefiles assign: MODLIB, KERNELRELEASE, CONFIG_*. Make puts the command line
// into the environment as well, with the references in it resolved.
func (v Vars) Command(name string) (value string, ok bool) {
	value, ok = v.Line[name]
	if ok && strings.Contains(value, "$") {
		if resolved, exported := v.env(name); exported {
			return resolved, true
		}
	}
	return value, ok
}

// Lookup looks a variable up on the command line, and then in the environment,
// for those that Kbuild takes from there too: INSTALL_MOD_PATH, INSTALL_MOD_DIR,
// INSTALL_MOD_STRIP, KCONFIG_CONFIG, DEPMOD.
func (v Vars) Lookup(name string) (value string, ok bool) {
	if value, ok = v.Command(name); ok {
		return value, true
	}
	return v.env(name)
}

func (v Vars) env(name string) (string, bool) {
	if v.LookupEnv == nil {
		return "", false
	}
	return v.LookupEnv(name)
}

// Tree is an object tree, as a call of make sees it.
type Tree struct {
	Objtree string // absolute, without symbolic links
	Srctree string // the same; Objtree itself for a build in the source tree

	// Config is include/config/auto.conf, or .config before there is one, with
	// the command line's CONFIG_* over it; nil where there is neither.
	Config Config
	// Synced says that auto.conf is there, and not older than .config.
	Synced bool

	Release string // of the kernel, as uname -r; empty before the first build
	ExtMod  string // an external module's folder, absolute; empty for the kernel's own modules
	Vars    Vars

	workdir string // where Kbuild runs; relative paths are relative to it
	modules string // the folder of modules.order, and of the modules it names
}

// OpenTree reads the object tree in the folder objtree. For an external module
// extmod is make's M, relative to objtree or absolute; empty for the kernel's
// own modules. A tree without a configuration is fine. It is an error when there
// is no way from the object tree to its source.
func OpenTree(objtree, extmod string, vars Vars) (*Tree, error) {
	objtree, err := resolve(objtree)
	if err != nil {
		return nil, err
	}
	t := &Tree{Objtree: objtree, Vars: vars, workdir: objtree, modules: objtree}
	if t.Srctree, err = srctree(objtree); err != nil {
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

// generated is the line by which a Makefile that Kbuild, or a distribution's
// headers package, puts into an object tree leads to the source.
var generated = regexp.MustCompile(`(?m)^include[ \t]+([^ \t$]+)/Makefile[ \t]*$`)

// IsSrctree reports whether a folder holds a kernel's source. Packages of headers
// without their Kconfig files do not.
func IsSrctree(dir string) bool {
	return allOf([]string{"Makefile", "Kconfig", "scripts/Makefile.modinst"}, func(name string) bool {
		return exists(filepath.Join(dir, name))
	})
}

// srctree finds the source of an object tree.
func srctree(objtree string) (string, error) {
	if IsSrctree(objtree) {
		return objtree, nil
	}
	path := filepath.Join(objtree, "Makefile")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if found := generated.FindSubmatch(text); found != nil {
		source := string(found[1])
		if !filepath.IsAbs(source) {
			source = filepath.Join(objtree, source)
		}
		if source, err = resolve(source); err != nil {
			return "", fmt.Errorf("%s leads to no source tree: %w", path, err)
		}
		return source, nil
	}
	link := filepath.Join(objtree, "source")
	if source, err := resolve(link); err == nil {
		return source, nil
	}
	return "", fmt.Errorf("%s is no kernel source, and no object tree of one: run \"make O=%s\" with a configuration's goal, such as defconfig, in the source tree first", objtree, objtree)
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

// enterExtMod finds where an external module is built. From 6.13 on Kbuild works
// in its folder, or in that which MO names; the top Makefile that can do so knows
// the variable KBUILD_EXTMOD_OUTPUT.
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

// InstallModPath is INSTALL_MOD_PATH as it was given, the root of the system that
// modules are installed for: absolute, or relative to the folder where Kbuild
// runs; empty for this system.
func (t *Tree) InstallModPath() string {
	path, _ := t.Vars.Lookup("INSTALL_MOD_PATH")
	return path
}

// ModLib is the folder MODLIB, absolute: INSTALL_MOD_PATH/lib/modules/RELEASE. It
// is an error when the kernel has no release yet, or when Kbuild cannot take
// the path.
func (t *Tree) ModLib() (string, error) {
	modlib, ok := t.Vars.Command("MODLIB")
	switch {
	case !ok && t.Release == "":
		return "", fmt.Errorf("%s: the kernel has no release yet, and so no folder for its modules: run make first", t.Objtree)
	case !ok:
		modlib = t.InstallModPath() + "/lib/modules/" + t.Release
	case modlib == "":
		return "", errors.New("MODLIB is empty: leave it out, or give it a folder")
	}
	if err := checkInstall(modlib, "INSTALL_MOD_PATH"); err != nil {
		return "", err
	}
	return t.abs(modlib), nil
}

// Destination is the folder below MODLIB for these modules, absolute: kernel,
// or for an external module INSTALL_MOD_DIR, which is updates by default. Errors
// are those of ModLib.
func (t *Tree) Destination() (string, error) {
	modlib, err := t.ModLib()
	if err != nil {
		return "", err
	}
	dir := "kernel"
	if t.ExtMod != "" {
		var ok bool
		if dir, ok = t.Vars.Lookup("INSTALL_MOD_DIR"); !ok {
			dir = "updates"
		}
		if err := checkInstall(dir, "INSTALL_MOD_DIR"); err != nil {
			return "", err
		}
	}
	return filepath.Join(modlib, dir), nil
}

// checkInstall refuses a path that Kbuild cannot install to: it writes it into
// rules, and into the shell's commands, as it is.
func checkInstall(path, variable string) error {
	for _, r := range path {
		what := fmt.Sprintf("%q", r)
		switch {
		case r == ' ':
			what = "a space"
		case notInPath(r):
		case !strings.ContainsRune("%:$&;|<>()'\"`\\*?[", r):
			continue
		}
		return fmt.Errorf("%q: Kbuild cannot install to a path with %s; choose another %s", path, what, variable)
	}
	if strings.HasPrefix(path, "~") {
		return fmt.Errorf("%q: Kbuild cannot be trusted with '~'; write %s out", path, variable)
	}
	return nil
}
