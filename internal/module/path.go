package module

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"
)

const maxPath = 4096 // PATH_MAX

// CheckPath returns an error unless name is the path of a module in a tree on every
// machine: relative, in its shortest form, inside of the tree, and UTF-8 without
// control characters.
func CheckPath(name string) error {
	switch {
	case name == "" || len(name) > maxPath:
		return fmt.Errorf("path has %d bytes", len(name))
	case !utf8.ValidString(name):
		return errors.New("path is not UTF-8")
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }):
		return errors.New("path with a control character")
	case path.IsAbs(name):
		return errors.New("absolute path")
	case path.Clean(name) != name || !filepath.IsLocal(name) || name == ".":
		return errors.New("path is not in its shortest form, or leaves the tree")
	}
	return nil
}
