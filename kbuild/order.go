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

// Modules returns the modules that modules_install installs: their names below
// Destination without the suffix of a compression, such as
// drivers/net/dummy.ko, in the order of the file modules.order, each once. A
// kernel without CONFIG_MODULES has none.
//
// It is an error when nothing is built, or when a module would be installed
// outside of Destination. What is wrong with modules.order is told with its
// line.
func (t *Tree) Modules() ([]string, error) {
	if t.Config != nil && !t.Config.Bool("MODULES") {
		return nil, nil
	}
	path := filepath.Join(t.modules, "modules.order")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no modules are built: %w; run make first", err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := parseOrder(f, t.workdir, t.modules)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Before 5.3 the names were those below MODLIB, as they are to this day in
	// the file that is installed. But kernel is also a folder of the source.
	inKernel := func(name string) bool { return strings.HasPrefix(name, "kernel/") }
	if t.ExtMod == "" && len(names) > 0 && allOf(names, inKernel) && !exists(filepath.Join(t.Objtree, names[0])) {
		for i, name := range names {
			names[i] = strings.TrimPrefix(name, "kernel/")
		}
	}
	return names, nil
}

// InstalledModules returns the modules that an installed kernel came with: their names
// below its folder, which is lib/modules/RELEASE, in the order of modules.order there,
// such as kernel/drivers/net/dummy.ko. The error is [fs.ErrNotExist] where there is no
// such file.
func InstalledModules(modlib string) ([]string, error) {
	return ReadInstalledOrder(filepath.Join(modlib, "modules.order"))
}

// ReadInstalledOrder is [InstalledModules] for the file modules.order itself.
func ReadInstalledOrder(path string) ([]string, error) {
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
//	drivers/net/dummy.ko	// before, and where modules are installed
//
// The lines are paths from base, and the names it returns are paths from root,
// all with .ko. It refuses what does not lie below root.
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

// notInPath tells what a path in modules.order cannot hold: make would split the
// line there.
func notInPath(r rune) bool { return r <= ' ' || r == 0x7f }
