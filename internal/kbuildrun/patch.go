package kbuildrun

import (
	"bytes"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/modsign/modsign/kbuild"
)

// A directory of patches has the name of the kernel that they were made for and tested
// with. They are tried for later kernels too, up to the one of the next directory.
//
//go:embed patches
var patches embed.FS

const patchName = "module-hashes.patch"

// A Patch adds CONFIG_MODULE_HASHES to the source of a kernel. The program patch applies
// it, and writes a new file for each one that changes: another tree with hard links to the
// same files stays as it is.
type Patch struct {
	Srctree string // absolute
	Version string // of the source, such as 6.12.117
	For     string // the kernel that the patch is made for, such as 6.12

	text  []byte
	files []patchedFile
}

// patchedFile is the part of a patch about one file.
type patchedFile struct {
	name string // below the source tree
	text []byte
}

// OpenPatch returns the patch for a source tree: the newest that is not for newer kernels.
// It does not check whether the patch applies.
func OpenPatch(source string) (*Patch, error) {
	source, err := resolve(source)
	if err != nil {
		return nil, err
	}
	if !kbuild.IsSrctree(source) {
		return nil, notSource(source)
	}
	p := &Patch{Srctree: source}
	var is version
	if p.Version, is, err = sourceVersion(source); err != nil {
		return nil, err
	}
	for _, v := range patchVersions() {
		if compareVersions(v, is) <= 0 {
			p.For = v.String()
		}
	}
	if p.For == "" {
		return nil, fmt.Errorf("%s is Linux %s, and there is no patch for it: modsign has patches for Linux %s",
			source, p.Version, PatchedKernels())
	}
	if p.text, err = patches.ReadFile("patches/linux-" + p.For + "/" + patchName); err != nil {
		return nil, err
	}
	p.files = splitPatch(p.text)
	return p, nil
}

var patchHeader = regexp.MustCompile(`(?m)^--- (?:a/\S+|/dev/null)\n\+\+\+ b/(\S+)\n`)

func splitPatch(text []byte) (files []patchedFile) {
	heads := patchHeader.FindAllSubmatchIndex(text, -1)
	for i, head := range heads {
		end := len(text)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		files = append(files, patchedFile{name: string(text[head[2]:head[3]]), text: text[head[0]:end]})
	}
	return files
}

// A version is the first two numbers of a kernel's.
type version [2]int

func (v version) String() string { return fmt.Sprintf("%d.%d", v[0], v[1]) }

func compareVersions(a, b version) int { return slices.Compare(a[:], b[:]) }

// patchVersions returns the kernels that there are patches for, the oldest first.
func patchVersions() (all []version) {
	dirs, _ := patches.ReadDir("patches")
	for _, dir := range dirs {
		var v version
		if _, err := fmt.Sscanf(dir.Name(), "linux-%d.%d", &v[0], &v[1]); err == nil {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, compareVersions)
	return all
}

// PatchedKernels names the kernels that there are patches for.
func PatchedKernels() string {
	var all []string
	for _, v := range patchVersions() {
		all = append(all, v.String())
	}
	return names(all)
}

var versionLine = regexp.MustCompile(`(?m)^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)[ \t]*$`)

// sourceVersion reads the version of a source, whole and its first two numbers.
func sourceVersion(source string) (full string, is version, err error) {
	path := filepath.Join(source, "Makefile")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", is, err
	}
	lines := make(map[string]string)
	for _, line := range versionLine.FindAllSubmatch(text, -1) {
		lines[string(line[1])] = string(line[2])
	}
	for i, name := range []string{"VERSION", "PATCHLEVEL"} {
		if is[i], err = strconv.Atoi(lines[name]); err != nil {
			return "", is, fmt.Errorf("%s does not say which kernel this is: its %s is %q", path, name, lines[name])
		}
	}
	full = is.String()
	if lines["SUBLEVEL"] != "" {
		full += "." + lines["SUBLEVEL"]
	}
	return full + lines["EXTRAVERSION"], is, nil
}

// Text returns the patch, for patch -p1.
func (p *Patch) Text() []byte { return bytes.Clone(p.text) }

