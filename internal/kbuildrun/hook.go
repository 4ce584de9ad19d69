package kbuildrun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/modsign/modsign/kbuild"
)

// The files of an enabled tree. GNUmakefile is in the object tree and in the source tree,
// where make O=DIR reads it. All others are in the object tree.
const (
	// Dir is the directory for what the hook keeps.
	Dir = ".modsign"
	// Certificate is the certificate of the one-time key, which Kbuild gets as
	// CONFIG_MODULE_SIG_KEY.
	Certificate = Dir + "/certificate.pem"

	// tokenCertificate is the same for a key in a token.
	tokenCertificate = Dir + "/token.pem"

	// HashList lists, as text, the modules whose hashes vmlinux has.
	HashList = Dir + "/hashes"

	makefile = "GNUmakefile"
	settings = Dir + "/hook.mk"
	objtrees = Dir + "/objtrees" // in the source tree: those that use its GNUmakefile
	signFile = "scripts/sign-file"
	kbuilt   = "scripts/sign-file.kbuild" // the program that Kbuild built
)

// A Hook lets make of an object tree call modsign.
type Hook struct {
	Objtree string   // absolute
	Srctree string   // absolute; equal to Objtree for a build in the source tree
	Program string   // absolute path of modsign
	Options []string // of modsign kbuild make
}

// NewHook returns the hook of an object tree, through which make calls the program. If
// source is empty, it is the one that the object tree leads to or, for an object tree that
// is still empty, the current directory.
func NewHook(objtree, source, program string) (*Hook, error) {
	objtree, err := resolve(objtree)
	if err != nil {
		return nil, err
	}
	if source == "" {
		if source, err = kbuild.FindSrctree(objtree); err != nil {
			if !kbuild.IsSrctree(".") {
				return nil, err
			}
			source = "."
		}
	}
	if source, err = resolve(source); err != nil {
		return nil, err
	}
	if !kbuild.IsSrctree(source) {
		return nil, notSource(source)
	}
	return &Hook{Objtree: objtree, Srctree: source, Program: program}, nil
}

// resolve is what make's realpath does.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

func notSource(dir string) error { return fmt.Errorf("%s is not a kernel source", dir) }

// A State says whose a file of the hook is.
type State string

const (
	Absent  State = "absent"
	Ours    State = "ours"
	Foreign State = "foreign" // another program's, or changed since modsign wrote it
)

// makefiles are the GNUmakefiles of both trees.
func (h *Hook) makefiles() []ownFile {
	files := []ownFile{h.file(makefile)}
	if h.Srctree != h.Objtree {
		files = append(files, ownFile{h.Srctree, makefile})
	}
	return files
}

// file is a file in the object tree.
func (h *Hook) file(name string) ownFile { return ownFile{h.Objtree, name} }

// Enable writes the files of the hook, and replaces those of an earlier Enable. If another
// program wrote one of them, it refuses and writes nothing.
func (h *Hook) Enable() error {
	for _, path := range []string{h.Objtree, h.Srctree, h.Program} {
		if strings.ContainsAny(path, " \t\n%:#$'\"\\") {
			return fmt.Errorf("%q: make cannot read a path with a space, '%%', ':', '#', '$', quote or backslash", path)
		}
	}
	for _, file := range append(h.makefiles(), h.file(settings)) {
		if state, err := file.state(); err != nil {
			return err
		} else if state == Foreign {
			return fmt.Errorf("%s was not written by modsign, or was changed since: move it away first", file)
		}
	}
	if err := h.file(settings).write(h.settings(), 0o644); err != nil {
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

// list adds the object tree to the list in the source tree, or removes it. Trees that are
// no longer enabled go, and so does a list that is empty.
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

// left reports whether any file of Enable is left, as after an interrupted Disable. The
// GNUmakefile in the source tree does not count: other object trees may use it.
func (h *Hook) left() (bool, error) {
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

// An Ending is what End has found.
type Ending struct {
	Enabled bool // modsign was enabled in the object tree
	Key     bool // there was a one-time key
}

// End disables modsign in the object tree and destroys its one-time key, which an earlier
// End may have been interrupted before. Receipts stay.
func (h *Hook) End() (e Ending, err error) {
	if e.Enabled, err = h.left(); err != nil {
		return e, err
	}
	if e.Enabled {
		// The key last: a refusal leaves everything as it was.
		if err := h.Disable(); err != nil {
			return e, err
		}
	} else if !mayHaveKey(h.Objtree) {
		return e, nil
	}
	if e.Key, err = destroyKey(h.Objtree); err != nil {
		return e, err
	}
	_ = Remove(h.Objtree, Dir) // fails while receipts are in it
	return e, nil
}

// Disable removes the files of Enable. If one of them was changed since, it refuses and
// removes nothing.
func (h *Hook) Disable() error {
	for _, file := range append(h.makefiles(), h.file(settings)) {
		if state, err := file.state(); err != nil {
			return err
		} else if state == Foreign {
			return fmt.Errorf("%s was not written by modsign, or was changed since: inspect it and remove it by hand", file)
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

// Enabled reports whether modsign is enabled in an object tree.
func Enabled(objtree string) bool { return ownFile{objtree, settings}.exists() }

// Purge removes what the hook made and mrproper leaves behind. The hook stays.
func (h *Hook) Purge() error {
	return errors.Join(h.file(kbuilt).remove(), h.file(unfinished).remove())
}

// States returns the state of each file of the hook, by its path.
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
