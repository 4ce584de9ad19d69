package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen/audit"
)

// TestRecordOfKilled kills runs in the middle. Every module that is signed then has its
// line in the record, and another run completes both.
func TestRecordOfKilled(t *testing.T) {
	t.Parallel()
	plain, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	keyFile, certFile := testmod.NewKey(t, "ecdsa:p256").Files(t)
	const modules = 300
	for _, lines := range testmod.Few([]int{100, 1, 200, 299}, 1) {
		dir := t.TempDir()
		record, tree := filepath.Join(dir, "record"), filepath.Join(dir, "tree")
		files := make(map[string][]byte)
		for i := range modules {
			files[fmt.Sprintf("%d/%d.ko", i%7, i)] = plain
		}
		if err := writeTree(tree, files); err != nil {
			t.Fatal(err)
		}
		args := []string{"sign", "-q", "--key", keyFile, "--cert", certFile, "--audit", record, tree}
		cmd := exec.Command("modsign", args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; {
			if seen, _ := recorded(t, record); len(seen) >= lines || time.Now().After(deadline) {
				break
			}
		}
		cmd.Process.Kill()
		_ = cmd.Wait() // it may have ended
		seen, torn := recorded(t, record)
		if len(seen) < lines || torn > 1 {
			t.Fatalf("%d lines, and %d that are not whole", len(seen), torn)
		}
		for name := range files {
			info, err := os.Stat(filepath.Join(tree, name))
			if err != nil {
				t.Fatal(err)
			}
			if info.Size() > int64(len(plain)) && !seen[name] {
				t.Errorf("%s is signed, and not in the record", name)
			}
		}
		if r := modsign(t, args...); r.code != 0 {
			t.Fatalf("the run after the kill: %+v", r)
		}
		if seen, again := recorded(t, record); len(seen) != modules || again != torn {
			t.Errorf("%d modules in the record, and %d lines that are not whole, before %d", len(seen), again, torn)
		}
	}
}

var (
	flushed = regexp.MustCompile(`(?m)fdatasync(\(\d+<.*/record>| resumed>)\)\s+= 0$`)
	renamed = regexp.MustCompile(`(?m)renameat2?\(.*\.ko"`)
)

// TestRecordFirst looks at the system calls of a run that signs one module after the other:
// the line of each is on disk before the module is replaced.
func TestRecordFirst(t *testing.T) {
	t.Parallel()
	strace := testmod.Program(t, "strace", "strace")
	keyFile, certFile := testmod.NewKey(t, "ecdsa:p256").Files(t)
	dir := t.TempDir()
	record, tree, trace := filepath.Join(dir, "record"), filepath.Join(dir, "tree"), filepath.Join(dir, "trace")
	if err := writeTree(tree, testmodules(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(tree, "zst/hello.ko.zst")); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("modsign")
	if err != nil {
		t.Fatal(err)
	}
	r := wait(t, exec.Command(strace, "-f", "-y", "-qq", "-e", "trace=fdatasync,renameat,renameat2", "-o", trace, program,
		"sign", "-q", "-j", "1", "--compress", "none", "--key", keyFile, "--cert", certFile, "--audit", record, tree))
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	calls, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	flushes, renames := 0, 0
	for line := range strings.Lines(string(calls)) {
		switch {
		case flushed.MatchString(line):
			flushes++
		case renamed.MatchString(line):
			if renames++; flushes < renames {
				t.Errorf("module %d is replaced before its line is on disk: %s", renames, line)
			}
		}
	}
	if flushes != 3 || renames != 3 {
		t.Errorf("%d flushes and %d modules, want 3 of each\n%s", flushes, renames, calls)
	}
}

// recorded reads the paths in a record, and counts the lines that are not whole.
func recorded(t *testing.T, path string) (paths map[string]bool, torn int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	paths = make(map[string]bool)
	for in := bufio.NewScanner(bytes.NewReader(data)); in.Scan(); {
		var r audit.Record
		switch err := json.Unmarshal(in.Bytes(), &r); {
		case err == nil:
			paths[r.Path] = true
		case in.Text() != "":
			torn++
		}
	}
	return paths, torn
}
