package sign

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/elfstrip"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// symlink makes a symbolic link, and its directory.
func symlink(t *testing.T, target, link string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
}

// Whoever owns a tree exchanges a directory with a link to somebody else's while the
// modules are signed: nothing but the tree is ever written to.
func TestSwappedDirectory(t *testing.T) {
	signer := newSigner(t, "ecdsa:p256", crypto.SHA256, false)
	dir := t.TempDir()
	elf := testmod.ELF()
	root, victim := filepath.Join(dir, "tree"), filepath.Join(dir, "victim")
	for _, name := range []string{"a.ko", "b.ko", "c.ko", "d.ko"} {
		put(t, filepath.Join(root, "sub", name), elf)
		put(t, filepath.Join(victim, name), elf) // the same bytes, so that they can pass for the module
	}
	symlink(t, victim, filepath.Join(root, "link"))
	before := snapshot(t, victim)

	var stop atomic.Bool
	ended := make(chan error)
	swaps := 0
	go func() {
		a, b := filepath.Join(root, "sub"), filepath.Join(root, "link")
		for !stop.Load() {
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				ended <- err
				return
			}
			swaps++
		}
		ended <- nil
	}()
	signedAny := 0
	for range testmod.Rounds(400, 60) {
		tree, err := Open(t.Context(), Source{Roots: []string{root}})
		if err != nil {
			continue // the directory was a link when it was looked at, or the walk saw both
		}
		s, _ := tree.Sign(t.Context(), signer, Options{WriteOptions: WriteOptions{Sync: SyncNone, Jobs: 4}})
		signedAny += s.Signed
		tree.Close()
	}
	stop.Store(true)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if signedAny == 0 || swaps < 100 {
		t.Errorf("%d modules signed, %d swaps: nothing was tried", signedAny, swaps)
	}
	unchanged(t, "somebody else's directory", victim, before, true)
}

