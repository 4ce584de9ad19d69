package kbuildrun

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

var (
	failedHunk = regexp.MustCompile(`(?m)^Hunk #(\d+) FAILED`)
	countHunks = regexp.MustCompile(`(?m)^\d+ out of (\d+) hunks? FAILED`)
)

// reason shortens what patch says about a file.
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

// findPatch finds GNU patch. Other programs of that name have fewer options.
func findPatch() (string, error) {
	program, err := exec.LookPath("patch")
	if err != nil {
		return "", fmt.Errorf("the program patch is missing: install the package patch (%w)", err)
	}
	if out, err := exec.Command(program, "--version").Output(); err != nil || !bytes.HasPrefix(out, []byte("GNU patch ")) {
		return "", fmt.Errorf("%s is not GNU patch: install the package patch", program)
	}
	return program, nil
}

// try reports whether patch would change one file, and returns what it said.
func (p *Patch) try(program string, f patchedFile, direction ...string) (fits bool, said string, err error) {
	return p.run(program, f.text, append([]string{"--dry-run"}, direction...)...)
}

// run calls patch, without fuzz: the lines around each change must be those of the patch,
// anywhere in the file. Similar lines may mean something else.
func (p *Patch) run(program string, text []byte, options ...string) (fits bool, said string, err error) {
	cmd := exec.Command(program, append([]string{
		"--strip=1", "--force", "--fuzz=0", "--get=0", "--read-only=ignore",
		"--no-backup-if-mismatch", "--reject-file=-", "--remove-empty-files", // leave nothing behind
		"--directory=" + p.Srctree,
	}, options...)...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that ^C does not leave the work half done
	out, err := cmd.CombinedOutput()
	said = strings.TrimSpace(string(out))
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		return false, said, nil // 2 is an error
	}
	if err != nil {
		return false, said, fmt.Errorf("%s in %s: %w: %s", program, p.Srctree, err, said)
	}
	return true, said, nil
}

// write lets patch change files that try said it would change.
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
		err = fmt.Errorf("%s is being changed by another program: %s", p.Srctree, said)
	}
	if err != nil {
		return err
	}
	fits, said, err = p.run(program, text, direction...)
	if err == nil && !fits {
		err = errors.New(said)
	}
	if err != nil {
		return fmt.Errorf("%s may now have the patch in some files only, and the next run continues: %w", p.Srctree, err)
	}
	return nil
}

// writable checks for what stops patch in the middle of its work, and what its dry run
// does not try.
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
			return fmt.Errorf("%s is not a directory, and patch follows no links: patch the tree that has the files", next)
		}
		dir = next
	}
	if err := syscall.Access(dir, 2|1); err != nil { // W_OK|X_OK
		return fmt.Errorf("%s cannot be written to: %w; patch a copy of the source, or run as its owner; nothing was written", dir, err)
	}
	return nil
}
