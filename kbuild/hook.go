package kbuild

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The files of an enabled tree. GNUmakefile stands in the object tree and in the
// source tree, where make O=DIR reads it; the others in the object tree.
const (
	// Dir is the folder for what the hook keeps.
	Dir = ".modsign"
	// Certificate is the one-time key's certificate, which Kbuild takes for
	// CONFIG_MODULE_SIG_KEY.
	Certificate = Dir + "/certificate.pem"

	// HashList is the list of the modules that vmlinux has the hashes of, as text.
	HashList = Dir + "/hashes"

	makefile = "GNUmakefile"
	settings = Dir + "/hook.mk"
	objtrees = Dir + "/objtrees" // in the source tree: those that use its GNUmakefile
	signFile = "scripts/sign-file"
	kbuilt   = "scripts/sign-file.kbuild" // the program that Kbuild built
)

// Hook is how modsign is enabled in an object tree.
type Hook struct {
	Objtree string   // absolute
	Srctree string   // absolute; the same for a build in the source tree
	Program string   // absolute path of modsign
	Options []string // of modsign kbuild make
}

// NewHook returns the hook of an object tree, by which make calls the program. An
// empty source stands for the one that the object tree leads to or, where the object
// tree is still empty, for the current folder.
func NewHook(objtree, source, program string) (*Hook, error) {
	objtree, err := resolve(objtree)
	if err != nil {
		return nil, err
	}
	if source == "" {
		if source, err = srctree(objtree); err != nil {
			if !IsSrctree(".") {
				return nil, err
			}
			source = "."
		}
	}
	if source, err = resolve(source); err != nil {
		return nil, err
	}
	if !IsSrctree(source) {
		return nil, fmt.Errorf("%s is no source of a kernel", source)
	}
	return &Hook{Objtree: objtree, Srctree: source, Program: program}, nil
}

//go:embed GNUmakefile.in
var hookText string

// HookText is the hook as a makefile, for a call of make with -f. With a program
// it serves a tree in which modsign is not enabled.
func HookText(program string) string {
	text := stamp(strings.Replace(hookText, "@OTHERS@", strings.Join(others, " "), 1))
	if program != "" {
		text = "modsign-program := " + program + "\n" + text
	}
	return text
}

// A stamp is the SHA-256 of a file with @SUM@ for the stamp itself: what has it
// is ours, and as we wrote it.
const sum = "@SUM@"

var stamped = regexp.MustCompile(`(?m)^# modsign kbuild hook, sha256 ([0-9a-f]{64})$`)

func stamp(text string) string {
	digest := sha256.Sum256([]byte(text))
	return strings.Replace(text, sum, hex.EncodeToString(digest[:]), 1)
}

func isStamped(text []byte) bool {
	at := stamped.FindSubmatchIndex(text)
	if at == nil {
		return false
	}
	blank := slices.Concat(text[:at[2]], []byte(sum), text[at[3]:])
	digest := sha256.Sum256(blank)
	return hex.EncodeToString(digest[:]) == string(text[at[2]:at[3]])
}

// State is what a file of the hook is.
type State string

const (
	Absent  State = "absent"
	Ours    State = "ours"
	Foreign State = "foreign" // another's, or changed since we wrote it
)

// makefiles are where a GNUmakefile stands.
func (h *Hook) makefiles() []ownFile {
	files := []ownFile{h.file(makefile)}
	if h.Srctree != h.Objtree {
		files = append(files, ownFile{h.Srctree, makefile})
	}
	return files
}

// file is one in the object tree.
func (h *Hook) file(name string) ownFile { return ownFile{h.Objtree, name} }

// Enable writes the hook's files, over those of an earlier Enable. It refuses a
// file that something else wrote, before it writes any.
func (h *Hook) Enable() error {
	for _, path := range []string{h.Objtree, h.Srctree, h.Program} {
		if strings.ContainsAny(path, " \t\n%:#$'\"\\") {
			return fmt.Errorf("cannot enable modsign with %q: a name that make reads has no space, '%%', ':', '#', '$', quote or backslash", path)
		}
	}
	for _, file := range append(h.makefiles(), h.file(settings)) {
		if state, err := file.state(); err != nil {
			return err
		} else if state == Foreign {
			return fmt.Errorf("%s is there already, and modsign did not write it, or not so: move it away first", file)
		}
	}
	text := stamp(fmt.Sprintf("# modsign kbuild hook, sha256 %s\n#\n# Written by \"modsign kbuild enable\".\nmodsign-program := %s\nmodsign-options := %s\n",
		sum, h.Program, strings.Join(h.Options, " ")))
	if err := h.file(settings).write(text, 0o644); err != nil {
		return err
	}
	if h.Srctree != h.Objtree {
		if err := h.list(true); err != nil {
			return err
		}
	}
	for _, file := range h.makefiles() {
		if err := file.write(HookText(""), 0o644); err != nil {
			return err
		}
	}
	return h.PlaceSignFile()
}

