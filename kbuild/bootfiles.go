package kbuild

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// BootFiles returns the files below arch/*/boot that make has made directly from vmlinux.
// When vmlinux changes but keeps its time of modification, make takes them for up to
// date: remove them. BootFiles finds them by the commands that Kbuild saves in .NAME.cmd.
func (t *Tree) BootFiles() ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(t.Objtree, "arch/*/boot"))
	if err != nil {
		return nil, err
	}
	var files []string
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			name, isCmd := strings.CutSuffix(d.Name(), ".cmd")
			if err != nil || !isCmd || !strings.HasPrefix(name, ".") || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			made := filepath.Join(filepath.Dir(path), name[1:])
			line, _, _ := strings.Cut(string(text), "\n")
			if slices.Contains(strings.Fields(line), "vmlinux") && exists(made) {
				files = append(files, made)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}