// A PatchState sorts the files of a patch into three lists.
type PatchState struct {
	With    []string // have the patch
	Without []string // do not have it, and it applies
	Other   []string // do not have it, or only a part of it, and it does not apply
}

// Applied reports whether all files have the patch.
func (s *PatchState) Applied() bool { return len(s.Without)+len(s.Other) == 0 }

// Absent reports whether no file has the patch, and it applies to all of them.
func (s *PatchState) Absent() bool { return len(s.With)+len(s.Other) == 0 }

func (s *PatchState) String() string {
	switch {
	case s.Applied():
		return "applied"
	case s.Absent():
		return "absent"
	case len(s.Other) == 0:
		return "in " + names(s.With) + ", and not in " + names(s.Without)
	}
	return "changed, or does not apply: " + names(s.Other)
}

// names makes a list of files readable.
func names(files []string) string {
	if len(files) < 2 {
		return strings.Join(files, "")
	}
	last := len(files) - 1
	return strings.Join(files[:last], ", ") + " and " + files[last]
}

// State tells which files have the patch: those that it can be removed from.
func (p *Patch) State() (*PatchState, error) {
	program, err := findPatch()
	if err != nil {
		return nil, err
	}
	var state PatchState
	for _, f := range p.files {
		with, _, err := p.try(program, f, "--reverse")
		if err != nil {
			return nil, err
		}
		if with {
			state.With = append(state.With, f.name)
			continue
		}
		fits, _, err := p.try(program, f)
		if err != nil {
			return nil, err
		}
		if fits {
			state.Without = append(state.Without, f.name)
		} else {
			state.Other = append(state.Other, f.name)
		}
	}
	return &state, nil
}

// Apply applies the patch to the files that do not have it, and returns the state before.
// If it does not apply to one of them, Apply writes none.
func (p *Patch) Apply() (before *PatchState, err error) {
	before, err = p.State()
	if err != nil {
		return nil, err
	}
	if len(before.Other) > 0 {
		return before, p.unfit(before)
	}
	if err := p.write(before.Without); err != nil {
		return before, err
	}
	return before, p.prove((*PatchState).Applied, "does not have all of the patch")
}

// Revert removes the patch from the files that have it, and returns the state before. If
// it cannot be removed from one of them, Revert writes none. A source without the patch is
// no error, whether it applies or not.
func (p *Patch) Revert() (before *PatchState, err error) {
	before, err = p.State()
	if err != nil {
		return nil, err
	}
	if len(before.With) == 0 {
		return before, nil
	}
	if len(before.Other) > 0 {
		return before, p.unfit(before, "--reverse")
	}
	if err := p.write(before.With, "--reverse"); err != nil {
		return before, err
	}
	return before, p.prove((*PatchState).Absent, "still has a part of the patch")
}

// prove checks that what was written can be undone.
func (p *Patch) prove(is func(*PatchState) bool, otherwise string) error {
	state, err := p.State()
	if err != nil {
		return err
	}
	if !is(state) {
		return fmt.Errorf("%s %s, though the program patch reported no failure: the patch is %v", p.Srctree, otherwise, state)
	}
	return nil
}

// unfit is the error about files that the program patch can do nothing with.
func (p *Patch) unfit(state *PatchState, direction ...string) error {
	program, err := findPatch()
	if err != nil {
		return err
	}
	var whats []string
	for _, f := range p.files {
		if !slices.Contains(state.Other, f.name) {
			continue
		}
		_, said, err := p.try(program, f, direction...)
		if err != nil {
			return err
		}
		whats = append(whats, f.name+" ("+reason(said)+")")
	}
	what := names(whats)
	if len(state.With) > 0 {
		return fmt.Errorf("%s has the patch in %d of %d files, and a changed one or a part of it in %s: "+
			"put these back as they were, with the patch or without; nothing was written",
			p.Srctree, len(state.With), len(p.files), what)
	}
	return fmt.Errorf("the patch for Linux %s does not apply to %s, which is Linux %s: %s; "+
		"modsign has patches for Linux %s; nothing was written",
		p.For, p.Srctree, p.Version, what, PatchedKernels())
}