// Links that were planted where modsign makes up names and directories are not
// followed, and what they lead to stays.
func TestPlantedLinks(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	debug := read(t, debugModules(t)[0])
	file, err := elfstrip.Parse(bytes.NewReader(debug), int64(len(debug)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := file.BuildID()
	if err != nil {
		t.Fatal(err)
	}
	buildID := fmt.Sprintf("%x/%x.debug", id[:1], id[1:])
	tests := []struct {
		name   string
		link   string // in the working directory, leads to "victim" or "victim/file"
		target string
		source Source
		opts   Options
	}{
		{"directory of an output", "out/sub", "victim", Source{Output: "out"}, Options{}},
		{"deeper directory of an output", "out/sub", "victim/none", Source{Output: "out"}, Options{}},
		{"copies", "out/sub", "victim", Source{Output: "out", Recompress: true, Compress: compress.XZ}, Options{}},
		{"detached signature", "tree/sub/m.ko.p7s", "victim/file", Source{}, Options{Detached: true}},
		{"detached signature elsewhere", "out/sub/m.ko.p7s", "victim/file", Source{Output: "out"}, Options{Detached: true}},
		{
			"directory of debug files", "debug/sub", "victim", Source{},
			Options{DebugOptions: DebugOptions{SplitDebug: "debug"}},
		},
		{
			"debug file", "debug/sub/m.ko.debug", "victim/file", Source{},
			Options{DebugOptions: DebugOptions{SplitDebug: "debug"}},
		},
		{"build ids", "debug/.build-id", "victim", Source{}, Options{DebugOptions: DebugOptions{SplitDebug: "debug"}}},
		{
			"a build id", "debug/.build-id/" + buildID, "victim/file", Source{},
			Options{DebugOptions: DebugOptions{SplitDebug: "debug"}},
		},
		{"module in an output", "out/sub/m.ko", "victim/file", Source{Output: "out"}, Options{}},
		{
			"directory of a copy", "out/kernel", "victim",
			Source{Output: "out", Below: "kernel", Names: []string{"sub/m.ko"}, Copy: true}, Options{},
		},
		{
			"module of a copy", "out/sub/m.ko", "victim/file", Source{Output: "out", Names: []string{"sub/m.ko"}, Copy: true},
			Options{},
		},
		{"another form of the module", "tree/sub/m.ko.xz", "victim/file", Source{Compress: compress.XZ}, Options{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			put(t, "tree/sub/m.ko", debug)
			put(t, "victim/file", []byte("somebody else's"))
			symlink(t, filepath.Join(dir, test.target), test.link)
			before := snapshot(t, "victim")
			test.source.Roots = []string{"tree"}
			tree := openTree(t, test.source)
			defer tree.Close()
			s, _ := tree.Sign(t.Context(), signer, test.opts)
			if s.Failed != 1 || s.Signed != 0 {
				t.Errorf("%+v", s)
			}
			unchanged(t, "what the link leads to", "victim", before, true)
			if !bytes.Equal(read(t, "tree/sub/m.ko"), debug) {
				t.Error("the module that failed has changed")
			}
			if is, err := os.Readlink(test.link); err != nil || is != filepath.Join(dir, test.target) {
				t.Errorf("the link is %q (%v)", is, err)
			}
		})
	}
}

// Copies of a module have one build id: the second gets a number.
func TestSameBuildID(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	debug := read(t, debugModules(t)[0])
	t.Chdir(t.TempDir())
	for _, name := range []string{"tree/a.ko", "tree/sub/b.ko"} {
		put(t, name, debug)
	}
	for range 2 {
		mustSign(
			t, signer, Source{Roots: []string{"tree"}, Output: "out"},
			Options{DebugOptions: DebugOptions{SplitDebug: "debug"}},
		)
	}
	links, err := filepath.Glob("debug/.build-id/*/*.debug")
	if err != nil || len(links) != 2 {
		t.Errorf("links of build ids: %q (%v)", links, err)
	}
}

// What the user names may be a link, as ever.
func TestNamedLinks(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir := t.TempDir()
	t.Chdir(dir)
	put(t, "real/sub/m.ko", testmod.ELF())
	for link, target := range map[string]string{"tree": "real", "out": "elsewhere", "file.ko": "real/sub/m.ko"} {
		symlink(t, target, link)
	}
	if err := os.Mkdir("elsewhere", 0o755); err != nil {
		t.Fatal(err)
	}
	if s := mustSign(t, signer, Source{Roots: []string{"tree"}, Output: "out"}, Options{}); s.Signed != 1 ||
		!exists(t, "elsewhere/sub/m.ko") {
		t.Errorf("%+v", s)
	}
	if s := mustSign(t, signer, Source{Roots: []string{"file.ko"}}, Options{}); s.Signed != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := os.Readlink("file.ko"); err != nil {
		t.Error("the link that was named is no more")
	}
}

// The tree that was opened is another than the one that has its path now: links follow
// their modules in the first alone.
func TestLinkInMovedTree(t *testing.T) {
	signer := newSigner(t, "ecdsa:p256", crypto.SHA256, false)
	for _, names := range [][]string{nil, {"sub/a.ko"}} {
		dir := t.TempDir()
		tree, moved := filepath.Join(dir, "tree"), filepath.Join(dir, "moved")
		plant := func() {
			put(t, filepath.Join(tree, "sub/a.ko"), testmod.ELF())
			symlink(t, "../sub/a.ko", filepath.Join(tree, "links/b.ko"))
		}
		plant()
		opened := openTree(t, Source{Roots: []string{tree}, Names: names, Compress: Gzip})
		if err := os.Rename(tree, moved); err != nil {
			t.Fatal(err)
		}
		plant()
		before := snapshot(t, tree)
		s, err := opened.Sign(t.Context(), signer, Options{})
		if err != nil || s.Signed != 1 || s.Links.Renamed != 1 {
			t.Errorf("%+v (%v)", s, err)
		}
		if to, err := os.Readlink(filepath.Join(moved, "links/b.ko.gz")); to != "../sub/a.ko.gz" ||
			!exists(t, filepath.Join(moved, "sub/a.ko.gz")) ||
			exists(t, filepath.Join(moved, "links/b.ko")) {
			t.Errorf("the link leads to %q (%v)", to, err)
		}
		unchanged(t, "the tree that came later", tree, before, true)
	}
}

// Of two forms of one module neither is thrown away for the other, unless they are the
// same module but for signatures.
func TestTwins(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	other := append(testmod.ELF(), 0)
	for _, test := range []struct {
		name     string
		forms    map[string][]byte
		compress compress.Format
		again    bool // Recompress
		works    bool
	}{
		{"an old .gz, to plain", map[string][]byte{"a.ko": testmod.ELF(), "a.ko.gz": other}, compress.None, true, false},
		{"an old plain one, to .gz", map[string][]byte{"a.ko": other, "a.ko.gz": testmod.ELF()}, compress.Gzip, true, false},
		{
			"an old .xz, plain ones to .xz", map[string][]byte{"a.ko": testmod.ELF(), "a.ko.xz": other},
			compress.XZ, false, false,
		},
		{
			"an old .gz, plain ones to .xz", map[string][]byte{"a.ko": testmod.ELF(), "a.ko.gz": other},
			compress.XZ, false, false,
		},
		{
			"three forms", map[string][]byte{"a.ko": testmod.ELF(), "a.ko.gz": testmod.ELF(), "a.ko.xz": testmod.ELF()},
			compress.XZ, true, false,
		},
		{
			"what a killed run leaves", map[string][]byte{"a.ko": testmod.ELF(), "a.ko.xz": signed(t, signer, testmod.ELF())},
			compress.XZ, true, true,
		},
		{
			"the same, to plain", map[string][]byte{"a.ko.gz": testmod.ELF(), "a.ko": signed(t, signer, testmod.ELF())},
			compress.None, true, true,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, data := range test.forms {
				if f := compress.FromName(name); f != compress.None {
					data = compressed(t, f, data)
				}
				put(t, filepath.Join(dir, name), data)
			}
			before := snapshot(t, dir)
			source := Source{Roots: []string{dir}, Compress: test.compress, Recompress: test.again}
			for _, dry := range []bool{true, false} {
				source.DryRun = dry
				tree, err := Open(t.Context(), source)
				if err == nil {
					if _, err = tree.Sign(t.Context(), signer, Options{}); err != nil {
						t.Error(err)
					}
					tree.Close()
				} else if !strings.Contains(err.Error(), "a.ko") || !strings.Contains(err.Error(), "remove") {
					t.Error(err)
				}
				if (err == nil) != test.works {
					t.Errorf("dry run %v: %v", dry, err)
				}
			}
			if !test.works {
				unchanged(t, "twins", dir, before, true)
			}
		})
	}
}

// A lock on a file that everybody may read keeps nobody from signing.
func TestForeignLocks(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir := t.TempDir()
	put(t, filepath.Join(dir, "tree/a.ko"), testmod.ELF())
	for _, path := range []string{"/", dir, filepath.Join(dir, "tree"), filepath.Join(dir, "tree/a.ko")} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// Where somebody else has it, as "/" is everybody's, all the better.
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil && err != unix.EWOULDBLOCK {
			t.Fatalf("%s: %v", path, err)
		}
	}
	if s := mustSign(t, signer, Source{Roots: []string{filepath.Join(dir, "tree")}}, Options{}); s.Signed != 1 {
		t.Errorf("%+v", s)
	}
	if err := File(t.Context(), signer, filepath.Join(dir, "tree/a.ko"), "", FileOptions{}); err != nil {
		t.Error(err)
	}
}

