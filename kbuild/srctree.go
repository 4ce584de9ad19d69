package kbuild

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// IsSrctree reports whether a directory holds the source of a kernel. Packages of kernel
// headers that lack the Kconfig files do not.
func IsSrctree(dir string) bool {
	return allOf([]string{"Makefile", "Kconfig", "scripts/Makefile.modinst"}, func(name string) bool {
		return exists(filepath.Join(dir, name))
	})
}

// generated is the line by which a Makefile that Kbuild, or a distribution's
// headers package, puts into an object tree leads to the source.
var generated = regexp.MustCompile(`(?m)^include[ \t]+([^ \t$]+)/Makefile[ \t]*$`)

// FindSrctree returns the source tree of an object tree, without symbolic links: the
// object tree itself, the one that its generated Makefile includes, or the target of its
// link named source.
func FindSrctree(objtree string) (string, error) {
	if IsSrctree(objtree) {
		return resolve(objtree)
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
	return "", fmt.Errorf("%s is neither a kernel source nor an object tree of one: "+
		"run \"make O=%[1]s\" with a configuration goal, such as defconfig, in the source tree first", objtree)
}
