package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
)

// skipped names links that a walk did not follow, since depmod does not. In the directory
// of a kernel's modules they are usual, and not worth a word.
func (u *ui) skipped(links []string) {
	var odd []string
	for _, link := range links {
		if !kbuild.IsModLib(filepath.Dir(link)) {
			odd = append(odd, link)
		}
	}
	if len(odd) > 0 {
		u.Note("links called build or source are not followed, as depmod does not follow them: %s", some(odd))
	}
}

// linkNotes are the notes on what a run found besides modules. done is "signed", say.
func linkNotes(l sign.Links, done string) []string {
	var notes []string
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if n := l.Found - l.Renamed; n > 0 {
		add("%s not followed", plural(n, "symbolic link"))
	}
	if l.Renamed > 0 {
		add("%s renamed with the modules", plural(l.Renamed, "symbolic link"))
	}
	if n := len(l.Behind); n > 0 {
		add("warning: %s behind symbolic links not %s: %s", plural(n, "module"), done, some(l.Behind))
	}
	if n := len(l.Irregular); n > 0 {
		add("warning: %s not %s (not a regular file): %s", plural(n, "module"), done, some(l.Irregular))
	}
	return notes
}

// some is the first of many names.
func some(names []string) string {
	const most = 5
	if len(names) > most {
		names = append(names[:most:most], "...")
	}
	return strings.Join(names, ", ")
}

// depmod is the command that updates a directory.
func depmod(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		abs = dir
	}
	version := filepath.Base(abs)
	base, ok := strings.CutSuffix(filepath.Dir(dir), "/lib/modules")
	if !ok {
		base, ok = strings.CutSuffix(filepath.Dir(abs), "/lib/modules")
	}
	switch {
	case !ok:
		return "run depmod for the modules in " + shell.Quote(dir)
	case base == "" || base == "/usr" && isLink("/lib"):
		return "depmod " + shell.Quote(version)
	}
	return "depmod -b " + shell.Quote(base, version)
}

func isLink(path string) bool {
	_, err := os.Readlink(path)
	return err == nil
}