// tempInUse makes a directory with the module a.ko, and a temporary file in use that is to
// become target.
func tempInUse(t *testing.T, target string) (dir string, f *atomicfile.File) {
	t.Helper()
	dir = t.TempDir()
	put(t, filepath.Join(dir, "a.ko"), testmod.ELF())
	opened, err := dirfd.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	if f, err = atomicfile.CreateIn(opened, target, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, f
}

// Another user's run has no lock in common with this one: its temporary files stay.
func TestLeavesTempsInUse(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir, f := tempInUse(t, "b.ko")
	mustSign(t, signer, Source{Roots: []string{dir}}, Options{})
	if err := f.Commit(false); err != nil {
		t.Errorf("another run's file is gone: %v", err)
	}
}

// A process that a killed run was about to start has its files for a moment longer.
func TestWaitsForTempsInUse(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir, f := tempInUse(t, "a.ko")
	temp := f.Name()
	go func() {
		time.Sleep(patience / 5)
		f.Close()
	}()
	mustSign(t, signer, Source{Roots: []string{dir}}, Options{})
	if _, err := os.Lstat(temp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", temp, err)
	}
}

// Names of one file get a proof each, one after the other.
func TestProveLinks(t *testing.T) {
	for range 30 {
		dir := t.TempDir()
		put(t, filepath.Join(dir, "a.ko"), testmod.ELF())
		for _, name := range []string{"b.ko", "c.ko", "d.ko"} {
			if err := os.Link(filepath.Join(dir, "a.ko"), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		tree := openTree(t, Source{Roots: []string{dir}})
		s, err := tree.Prove(t.Context(), named{}, ProveOptions{WriteOptions: WriteOptions{Sync: SyncNone, Jobs: 8}})
		tree.Close()
		if err != nil || s.Signed != 4 || s.Failed != 0 {
			t.Fatalf("%+v: %v", s, err)
		}
		for _, name := range []string{"a.ko", "b.ko", "c.ko", "d.ko"} {
			sum := sha256.Sum256(append([]byte(name), testmod.ELF()...))
			if !bytes.Equal(
				read(t, filepath.Join(dir, name)),
				module.AppendSignature(testmod.ELF(), module.TypeMerkle, sum[:]),
			) {
				t.Errorf("%s has another's proof", name)
			}
		}
	}
}

// A copy that cannot have the owner of the original has not its special rights either.
func TestForeignOwner(t *testing.T) {
	if base := child(); base != "" {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
			t.Fatal(err)
		}
		signer := loadSigner(t, base)
		out := filepath.Join(base, "out")
		mustSign(t, signer, Source{Roots: []string{filepath.Join(base, "tree")}, Output: out}, Options{})
		tree := openTree(t, Source{Roots: []string{filepath.Join(base, "tree")}})
		var failed error
		opts := Options{WriteOptions: WriteOptions{Report: Report{Result: func(r Result) { failed = r.Err }}}}
		if s, _ := tree.Sign(t.Context(), signer, opts); s.Failed != 1 {
			t.Errorf("%+v", s)
		}
		tree.Close()
		if _, ok := errors.AsType[*OwnerError](failed); !ok {
			t.Errorf("the owner cannot be kept: %v", failed)
		}
		if s := mustSign(
			t, signer, Source{Roots: []string{filepath.Join(base, "tree")}}, Options{WriteOptions: WriteOptions{NewOwner: true}},
		); s.Signed != 1 {
			t.Errorf("%+v", s)
		}
		return
	}
	needRoot(t)
	base, err := os.MkdirTemp("", "modsign-owner-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	saveSigner(t, base)
	module := filepath.Join(base, "tree/a.ko")
	put(t, module, testmod.ELF())
	if err := errors.Join(
		os.Chmod(module, 0o755|os.ModeSetuid|os.ModeSetgid), os.Chmod(base, 0o777), os.Chmod(filepath.Dir(module), 0o777),
	); err != nil {
		t.Fatal(err)
	}
	finish(t, again(t, base))
	for _, path := range []string{filepath.Join(base, "out/a.ko"), module} {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("%s has the mode %v (%v)", path, info.Mode(), err)
		}
	}
}

// With any number of files that a process may open, a run does what it can and says
// what it cannot.
func TestFewDescriptors(t *testing.T) {
	if base := child(); base != "" {
		signer := loadSigner(t, base)
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		for n := uint64(3); n < 40; n++ {
			limit.Cur = n
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
				t.Fatal(err)
			}
			tree, err := Open(t.Context(), Source{Roots: []string{filepath.Join(base, "tree")}})
			if err != nil {
				continue
			}
			if s, err := tree.Sign(t.Context(), signer, Options{}); s.Signed+s.Failed != s.Modules && err == nil {
				t.Errorf("with %d descriptors: %+v", n, s)
			}
			tree.Close()
		}
		return
	}
	base := t.TempDir()
	saveSigner(t, base)
	for _, name := range []string{"a.ko", "sub/b.ko", "sub/c.ko.gz"} {
		put(t, filepath.Join(base, "tree", name), compressed(t, compress.FromName(name), testmod.ELF()))
	}
	finish(t, again(t, base))
	left := snapshot(t, filepath.Join(base, "tree"))
	if len(left) != 5 {
		t.Errorf("the tree holds %d files and directories, want 5", len(left))
	}
}
