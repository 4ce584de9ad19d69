package kbuild

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ModulesDir returns the directory in which the build has the modules of [Tree.Modules]: the
// object tree, or that of the external module.
func (t *Tree) ModulesDir() string { return t.modules }

// Modules returns the modules that modules_install installs, each once and in the order of
// modules.order: their names below [Tree.Destination], such as drivers/net/dummy.ko,
// without a suffix of compression. A kernel without CONFIG_MODULES has none.
//
// It fails if nothing is built yet, and if a module would be installed outside of the
// destination. An error about modules.order names the line.
func (t *Tree) Modules() ([]string, error) {
	if t.Config != nil && !t.Config.Bool("MODULES") {
		return nil, nil
	}
	path := filepath.Join(t.modules, "modules.order")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no modules are built yet: %w; run make first", err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := parseOrder(f, t.workdir, t.modules)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Before 5.3 the names began at MODLIB, as they still do in the installed file. But
	// kernel is also a directory of the source.
	inKernel := func(name string) bool { return strings.HasPrefix(name, "kernel/") }
	if t.ExtMod == "" && len(names) > 0 && allOf(names, inKernel) && !exists(filepath.Join(t.Objtree, names[0])) {
		for i, name := range names {
			names[i] = strings.TrimPrefix(name, "kernel/")
		}
	}
	return names, nil
}

// InstalledModules returns the modules that an installed kernel came with, in the order of
// modules.order in its directory lib/modules/RELEASE: their names below that directory,
// such as kernel/drivers/net/dummy.ko. The error is [fs.ErrNotExist] if there is no such
// file.
func InstalledModules(modlib string) ([]string, error) {
	return readInstalledOrder(filepath.Join(modlib, "modules.order"))
}

// readInstalledOrder is [InstalledModules] for the path of modules.order itself.
func readInstalledOrder(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := parseOrder(f, "/", "/")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return names, nil
}

func allOf(names []string, is func(string) bool) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return !is(name) })
}

// parseOrder reads a modules.order, which has a module on each line:
//
//	drivers/net/dummy.o	// from 6.2 on
//	drivers/net/dummy.ko	// before 6.2, and in the installed file
//
// A line is a path relative to base. A name that it returns is relative to root, and ends
// in .ko. It refuses a module that is not below root.
func parseOrder(r io.Reader, base, root string) ([]string, error) {
	var names []string
	seen := make(map[string]bool)
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		stem, ok := strings.CutSuffix(line, ".o")
		if !ok {
			stem, ok = strings.CutSuffix(line, ".ko")
		}
		if !ok || strings.HasSuffix("/"+stem, "/") || strings.ContainsFunc(line, notInPath) {
			return nil, fmt.Errorf("line %d is not a module: %.80q", n, line)
		}
		path := stem + ".ko"
		if !filepath.IsAbs(path) {
			path = filepath.Join(base, path)
		}
		name, err := filepath.Rel(root, path)
		if err != nil || !filepath.IsLocal(name) {
			return nil, fmt.Errorf("line %d is a module outside of %s: %.80q", n, root, line)
		}
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names, lines.Err()
}

// notInPath reports whether a path in modules.order cannot hold r: make would split the
// line there.
func notInPath(r rune) bool { return r <= ' ' || r == 0x7f }
