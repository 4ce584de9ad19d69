package kbuild

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The patches stand in folders named by the oldest kernel that they are for: one
// for 6.12 is also that of all later ones, up to the next folder's.
//
//go:embed patches
var patches embed.FS

const patchName = "module-hashes.patch"

// Patch is the patch of a kernel's source for CONFIG_MODULE_HASHES. The program
// patch writes it, a new file for each that it changes, so that another tree with
// hard links to the same files stays as it is.
type Patch struct {
	Srctree string // absolute
	Version string // the source's, such as 6.12.117
	For     string // the oldest kernel that the patch is for, such as 6.12

	text  []byte
	files []patchedFile
}

// patchedFile is the part of a patch about one file.
type patchedFile struct {
	name string // below the source tree
	text []byte
}

var patchHeader = regexp.MustCompile(`(?m)^--- (?:a/\S+|/dev/null)\n\+\+\+ b/(\S+)\n`)

// OpenPatch returns the patch for a source tree: the newest that is not for newer
// kernels. It does not tell whether it fits.
func OpenPatch(source string) (*Patch, error) {
	source, err := resolve(source)
	if err != nil {
		return nil, err
	}
	if !IsSrctree(source) {
		return nil, fmt.Errorf("%s is no source of a kernel", source)
	}
	p := &Patch{Srctree: source}
	var is [2]int
	if p.Version, is, err = sourceVersion(source); err != nil {
		return nil, err
	}
	var versions [][2]int
	dirs, err := patches.ReadDir("patches")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		var v [2]int
		if _, err := fmt.Sscanf(dir.Name(), "linux-%d.%d", &v[0], &v[1]); err != nil {
			return nil, fmt.Errorf("internal error: patches/%s: %w", dir.Name(), err)
		}
		versions = append(versions, v)
	}
	slices.SortFunc(versions, compareVersions)
	at, found := slices.BinarySearchFunc(versions, is, compareVersions)
	if !found {
		at--
	}
	if at < 0 {
		return nil, fmt.Errorf("%s is Linux %s, and there is no patch for kernels before %d.%d", source, p.Version, versions[0][0], versions[0][1])
	}
	p.For = fmt.Sprintf("%d.%d", versions[at][0], versions[at][1])
	if p.text, err = patches.ReadFile("patches/linux-" + p.For + "/" + patchName); err != nil {
		return nil, err
	}
	heads := patchHeader.FindAllSubmatchIndex(p.text, -1)
	for i, head := range heads {
		end := len(p.text)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		p.files = append(p.files, patchedFile{name: string(p.text[head[2]:head[3]]), text: p.text[head[0]:end]})
	}
	return p, nil
}

func compareVersions(a, b [2]int) int { return slices.Compare(a[:], b[:]) }

var versionLine = regexp.MustCompile(`(?m)^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)[ \t]*$`)

// sourceVersion reads a source's version, and the first two numbers of it.
func sourceVersion(source string) (version string, is [2]int, err error) {
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
	version = fmt.Sprintf("%d.%d", is[0], is[1])
	if lines["SUBLEVEL"] != "" {
		version += "." + lines["SUBLEVEL"]
	}
	return version + lines["EXTRAVERSION"], is, nil
}

// Text is the patch, for patch -p1.
func (p *Patch) Text() []byte { return bytes.Clone(p.text) }

// PatchState has each file of a patch in one of three lists.
type PatchState struct {
	With    []string // has the patch
	Without []string // has it not, and it would fit
	Other   []string // has it not, or only a part of it, and it would not fit
}

// Applied reports whether all files have the patch.
func (s *PatchState) Applied() bool { return len(s.Without)+len(s.Other) == 0 }

// Absent reports whether no file has the patch, and it would fit all of them.
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
	return "changed, or unfit: " + names(s.Other)
}

// names makes a list of files readable.
func names(files []string) string {
	if len(files) < 2 {
		return strings.Join(files, "")
	}
	last := len(files) - 1
	return strings.Join(files[:last], ", ") + " and " + files[last]
}

// State tells which files have the patch: those that it could be taken out of.
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

// Apply puts the patch into the files that do not have it, and returns what was
// before. Where it does not fit one of them it writes none.
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
	return before, p.prove((*PatchState).Applied, "has not all of the patch")
}

// Revert takes the patch out of the files that have it, and returns what was
// before. Where it cannot be taken out of one of them it writes none. A source of
// which no file has it is no error, whether it would fit or not.
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
	return before, p.prove((*PatchState).Absent, "has something of the patch still")
}

// prove looks whether what was written can be undone.
func (p *Patch) prove(is func(*PatchState) bool, otherwise string) error {
	state, err := p.State()
	if err != nil {
		return err
	}
	if !is(state) {
		return fmt.Errorf("%s %s, though the program patch has reported no failure: the patch is %v", p.Srctree, otherwise, state)
	}
	return nil
}

