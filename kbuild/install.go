package kbuild

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// InstallModPath is INSTALL_MOD_PATH as given, the root of the system to install modules
// for: absolute, relative to the directory where Kbuild runs, or empty for this system.
func (t *Tree) InstallModPath() string {
	path, _ := t.Vars.Lookup("INSTALL_MOD_PATH")
	return path
}

// ModLib returns the directory MODLIB, absolute: INSTALL_MOD_PATH/lib/modules/RELEASE. It
// fails if the kernel has no release yet, or if Kbuild cannot install to the path.
func (t *Tree) ModLib() (string, error) {
	modlib, ok := t.Vars.Command("MODLIB")
	switch {
	case !ok && t.Release == "":
		return "", fmt.Errorf("%s: the kernel has no release yet, and so no directory for modules: run make first", t.Objtree)
	case !ok:
		modlib = t.InstallModPath() + "/lib/modules/" + t.Release
	case modlib == "":
		return "", errors.New("MODLIB is empty: leave it out, or set it to a directory")
	}
	if err := checkInstall(modlib, "INSTALL_MOD_PATH"); err != nil {
		return "", err
	}
	return t.abs(modlib), nil
}

// Destination returns the directory below MODLIB for the modules of this tree, absolute.
// For the kernel's own modules it is kernel, for an external module INSTALL_MOD_DIR, by
// default updates, or extra before Linux 6.3. It fails as ModLib does.
func (t *Tree) Destination() (string, error) {
	modlib, err := t.ModLib()
	if err != nil {
		return "", err
	}
	dir := "kernel"
	if t.ExtMod != "" {
		var ok bool
		if dir, ok = t.Vars.Lookup("INSTALL_MOD_DIR"); !ok {
			if dir, err = t.installModDir(); err != nil {
				return "", err
			}
		}
		if err := checkInstall(dir, "INSTALL_MOD_DIR"); err != nil {
			return "", err
		}
	}
	return filepath.Join(modlib, dir), nil
}

// assignsDir is the line in which a makefile of Kbuild has its default for INSTALL_MOD_DIR.
var assignsDir = regexp.MustCompile(`(?m)^[ \t]*INSTALL_MOD_DIR[ \t]*\?=[ \t]*([A-Za-z0-9_./-]+)[ \t]*$`)

// installModDir is what INSTALL_MOD_DIR is if nobody sets it.
func (t *Tree) installModDir() (string, error) {
	text, err := os.ReadFile(filepath.Join(t.Srctree, "scripts/Makefile.modinst"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if found := assignsDir.FindSubmatch(text); found != nil {
		return string(found[1]), nil
	}
	return "updates", nil
}

// checkInstall refuses a path that Kbuild cannot install to: Kbuild puts it into rules,
// and into commands of the shell, without quotes.
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
		return fmt.Errorf("%q: Kbuild cannot install to a path that begins with '~'; write %s out", path, variable)
	}
	return nil
}
