package kbuildrun

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/kbuild"
)

// unfinished lists the marks of installs under way, a line each: from before the first
// module is installed until the last one is signed.
const unfinished = Dir + "/unfinished"

// A Mark is of an install that has not finished.
type Mark struct {
	Dir    string // the directory of the modules, which need not exist yet: no blank is in it
	ExtMod string // directory of the external module; empty for the kernel's own modules
}

// String returns a line of the file unfinished.
func (m Mark) String() string {
	if m.ExtMod == "" {
		return m.Dir
	}
	return m.Dir + " M=" + m.ExtMod
}

func parseMark(line string) Mark {
	dir, extmod, _ := strings.Cut(line, " M=")
	return Mark{dir, extmod}
}

// command is the command that did not finish.
func (m Mark) command() string {
	if m.ExtMod == "" {
		return "make modules_install"
	}
	return "make M=" + m.ExtMod + " modules_install"
}

// markOf is the mark of the modules that a tree installs.
func markOf(tree *kbuild.Tree) (Mark, error) {
	destination, err := tree.Destination()
	return Mark{destination, tree.ExtMod}, err
}

// gone reports whether someone has removed what was installed. Kbuild removes the directory
// of the kernel's modules itself, but not the one above.
func (m Mark) gone() bool {
	return m.Dir == "" || missing(m.Dir) && missing(filepath.Dir(m.Dir))
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return err != nil
}

// Unfinished returns the marks of interrupted installs, which may have left unsigned
// modules. Those of directories that are gone do not count.
func Unfinished(objtree string) ([]Mark, error) {
	text, err := ownFile{objtree, unfinished}.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var marks []Mark
	for line := range strings.Lines(string(text)) {
		if m := parseMark(strings.TrimSuffix(line, "\n")); !m.gone() {
			marks = append(marks, m)
		}
	}
	return marks, err
}

// MarkInstallStarted notes that modules are about to be installed.
func MarkInstallStarted(ctx context.Context, objtree string, m Mark) error {
	return note(ctx, objtree, m, true)
}

// MarkInstallDone notes that all modules of an install are signed.
func MarkInstallDone(ctx context.Context, objtree string, m Mark) error {
	return note(ctx, objtree, m, false)
}

// note changes one mark and keeps those of other installs, which may begin or end now.
func note(ctx context.Context, objtree string, m Mark, begun bool) error {
	if err := os.MkdirAll(objtree, 0o777); err != nil {
		return err
	}
	lock, err := atomicfile.Wait(ctx, func() (*atomicfile.Lock, error) {
		return atomicfile.LockName(filepath.Join(objtree, filepath.Base(unfinished)))
	}, nil)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	marks, err := Unfinished(objtree)
	if err != nil {
		return err
	}
	marks = slices.DeleteFunc(marks, func(other Mark) bool { return other == m })
	if begun {
		marks = append(marks, m)
	}
	file := ownFile{objtree, unfinished}
	if len(marks) == 0 {
		return file.remove()
	}
	var text strings.Builder
	for _, m := range marks {
		text.WriteString(m.String() + "\n")
	}
	return file.write(text.String(), 0o644)
}