// unfit is the error of files that patch can do nothing with.
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
		return fmt.Errorf("%s has the patch in %d of %d files, and it has been changed, or is there in part only, in %s: put them back as they were, with the patch or without; nothing was written",
			p.Srctree, len(state.With), len(p.files), what)
	}
	return fmt.Errorf("the patch for Linux %s does not fit %s, which is Linux %s: %s; nothing was written", p.For, p.Srctree, p.Version, what)
}

var (
	failedHunk = regexp.MustCompile(`(?m)^Hunk #(\d+) FAILED`)
	countHunks = regexp.MustCompile(`(?m)^\d+ out of (\d+) hunks? FAILED`)
)

// reason makes a few words of what patch says about a file.
func reason(said string) string {
	if total := countHunks.FindStringSubmatch(said); total != nil {
		var numbers []string
		for _, hunk := range failedHunk.FindAllStringSubmatch(said, -1) {
			numbers = append(numbers, hunk[1])
		}
		if len(numbers) == 1 {
			return "hunk " + numbers[0] + " of " + total[1]
		}
		return "hunks " + names(numbers) + " of " + total[1]
	}
	switch {
	case strings.HasPrefix(said, "can't find file to patch"):
		return "is not there"
	case strings.Contains(said, "is not a regular file"):
		return "is not a regular file"
	}
	if _, rest, ok := strings.Cut(said, "\n"); ok && strings.HasPrefix(said, "checking file") {
		said = rest
	}
	said, _, _ = strings.Cut(said, "\n")
	return said
}

// findPatch finds the program. Others of the name know less.
func findPatch() (string, error) {
	program, err := exec.LookPath("patch")
	if err != nil {
		return "", fmt.Errorf("the program patch is needed, and is not there: install the package patch (%w)", err)
	}
	if out, err := exec.Command(program, "--version").Output(); err != nil || !bytes.HasPrefix(out, []byte("GNU patch ")) {
		return "", fmt.Errorf("%s is not GNU patch, which is needed: install the package patch", program)
	}
	return program, nil
}

// try asks whether patch could do it to one file, and returns what it said.
func (p *Patch) try(program string, f patchedFile, direction ...string) (fits bool, said string, err error) {
	return p.run(program, f.text, append([]string{"--dry-run"}, direction...)...)
}

// run calls patch. It has to find the lines around each change as they are in the
// patch, wherever in the file: what is similar may mean something else.
func (p *Patch) run(program string, text []byte, options ...string) (fits bool, said string, err error) {
	cmd := exec.Command(program, append([]string{
		"--strip=1", "--force", "--fuzz=0", "--get=0", "--read-only=ignore",
		"--no-backup-if-mismatch", "--reject-file=-", "--remove-empty-files", // leave nothing behind
		"--directory=" + p.Srctree,
	}, options...)...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal would leave it half done
	out, err := cmd.CombinedOutput()
	said = strings.TrimSpace(string(out))
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		return false, said, nil // 2 is trouble of another kind
	}
	if err != nil {
		return false, said, fmt.Errorf("%s in %s: %w: %s", program, p.Srctree, err, said)
	}
	return true, said, nil
}

// write has patch write files, of which it is known that it could.
func (p *Patch) write(files []string, direction ...string) error {
	program, err := findPatch()
	if err != nil {
		return err
	}
	var text []byte
	for _, f := range p.files {
		if slices.Contains(files, f.name) {
			if err := p.writable(f.name); err != nil {
				return err
			}
			text = append(text, f.text...)
		}
	}
	if len(text) == 0 {
		return nil
	}
	fits, said, err := p.run(program, text, append([]string{"--dry-run"}, direction...)...)
	if err == nil && !fits {
		err = fmt.Errorf("%s is being changed by something else: %s", p.Srctree, said)
	}
	if err != nil {
		return err
	}
	fits, said, err = p.run(program, text, direction...)
	if err == nil && !fits {
		err = errors.New(said)
	}
	if err != nil {
		return fmt.Errorf("%s may have some files with the patch and some without now, and the next run goes on from there: %w", p.Srctree, err)
	}
	return nil
}

// writable looks for what would stop patch in the middle of its work: it tries
// neither in a dry run.
func (p *Patch) writable(name string) error {
	dir := p.Srctree
	for elem := range strings.SplitSeq(filepath.Dir(name), "/") {
		next := filepath.Join(dir, elem)
		info, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			break // patch makes it
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is not a folder, and patch follows no links: patch the tree that has the files", next)
		}
		dir = next
	}
	if err := syscall.Access(dir, 2|1); err != nil { // W_OK|X_OK
		return fmt.Errorf("%s cannot be written to: %w; patch a copy of the source, or as its owner; nothing was written", dir, err)
	}
	return nil
}