// list puts the object tree into the source tree's list, or takes it out, and
// out goes what is enabled no more. It removes the list when nothing is left.
func (h *Hook) list(in bool) error {
	file := ownFile{h.Srctree, objtrees}
	text, err := file.read()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	trees := slices.DeleteFunc(strings.Split(string(text), "\n"), func(tree string) bool {
		_, err := os.Stat(filepath.Join(tree, settings))
		return tree == "" || tree == h.Objtree || err != nil
	})
	if in {
		trees = append(trees, h.Objtree)
	}
	if len(trees) > 0 {
		return file.write(strings.Join(trees, "\n")+"\n", 0o644)
	}
	return file.remove()
}

// Left reports whether there is anything of what Enable wrote, as after a Disable that
// was interrupted. GNUmakefile in the source tree is not only this object tree's.
func (h *Hook) Left() (bool, error) {
	if Enabled(h.Objtree) {
		return true, nil
	}
	for _, file := range []ownFile{h.file(makefile), h.file(signFile)} {
		state, err := file.link()
		if err != nil {
			return false, err
		}
		others := file.name == makefile && (ownFile{h.Objtree, objtrees}).exists() // use it too
		if state == Ours && !others {
			return true, nil
		}
	}
	return false, nil
}

// Disable removes what Enable wrote, and refuses what has been changed since,
// before it removes any.
func (h *Hook) Disable() error {
	for _, file := range append(h.makefiles(), h.file(settings)) {
		if state, err := file.state(); err != nil {
			return err
		} else if state == Foreign {
			return fmt.Errorf("%s is not, or no more, what modsign wrote: look at it, and remove it yourself", file)
		}
	}
	if err := h.takeSignFile(); err != nil {
		return err
	}
	if err := h.file(settings).remove(); err != nil {
		return err
	}
	if h.Srctree != h.Objtree {
		if err := h.list(false); err != nil {
			return err
		}
	}
	for _, file := range h.makefiles() {
		if Enabled(file.tree) || (ownFile{file.tree, objtrees}).exists() {
			continue // another tree needs it
		}
		if err := file.remove(); err != nil {
			return err
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Enabled reports whether modsign is enabled in an object tree.
func Enabled(objtree string) bool { return ownFile{objtree, settings}.exists() }

// PlaceSignFile puts modsign in the place of the program by which Kbuild signs,
// for the package targets, which install modules past the hook. The program
// itself stays beside it: packages of headers take both along, to machines that
// have no modsign.
func (h *Hook) PlaceSignFile() error {
	file := h.file(signFile)
	state, err := file.link()
	if err != nil {
		return err
	}
	script := h.signFile()
	switch state {
	case Ours:
		if old, err := file.read(); err != nil || bytes.Equal(old, []byte(script)) {
			return err
		}
	case Foreign:
		if err := file.rename(kbuilt); err != nil {
			return err
		}
	}
	return file.write(script, 0o755)
}

// signFile is a script, and no link: the linker would write through one, and
// make would take modsign's age for the program's.
func (h *Hook) signFile() string {
	return stamp(`#!/bin/sh
# modsign kbuild hook, sha256 ` + sum + `
#
# Written by "modsign kbuild enable": signs with modsign, where it is installed,
# and else with the program that Kbuild built.
test -x '` + h.Program + `' && exec '` + h.Program + `' sign-file "$@"
exec "$0.kbuild" "$@"
`)
}

// takeSignFile undoes PlaceSignFile.
func (h *Hook) takeSignFile() error {
	file, old := h.file(signFile), h.file(kbuilt)
	state, err := file.link()
	if err != nil {
		return err
	}
	if state == Foreign { // Kbuild has built it again
		return old.remove()
	}
	if old.exists() {
		return old.rename(signFile)
	}
	if state == Ours {
		return file.remove()
	}
	return nil
}

// Purge removes what mrproper leaves of the hook's work, and leaves the hook.
func (h *Hook) Purge() error {
	return errors.Join(h.file(kbuilt).remove(), h.file(unfinished).remove())
}

// States tells what each file of the hook is.
func (h *Hook) States() (map[string]State, error) {
	states := make(map[string]State)
	for _, file := range append(h.makefiles(), h.file(settings), h.file(signFile)) {
		state, err := file.link()
		if err != nil {
			return nil, err
		}
		states[file.String()] = state
	}
	return states, nil
}
