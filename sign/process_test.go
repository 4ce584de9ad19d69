package sign

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/verify"
)

// again runs the calling test once more in a process of its own, with value in
// the environment, where child returns it.
func again(t testing.TB, value string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v")
	// The race detector would have it wait for a second at its end.
	cmd.Env = append(os.Environ(), "SIGN_TEST_CHILD="+value, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// child is what the process was given by again; empty in the first process.
func child() string { return os.Getenv("SIGN_TEST_CHILD") }

// finish runs a child to its end, hands on why it failed, and returns what it
// logged.
func finish(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	switch {
	case strings.Contains(string(out), "--- SKIP"):
		testmod.Missing(t, "something that the other process needs", string(out))
	case err != nil || !strings.Contains(string(out), "--- PASS"):
		t.Errorf("the other process: %v\n%s", err, out)
	}
	return string(out)
}

// parent is where a child tells the first process something, which reads it from
// what startChild returns.
func parent() *os.File { return os.NewFile(3, "parent") }

func startChild(t testing.TB, cmd *exec.Cmd) io.Reader {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd.ExtraFiles = []*os.File{w}
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// saveSigner leaves a key for the child, which loads it with loadSigner.
func saveSigner(t testing.TB, dir string) *Signer {
	t.Helper()
	key := testmod.NewKey(t, "rsa:2048")
	if err := os.WriteFile(filepath.Join(dir, "key"), slices.Concat(key.KeyPEM, key.CertPEM), 0o644); err != nil {
		t.Fatal(err)
	}
	return newSigner(t, "rsa:2048", crypto.SHA256, false)
}

func loadSigner(t testing.TB, dir string) *Signer {
	t.Helper()
	block, rest := pem.Decode(read(t, filepath.Join(dir, "key")))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(rest)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(key.(crypto.Signer), cert, SignerOptions{Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// killAfter kills a child when it has told of so many steps, and a pause later.
func killAfter(t testing.TB, cmd *exec.Cmd, progress io.Reader, steps int, pause time.Duration) {
	t.Helper()
	if _, err := io.ReadFull(progress, make([]byte, steps)); err != nil {
		t.Fatalf("the other process ended early: %v", err)
	}
	time.Sleep(pause)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
}

// A run that is killed leaves every module old or new, and the next one does the
// rest and clears away what it left.
func TestKill(t *testing.T) {
	testmod.Slow(t, "it kills a run again and again")
	if base := child(); base != "" {
		signer := loadSigner(t, base)
		tree := openTree(t, Source{Roots: []string{filepath.Join(base, "tree")}})
		step := parent()
		step.WriteString("o")
		if _, err := tree.Sign(
			t.Context(), signer,
			Options{WriteOptions: WriteOptions{Jobs: 3, Report: Report{Progress: func(Count, Count) { step.WriteString(".") }}}},
		); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Parallel()
	const (
		plain  = 80
		linked = 10 // files of several names
	)
	kills := 50
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	base := directory(t)
	root := filepath.Join(base, "tree")
	signer := saveSigner(t, base)
	old, groups := make(map[string][]byte), [][]string{}
	steps := 0
	var real []string
	for _, path := range testmod.Testdata(t) {
		if compress.FromName(path) == compress.None {
			real = append(real, path)
		} else if strings.Contains(path, "amd64") {
			old[filepath.Join(root, "packed", filepath.Base(path))] = read(t, path)
			steps++
		}
	}
	for i := range plain {
		old[filepath.Join(root, fmt.Sprintf("sub%d/%03d.ko", i%7, i))] = read(t, real[i%len(real)])
		steps++
	}
	for i := range linked {
		data, names := read(t, real[i%len(real)]), 6
		if i == 0 {
			// The first one to be signed, since it is the largest, and long in being
			// renamed.
			data, names = append(data, make([]byte, 64<<10)...), 150
		}
		var group []string
		for n := range names {
			group = append(group, filepath.Join(root, fmt.Sprintf("linked%d/%d-%d.ko", n%3, i, n)))
			old[group[n]] = data
		}
		groups = append(groups, group)
		steps++
	}
	reset := func() {
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
		for path, data := range old {
			put(t, path, data)
		}
		for _, group := range groups {
			for _, name := range group[1:] {
				if err := errors.Join(os.Remove(name), os.Link(group[0], name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	reset()
	mustSign(t, signer, Source{Roots: []string{root}}, Options{})
	finished := make(map[string][]byte)
	for path := range old {
		finished[path] = read(t, path)
	}

	inTheMiddle, withTemps, apart, completed := 0, 0, 0, 0
	for kill := range kills {
		reset()
		cmd := again(t, base)
		progress := startChild(t, cmd)
		after, pause := random.IntN(steps), 2*time.Millisecond
		if kill%3 == 0 {
			after, pause = 0, 12*time.Millisecond // at the file of many names
		}
		killAfter(t, cmd, progress, 1+after, time.Duration(random.Int64N(int64(pause))))

		olds, news, left := 0, 0, 0
		for path, s := range snapshot(t, root) {
			if !s.Mode.IsRegular() {
				continue
			}
			was, known := old[path]
			switch {
			case !known && atomicfile.IsTemp(filepath.Base(path)):
				left++
			case !known:
				t.Errorf("kill %d: a stray file: %s", kill, path)
			case s.Content == string(was):
				olds++
			case s.Content == string(finished[path]):
				news++
			default:
				t.Errorf("kill %d: %s is neither the old nor the new module", kill, path)
			}
		}
		if olds+news != len(old) {
			t.Errorf("kill %d: %d modules instead of %d", kill, olds+news, len(old))
		}
		if olds > 0 && news > 0 {
			inTheMiddle++
		}
		if left > 0 {
			withTemps++
		}
		if slices.ContainsFunc(groups, func(group []string) bool { return !sameInode(t, group...) }) {
			apart++
		}

		summary := mustSign(t, signer, Source{Roots: []string{root}}, Options{Existing: []Existing{Replace, Skip}[kill%2]})
		completed += summary.RecoveredLinks
		if summary.Signed+summary.Skipped != len(old) {
			t.Errorf("run again: %+v", summary)
		}
		for path, s := range snapshot(t, root) {
			if s.Mode.IsRegular() && s.Content != string(finished[path]) {
				t.Errorf("kill %d: after the next run, %s is not as it should be", kill, path)
			}
		}
		for _, group := range groups {
			if !sameInode(t, group...) || stateOf(t, group[0]).Links != uint64(len(group)) {
				t.Errorf("kill %d: after the next run, %s and its other names are not one file", kill, group[0])
			}
		}
		if t.Failed() {
			return
		}
	}
	t.Logf(
		"of %d kills, %d met a tree half done, %d left temporary files, %d came between the names of one file; %d names were completed",
		kills,
		inTheMiddle,
		withTemps,
		apart,
		completed,
	)
	if !testing.Short() && (inTheMiddle < kills/5 || withTemps == 0) {
		t.Error("too few kills met the middle of a run")
	}
}

// A run that compresses and is killed leaves of every module the old one, the new
// one under its new name, or both, and the next one leaves the new ones alone.
func TestKillCompress(t *testing.T) {
	testmod.Slow(t, "it kills a run again and again")
	var names []string
	for i := range 60 {
		names = append(names, fmt.Sprintf("sub%d/%02d.ko", i%7, i))
	}
	source := func(base string) Source {
		return Source{Roots: []string{filepath.Join(base, "tree")}, Names: names, Compress: compress.Gzip}
	}
	if base := child(); base != "" {
		signer := loadSigner(t, base)
		tree := openTree(t, source(base))
		step := parent()
		step.WriteString("o")
		if _, err := tree.Sign(
			t.Context(), signer,
			Options{WriteOptions: WriteOptions{Jobs: 3, Report: Report{Progress: func(Count, Count) { step.WriteString(".") }}}},
		); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Parallel()
	kills := testmod.Rounds(20, 4)
	strace := testmod.Program(t, "strace", "strace")
	devNull, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer devNull.Close()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	base := directory(t)
	root := filepath.Join(base, "tree")
	signer := saveSigner(t, base)
	real := slices.DeleteFunc(
		testmod.Testdata(t),
		func(path string) bool { return compress.FromName(path) != compress.None },
	)
	other := filepath.Join(root, "sub0/not-named.ko")
	reset := func() {
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
		for i, name := range names {
			put(t, filepath.Join(root, name), read(t, real[i%len(real)]))
		}
		put(t, other, testmod.ELF())
	}
	reset()
	old := snapshot(t, root)
	mustSign(t, signer, source(base), Options{})
	finished := snapshot(t, root)

	inTheMiddle, withTemps, both := 0, 0, 0
	for kill := range kills {
		reset()
		cmd := again(t, base)
		if kill%4 > 1 { // where an old module is about to be removed
			cmd.Args = append(
				[]string{strace, "-f", "-o", "/dev/null", "-e", "inject=unlinkat:signal=KILL", cmd.Path},
				cmd.Args[1:]...)
			cmd.Path = strace
			cmd.ExtraFiles = []*os.File{devNull}
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Fatalf("the other process was not killed: %s", out)
			}
		} else {
			progress := startChild(t, cmd)
			killAfter(t, cmd, progress, 1+random.IntN(len(names)), time.Duration(random.Int64N(int64(3*time.Millisecond))))
		}

		now, done, left := snapshot(t, root), 0, 0
		for path, s := range now {
			switch {
			case atomicfile.IsTemp(filepath.Base(path)):
				left++
			case s.Content != old[path].Content && s.Content != finished[path].Content:
				t.Errorf("kill %d: %s is neither an old nor a new module", kill, path)
			}
		}
		for _, name := range names {
			_, plain := now[filepath.Join(root, name)]
			_, packed := now[filepath.Join(root, name+".gz")]
			switch {
			case !plain && !packed:
				t.Errorf("kill %d: %s is lost", kill, name)
			case plain && packed:
				both++
			case packed:
				done++
			}
		}
		if done > 0 && done < len(names) {
			inTheMiddle++
		}
		if left > 0 {
			withTemps++
		}
		again := source(base)
		if kill%2 > 0 { // without names
			again.Names = nil
			if err := os.Remove(other); err != nil {
				t.Fatal(err)
			}
		}
		s := mustSign(t, signer, again, Options{Existing: []Existing{Replace, Skip}[kill%2]})
		if s.Signed+s.Skipped != len(names) {
			t.Errorf("run again: %+v", s)
		}
		now = snapshot(t, root)
		for path, was := range finished {
			if now[path].Content != was.Content && (kill%2 == 0 || path != other) {
				t.Errorf("kill %d: after the next run, %s is not as it should be", kill, path)
			}
			delete(now, path)
		}
		for path := range now {
			t.Errorf("kill %d: after the next run there is %s", kill, path)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf(
		"of %d kills, %d met a tree half done and %d left temporary files; %d modules were there twice",
		kills,
		inTheMiddle,
		withTemps,
		both,
	)
	if both == 0 || !testing.Short() && (inTheMiddle < kills/5 || withTemps == 0) {
		t.Error("too few kills met the middle of a run")
	}
}

// A second process keeps out of what a first one has, which it names.
func TestLocked(t *testing.T) {
	if roots := child(); roots != "" {
		in, out, _ := strings.Cut(roots, " > ")
		openTree(t, Source{Roots: strings.Fields(in), Output: out})
		parent().WriteString("o")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	dir := t.TempDir()
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	at := func(names string) []string {
		var paths []string
		for _, name := range strings.Fields(names) {
			paths = append(paths, filepath.Join(dir, name))
		}
		return paths
	}
	tests := []struct {
		theirs, theirOutput string
		ours, ourOutput     string
		locked              bool
	}{
		{"tree", "", "tree", "", true},
		{"tree", "", "tree/sub", "", true},
		{"tree/sub", "", "tree", "", true},
		{"tree", "", "tree/a.ko", "", true},
		{"tree/a.ko", "", "tree", "", true},
		{"tree/a.ko", "", "tree/a.ko", "", true},
		{"tree/a.ko", "", "tree/b.ko", "", false},
		{"tree/a.ko", "", "tree/hard.ko", "", true}, // one file
		{"tree/a.ko tree/hard.ko", "", "tree/b.ko", "", false},
		{"tree/sub", "", "tree2", "", false},
		{"tree", "", "link", "", true},
		{"tree", "out", "tree", "", true},
		{"tree", "out", "tree", "out", true},
		{"tree", "out", "tree", "out2", false},
		{"tree", "out", "tree2", "out", true},
		{"tree", "", "tree", "out", true},
	}
	for _, test := range testmod.Few(tests, 4) {
		for _, path := range []string{"tree/a.ko", "tree/b.ko", "tree/sub/c.ko", "tree2/d.ko", "out/e.ko"} {
			put(t, filepath.Join(dir, path), testmod.ELF())
		}
		os.Remove(filepath.Join(dir, "tree/hard.ko"))
		os.Link(filepath.Join(dir, "tree/a.ko"), filepath.Join(dir, "tree/hard.ko"))
		os.Symlink("tree", filepath.Join(dir, "link"))

		join := func(names, output string) Source {
			source := Source{Roots: at(names)}
			if output != "" {
				source.Output = filepath.Join(dir, output)
			}
			return source
		}
		theirs := join(test.theirs, test.theirOutput)
		cmd := again(t, strings.Join(theirs.Roots, " ")+" > "+theirs.Output)
		hold, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		progress := startChild(t, cmd)
		if _, err := io.ReadFull(progress, make([]byte, 1)); err != nil {
			t.Fatalf("%+v: the other process did not open: %v", test, err)
		}
		before := snapshot(t, dir)
		tree, err := Open(t.Context(), join(test.ours, test.ourOutput))
		if err == nil {
			tree.Close()
		}
		locked, is := errors.AsType[*atomicfile.LockedError](err)
		switch {
		case is != test.locked || !is && err != nil:
			t.Errorf("%+v: %v", test, err)
		case is && !strings.Contains(locked.Holder, fmt.Sprintf("(pid %d)", cmd.Process.Pid)):
			t.Errorf("%+v: the holder, %d, is not named: %v", test, cmd.Process.Pid, err)
		case is:
			unchanged(t, "locked", dir, before, false)
		}
		hold.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%+v: %v", test, err)
		}
		mustSign(t, signer, join(test.ours, test.ourOutput), Options{WriteOptions: WriteOptions{Sync: SyncNone}})
	}
}

// inMountNamespace runs the calling test once more where it may mount, and
// reports whether that is the process it is in: the caller returns if not.
func inMountNamespace(t testing.TB) bool {
	t.Helper()
	if child() != "" {
		return true
	}
	apart := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if os.Geteuid() != 0 {
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		return cmd
	}
	if err := apart(exec.Command(testmod.Program(t, "true", "coreutils"))).Run(); err != nil {
		testmod.Missing(t, fmt.Sprintf("a mount namespace (%v)", err), "run as root, or allow user namespaces")
	}
	finish(t, apart(again(t, "apart")))
	return false
}

func mount(t testing.TB, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
}

func TestNoSpace(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	small := t.TempDir()
	mount(t, "tmpfs", small, "tmpfs", 0, "size=1m")
	noise := make([]byte, 200<<10) // does not compress
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	elf := append(testmod.ELF(), noise...)
	// fill leaves room for so many bytes.
	filler := filepath.Join(small, "filler")
	fill := func(room int64) {
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := io.Copy(f, zeros{})
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if err := f.Truncate(n - room); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []compress.Format{compress.None, compress.Gzip, compress.XZ, compress.Zstd} {
		path := filepath.Join(small, "a.ko"+f.Suffix())
		put(t, path, compressed(t, f, elf))
		fits := filepath.Join(small, "fits.ko")
		put(t, fits, testmod.ELF())
		fill(64 << 10)
		before := snapshot(t, small)
		delete(before, fits)
		// One after the other: the large one would take the room of the small one while it is tried.
		summary, results := sign(t, signer, Source{Roots: []string{small}}, Options{WriteOptions: WriteOptions{Jobs: 1}})
		if summary.Signed != 1 || summary.Failed != 1 || !errors.Is(results[0].Err, syscall.ENOSPC) {
			t.Errorf("%v: %+v: %v", f, summary, results[0].Err)
		}
		if !bytes.Equal(read(t, fits), signed(t, signer, testmod.ELF())) {
			t.Errorf("%v: what fits is not signed", f)
		}
		if err := os.Remove(fits); err != nil {
			t.Fatal(err)
		}
		unchanged(t, "no space for "+f.String(), small, before, false)
		if err := File(t.Context(), signer, path, "", FileOptions{}); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("File: %v", err)
		}
		unchanged(t, "File", small, before, false)

		fill(0)
		before = snapshot(t, small)
		_, results = sign(t, signer, Source{Roots: []string{path}}, Options{Detached: true})
		if !errors.Is(results[0].Err, syscall.ENOSPC) {
			t.Errorf("%v, detached: %v", f, results[0].Err)
		}
		if err := File(t.Context(), signer, path, "", FileOptions{Save: true}); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("File with Save: %v", err)
		}
		unchanged(t, "detached", small, before, false)
		if err := errors.Join(os.Remove(path), os.Remove(filler)); err != nil {
			t.Fatal(err)
		}
	}

	// A large module, decompressed, finds no place.
	t.Setenv("TMPDIR", small)
	path := filepath.Join(t.TempDir(), "large.ko.zst")
	put(t, path, compressed(t, compress.Zstd, append(testmod.ELF(), make([]byte, module.DefaultMemory)...)))
	before := stateOf(t, path)
	_, results := sign(t, signer, Source{Roots: []string{path}}, Options{})
	if !errors.Is(results[0].Err, syscall.ENOSPC) {
		t.Errorf("no place for a large module: %v", results[0].Err)
	}
	if stateOf(t, path) != before {
		t.Error("the large module was changed")
	}
	if left, err := os.ReadDir(small); err != nil || len(left) > 1 {
		t.Errorf("%v was left (%v)", left, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// mayNotWrite asserts that a file can neither be written to nor made.
func mayNotWrite(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		f.Close()
		t.Fatalf("%s can be written to: this proves nothing", path)
	}
}

func TestReadOnlyMount(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir := t.TempDir()
	for _, name := range []string{"a.ko", "sub/b.ko"} {
		put(t, filepath.Join(dir, name), testmod.ELF())
	}
	mount(t, dir, dir, "", unix.MS_BIND, "")
	mount(t, "", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	mayNotWrite(t, filepath.Join(dir, "a.ko"))
	mayNotWrite(t, filepath.Join(dir, "new"))
	before := snapshot(t, dir)
	for _, opts := range []Options{{}, {Detached: true}} {
		summary, results := sign(t, signer, Source{Roots: []string{dir}}, opts)
		if summary.Failed != 2 || !errors.Is(results[0].Err, syscall.EROFS) {
			t.Errorf("%+v: %v", summary, results[0].Err)
		}
	}
	if err := File(t.Context(), signer, filepath.Join(dir, "a.ko"), "", FileOptions{}); !errors.Is(err, syscall.EROFS) {
		t.Errorf("File: %v", err)
	}
	if s := mustSign(t, signer, Source{Roots: []string{dir}, Output: t.TempDir()}, Options{}); s.Signed != 2 {
		t.Errorf("to another directory: %+v", s)
	}
	unchanged(t, "read-only", dir, before, true)
}

// What one may not do as somebody else.
func TestPermissions(t *testing.T) {
	const nobody = 65534
	if dir := child(); dir != "" {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			t.Fatal(err)
		}
		testPermissions(t, dir)
		return
	}
	needRoot(t)
	base := directory(t)
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{
		"theirs/a.ko": 0o644, "theirs/b.ko.xz": 0o644,
		"mine/good.ko": 0o644, "mine/unreadable.ko": 0o600, "mine/of-root.ko": 0o644, "mine/closed/c.ko": 0o644,
	} {
		path := filepath.Join(base, name)
		put(t, path, compressed(t, compress.FromName(name), testmod.ELF()))
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(
		os.Chown(filepath.Join(base, "mine"), nobody, nobody),
		os.Chown(filepath.Join(base, "mine/good.ko"), nobody, nobody),
		os.Chmod(filepath.Join(base, "mine/closed"), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, base)
	delete(before, filepath.Join(base, "mine/good.ko"))
	finish(t, again(t, base))
	good := filepath.Join(base, "mine/good.ko")
	if bytes.Equal(read(t, good), testmod.ELF()) {
		t.Error("the module that may be signed is not")
	}
	if err := errors.Join(os.Remove(good), os.RemoveAll(filepath.Join(base, "mine/out"))); err != nil {
		t.Fatal(err)
	}
	unchanged(t, "as nobody", base, before, false)
}

func testPermissions(t *testing.T, dir string) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	theirs, mine := filepath.Join(dir, "theirs"), filepath.Join(dir, "mine")
	mayNotWrite(t, filepath.Join(theirs, "a.ko"))
	mayNotWrite(t, filepath.Join(theirs, "new.ko"))
	for _, opts := range []Options{{}, {Detached: true}} {
		summary, results := sign(t, signer, Source{Roots: []string{theirs}}, opts)
		if summary.Failed != 2 || !errors.Is(results[0].Err, fs.ErrPermission) ||
			!errors.Is(results[1].Err, fs.ErrPermission) {
			t.Errorf("%+v: %+v", summary, results)
		}
	}
	err := File(t.Context(), signer, filepath.Join(theirs, "a.ko"), "", FileOptions{})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("File: %v", err)
	}
	_, err = Open(t.Context(), Source{Roots: []string{mine}, Output: filepath.Join(theirs, "out")})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Open with an output directory in theirs: %v", err)
	}

	if f, err := os.Open(filepath.Join(mine, "unreadable.ko")); err == nil {
		f.Close()
		t.Fatal("the unreadable file can be read: this proves nothing")
	}
	summary, results := sign(t, signer, Source{Roots: []string{mine}}, Options{})
	if summary.Signed != 1 || summary.Failed != 3 {
		t.Errorf("%+v: %+v", summary, results)
	}
	for _, r := range results {
		name := filepath.Base(r.Path)
		switch {
		case name == "good.ko" && r.Action != Signed,
			name != "good.ko" && !errors.Is(r.Err, fs.ErrPermission),
			name == "of-root.ko" && !strings.Contains(r.Err.Error(), "cannot keep the owner 0:0"):
			t.Errorf("%+v", r)
		}
	}
	// A copy need not keep the owner.
	summary, _ = sign(t, signer, Source{Roots: []string{theirs}, Output: filepath.Join(mine, "out")}, Options{})
	if summary.Signed != 2 {
		t.Errorf("to another directory: %+v", summary)
	}
}

// Modules of hundreds of MB, plain and compressed, among small ones.
func TestMemory(t *testing.T) {
	t.Parallel()
	const (
		limit  = 256 << 20
		small  = 100
		copies = 4
	)
	size := int64(600 << 20)
	if testmod.WithRace() {
		size = 100 << 20 // the race detector takes memory and time of its own: see what it finds
	}
	if base := child(); base != "" {
		signer := loadSigner(t, base)
		root := filepath.Join(base, "tree")
		if s := mustSign(
			t, signer, Source{Roots: []string{root}}, Options{WriteOptions: WriteOptions{Jobs: 2, Sync: SyncNone}},
		); s.Signed != small+copies {
			t.Errorf("%+v", s)
		}
		t.Logf("signing: %d MiB at the peak", peakMemory(t)>>20)
		if peak := peakMemory(t); peak > limit && !testmod.WithRace() {
			t.Errorf("signing took %d bytes of memory", peak)
		}
		resetPeak(t)
		testVerifyMemory(t, root, filepath.Join(base, "key"))
		t.Logf("verifying: %d MiB at the peak", peakMemory(t)>>20)
		if peak := peakMemory(t); peak > limit && !testmod.WithRace() {
			t.Errorf("verifying took %d bytes of memory", peak)
		}
		return
	}
	testmod.Slow(t, "signs modules of 600 MB")
	base := directory(t)
	saveSigner(t, base)
	root := filepath.Join(base, "tree")
	testdata := testmod.Testdata(t)
	for i := range small {
		path := testdata[i%len(testdata)]
		put(t, filepath.Join(root, fmt.Sprintf("%03d-%s", i, filepath.Base(path))), read(t, path))
	}
	large := filepath.Join(root, "large.ko")
	put(t, large, testmod.ELF())
	if err := os.Truncate(large, size); err != nil {
		t.Fatal(err)
	}
	parallel(t, []string{
		testmod.Program(t, "xz", "xz-utils") + " -0 --check=crc32 <$1 >$1.xz",
		testmod.Program(t, "gzip", "gzip") + " -1n <$1 >$1.gz",
		testmod.Program(t, "zstd", "zstd") + " -q1 --stream-size=$(stat -c %s $1) <$1 >$1.zst",
	}, func(command string) error {
		return execute("/bin/sh", "-c", command, "sh", large)
	})
	cmd := again(t, base)
	cmd.Env = append(cmd.Env, "TMPDIR="+base)
	for line := range strings.Lines(finish(t, cmd)) {
		if strings.Contains(line, " at the peak") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

func testVerifyMemory(t *testing.T, root, cert string) {
	var keys verify.Keyring
	if err := keys.AddFile(cert); err != nil {
		t.Fatal(err)
	}
	_, err := verify.Tree(t.Context(), &keys, []string{root}, verify.Options{Jobs: 2, Result: func(r verify.Result) {
		if r.Verdict != verify.Trusted {
			t.Errorf("%s: %s: %v", r.Path, r.Verdict, r.Err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// peakMemory is the largest part of the process that was in memory at once, in
// bytes. What getrusage says of it would begin with the parent's.
func peakMemory(t testing.TB) int64 {
	t.Helper()
	for line := range strings.Lines(string(read(t, "/proc/self/status"))) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	t.Fatal("/proc/self/status has no VmHWM")
	return 0
}

func resetPeak(t testing.TB) {
	t.Helper()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Logf("the peak cannot be reset, and that of signing counts on: %v", err)
	}
}
