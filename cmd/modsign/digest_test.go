package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// Two phases on all modules of a kernel: what signs gets the manifest and nothing
// else, and the result is what signing at once writes.
func TestTwoPhasesOfKernel(t *testing.T) {
	testmod.Slow(t, "it reads the modules of a kernel")
	kernels := testmod.Kernels(t)
	i := slices.IndexFunc(kernels, func(k testmod.Kernel) bool { return strings.HasSuffix(k.Modules[0], ".ko") })
	if i < 0 {
		testmod.Missing(t, "a kernel package with plain modules", "run scripts/kernels")
	}
	k := kernels[i]
	root, count := filepath.Join(k.Root, "lib/modules", k.Version), len(k.Modules)
	if raceDetector || testing.Short() { // ten times as slow
		root, count = filepath.Join(root, "kernel/crypto"), 0
		for _, m := range k.Modules {
			if strings.HasPrefix(m, root+"/") {
				count++
			}
		}
	}
	base := memoryDir(t)
	key := testmod.NewKey(t, "rsa:2048")
	keyFile, cert := key.Files(t)

	mustRun := func(cmd *exec.Cmd, want string) {
		t.Helper()
		if r := wait(t, cmd); r.code != 0 || !strings.Contains(r.stderr, want) {
			t.Fatalf("%v: exit code %d, want %q\n%s", cmd.Args, r.code, want, r.stderr)
		}
	}
	manifest, signatures := filepath.Join(base, "manifest"), filepath.Join(base, "signatures")
	mustRun(exec.Command("modsign", "digest", "-o", manifest, root), fmt.Sprintf("of %d modules", count))

	// What signs runs in an empty directory, and gets the manifest through a pipe.
	vault := filepath.Join(base, "vault")
	if err := os.Mkdir(vault, 0o700); err != nil {
		t.Fatal(err)
	}
	sent, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if size := len(sent) / count; size > 512 {
		t.Errorf("the manifest has %d bytes a module", size)
	}
	signDigests := exec.Command("modsign", "sign-digests", "--key", keyFile, "--cert", cert, "-o", "signatures")
	signDigests.Dir, signDigests.Stdin = vault, bytes.NewReader(sent)
	mustRun(signDigests, fmt.Sprintf("signed %d digests with rsa:2048 and sha512", count))
	if err := os.Rename(filepath.Join(vault, "signatures"), signatures); err != nil {
		t.Fatal(err)
	}
	attached, direct := filepath.Join(base, "attached"), filepath.Join(base, "direct")
	signed := fmt.Sprintf("signed %d modules", count)
	mustRun(
		exec.Command("modsign", "attach", "--cert", cert, "--sync", "none", "-o", attached, "-s", signatures, root),
		signed,
	)
	mustRun(
		exec.Command("modsign", "sign", "--key", keyFile, "--cert", cert, "--sync", "none", "-o", direct, root),
		signed,
	)
	if n := sameFiles(t, attached, direct); n != count {
		t.Errorf("compared %d modules of %d", n, count)
	}

	// A wrong line anywhere keeps all of it from being written.
	lines := bytes.SplitAfter(sent, []byte("\n"))
	cut := slices.Concat(lines[:count/2]...)
	cut = append(cut, slices.Concat(lines[count/2+1:]...)...)
	refuse := exec.Command("modsign", "sign-digests", "--key", keyFile, "--cert", cert)
	refuse.Dir, refuse.Stdin = vault, bytes.NewReader(cut)
	want := fmt.Sprintf("stdin: line %d: it counts %d modules, the file has %d: 1 missing", count+1, count, count-1)
	if r := wait(t, refuse); r.code != exitError || r.stdout != "" || !strings.Contains(r.stderr, want) {
		t.Errorf("a line is missing: exit code %d, %d bytes, %s", r.code, len(r.stdout), r.stderr)
	}
	other := filepath.Join(base, "other")
	_, otherCert := testmod.NewKey(t, "rsa:3072").Files(t)
	r := wait(t, exec.Command("modsign", "attach", "--cert", otherCert, "-o", other, "-s", signatures, root))
	want = fmt.Sprintf("%d signatures or modules refused (%d not shown): nothing was written", count, count-20)
	if _, err := os.Stat(other); r.code != exitError || err == nil || !strings.Contains(r.stderr, want) {
		t.Errorf("another certificate: exit code %d, %v\n%s", r.code, err, r.stderr)
	}
	if entries, err := os.ReadDir(vault); err != nil || len(entries) > 0 {
		t.Errorf("left where the key is: %v, %v", entries, err)
	}
}

// memoryDir makes a directory for the test: in memory where there is plenty.
func memoryDir(t *testing.T) string {
	t.Helper()
	var stat syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &stat); err != nil || stat.Bavail*uint64(stat.Bsize) < 4<<30 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "modsign-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// sameFiles compares two trees and returns how many files they have.
func sameFiles(t *testing.T, one, two string) int {
	t.Helper()
	list := func(root string) (names []string) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				names = append(names, strings.TrimPrefix(path, root))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	names := list(one)
	if others := list(two); !slices.Equal(names, others) {
		t.Errorf("%s has %d files, and %s others: %d", one, len(names), two, len(others))
	}
	next := make(chan string)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for name := range next {
				a, err1 := os.ReadFile(one + name)
				b, err2 := os.ReadFile(two + name)
				if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
					t.Errorf("%s differs: %v, %v", name, err1, err2)
				}
			}
		})
	}
	for _, name := range names {
		next <- name
	}
	close(next)
	wg.Wait()
	return len(names)
}
