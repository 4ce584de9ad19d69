package sign

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// Where the kernel's program is asked to write, and where it would have written.
func TestFileDestination(t *testing.T) {
	signFile := testmod.SignFile(t)
	key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	for _, test := range []struct {
		name     string
		src, dst string // below the directory
		written  string
		differs  bool // from sign-file, on purpose
	}{
		{"in place", "a.ko", "", "a.ko", false},
		{"to a new file", "a.ko", "new", "new", false},
		{"over another file", "a.ko", "secret", "secret", false},
		{"to its own name", "a.ko", "a.ko", "a.ko", true},
		{"to its own name, spelled otherwise", "a.ko", "./sub/../a.ko", "a.ko", true},
		{"to a hard link", "a.ko", "hard", "hard", true},
		{"to a link that leads to it", "a.ko", "soft", "a.ko", true},
		{"through a link", "soft", "", "a.ko", true},
		{"through a link to another file", "soft", "new", "new", false},
		{"over what a link leads to", "a.ko", "to-secret", "secret", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			make := func() string {
				dir := t.TempDir()
				put(t, filepath.Join(dir, "a.ko"), elf)
				put(t, filepath.Join(dir, "secret"), []byte("some old file"))
				put(t, filepath.Join(dir, "sub/x"), nil)
				err := errors.Join(
					os.Chmod(filepath.Join(dir, "a.ko"), 0o755),
					os.Chmod(filepath.Join(dir, "secret"), 0o600),
					os.Link(filepath.Join(dir, "a.ko"), filepath.Join(dir, "hard")),
					os.Symlink("a.ko", filepath.Join(dir, "soft")),
					os.Symlink("secret", filepath.Join(dir, "to-secret")))
				if err != nil {
					t.Fatal(err)
				}
				return dir
			}
			dir := make()
			src, dst := filepath.Join(dir, test.src), ""
			if test.dst != "" {
				dst = dir + "/" + test.dst
			}
			if err := File(t.Context(), signer, src, dst, FileOptions{}); err != nil {
				t.Fatal(err)
			}
			if got := read(t, filepath.Join(dir, test.written)); !bytes.Equal(got, want) {
				t.Errorf("%s is not signed", test.written)
			}
			if left := temps(t, dir); len(left) > 0 {
				t.Errorf("left %q", left)
			}
			for _, link := range []string{"soft", "to-secret"} {
				if info, err := os.Lstat(filepath.Join(dir, link)); err != nil || info.Mode()&fs.ModeSymlink == 0 {
					t.Errorf("%s is no link any more (%v)", link, err)
				}
			}
			if test.dst == "hard" && !sameInode(t, filepath.Join(dir, "a.ko"), filepath.Join(dir, "hard")) {
				t.Error("the links are two files now")
			}
			if test.differs {
				return
			}
			theirs := make()
			args := []string{"sha256", key, cert, filepath.Join(theirs, test.src)}
			if test.dst != "" {
				args = append(args, theirs+"/"+test.dst)
			}
			testmod.Run(t, signFile, args...)
			for _, name := range []string{"a.ko", "hard", "soft", "new", "secret", "to-secret"} {
				a, err1 := os.Stat(filepath.Join(dir, name))
				b, err2 := os.Stat(filepath.Join(theirs, name))
				switch {
				case (err1 == nil) != (err2 == nil):
					t.Errorf("%s: %v, with sign-file %v", name, err1, err2)
				case err1 == nil && a.Mode() != b.Mode():
					t.Errorf("%s has mode %v, with sign-file %v", name, a.Mode(), b.Mode())
				case err1 == nil && !bytes.Equal(read(t, filepath.Join(dir, name)), read(t, filepath.Join(theirs, name))):
					t.Errorf("%s is another than with sign-file", name)
				}
			}
		})
	}
}

// Any file is signed, as sign-file signs any: it is no module's place to say.
func TestFileOfAnything(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	for name, data := range map[string][]byte{"vmlinux": []byte("text"), "empty": nil, "a.ko.xz": []byte("\xfd7zXZ\x00")} {
		path := testmod.WriteFile(t, name, data)
		if err := File(t.Context(), signer, path, "", FileOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		want := signed(t, signer, data)
		if !bytes.Equal(read(t, path), want) {
			t.Errorf("%s is not signed", name)
		}
		if name == "empty" {
			continue // what would be the payload of its signature is nothing
		}
		// An old signature, or several, give way.
		put(t, path, signed(t, newSigner(t, "ecdsa:p256", crypto.SHA256, false), want))
		if err := File(t.Context(), signer, path, "", FileOptions{}); err != nil || !bytes.Equal(read(t, path), want) {
			t.Errorf("%s is not signed anew: %v", name, err)
		}
	}
}

// With Trailer, what is written makes a signed file of what was there, once more if it was
// signed, and never takes its place.
func TestFileTrailer(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "a.ko"), filepath.Join(dir, "a.ko.sig")
	put(t, src, testmod.ELF())
	want := testmod.ELF()
	for range 2 {
		want = signed(t, signer, want)
		if err := File(t.Context(), signer, src, dst, FileOptions{Trailer: true}); err != nil {
			t.Fatal(err)
		}
		put(t, src, append(read(t, src), read(t, dst)...))
		if !bytes.Equal(read(t, src), want) {
			t.Fatal("file and trailer are not the signed file")
		}
	}
	if err := os.Link(src, filepath.Join(dir, "link.ko")); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	for _, dst := range []string{"", src, filepath.Join(dir, "link.ko")} {
		if err := File(t.Context(), signer, src, dst, FileOptions{Trailer: true}); err == nil {
			t.Errorf("it is written to %q", dst)
		}
	}
	unchanged(t, "refused", dir, before, false)
}

func TestFileToPipe(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	path := testmod.WriteFile(t, "a.ko", testmod.ELF())
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte)
	go func() {
		b, _ := os.ReadFile(fifo)
		got <- b
	}()
	if err := File(t.Context(), signer, path, fifo, FileOptions{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(<-got, signed(t, signer, testmod.ELF())) {
		t.Error("what came out of the pipe is not the signed module")
	}

	// The module changes while it goes through the pipe.
	put(t, path, append(testmod.ELF(), make([]byte, 1<<20)...))
	go func() {
		f, err := os.Open(fifo)
		if err != nil {
			return
		}
		defer f.Close()
		io.ReadFull(f, make([]byte, 1))
		os.Truncate(path, 1<<19)
		io.Copy(io.Discard, f)
	}()
	if err := File(t.Context(), signer, path, fifo, FileOptions{}); !errors.Is(err, module.ErrChanged) {
		t.Errorf("a module that changes while it is copied: %v", err)
	}

	if err := File(t.Context(), signer, path, os.DevNull, FileOptions{}); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Fatalf("%s was replaced", os.DevNull)
	}
}

func TestFileRefuses(t *testing.T) {
	key := testmod.NewKey(t, "rsa:2048")
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	broken := errors.New("the token is gone")
	bad, err := NewSigner(failingSigner{key.Private, broken}, key.Certificate, SignerOptions{Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	elf := testmod.ELF()
	put(t, filepath.Join(dir, "a.ko"), elf)
	put(
		t,
		filepath.Join(dir, "bad.ko"),
		withInfo(elf, module.Info{IDType: module.TypePKCS7, SigLen: 1 << 20}, []byte("s")),
	)
	put(t, filepath.Join(dir, "sub/x"), nil)
	if err := os.Symlink("self", filepath.Join(dir, "self")); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	for _, test := range []struct {
		signer   *Signer
		src, dst string
		is       error
		says     string
	}{
		{signer, "nowhere", "", fs.ErrNotExist, "nowhere"},
		{signer, "sub", "", nil, "sub: not a regular file"},
		{signer, "self", "", syscall.ELOOP, "self"},
		{signer, "bad.ko", "", module.ErrSigLen, "bad.ko: malformed signature"},
		{signer, "a.ko", "sub", syscall.EISDIR, "sub"},
		{signer, "a.ko", "nowhere/a.ko", fs.ErrNotExist, "nowhere/a.ko"},
		{signer, "a.ko", "a.ko/b", syscall.ENOTDIR, "a.ko/b"},
		{bad, "a.ko", "", broken, "a.ko: "},
		{bad, "a.ko", "new", broken, "a.ko: "},
	} {
		dst := ""
		if test.dst != "" {
			dst = filepath.Join(dir, test.dst)
		}
		err := File(t.Context(), test.signer, filepath.Join(dir, test.src), dst, FileOptions{Save: true})
		if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s to %s: %v", test.src, test.dst, err)
		}
		os.Remove(filepath.Join(dir, "a.ko.p7s")) // written before the destination is looked at, as by sign-file
	}
	unchanged(t, "refused", dir, before, false)

	// The same of a whole tree.
	summary, results := sign(t, bad, Source{Roots: []string{filepath.Join(dir, "a.ko")}}, Options{})
	if summary.Failed != 1 || !errors.Is(results[0].Err, broken) {
		t.Errorf("%+v", results)
	}
	unchanged(t, "refused", dir, before, false)
}

type failingSigner struct {
	crypto.Signer
	err error
}

func (f failingSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, f.err }

var benchmarkKeys = []struct {
	name, algorithm string
	hash            crypto.Hash
}{{"rsa4096", "rsa:4096", crypto.SHA512}, {"p384", "ecdsa:p384", crypto.SHA384}}

func BenchmarkFile(b *testing.B) {
	for _, key := range benchmarkKeys {
		for _, size := range []int{64 << 10, 1 << 20, 16 << 20} {
			name := fmt.Sprintf("%s/%dK", key.name, size>>10)
			if size >= 1<<20 {
				name = fmt.Sprintf("%s/%dM", key.name, size>>20)
			}
			b.Run(name, func(b *testing.B) {
				signer := newSigner(b, key.algorithm, key.hash, false)
				path := filepath.Join(directory(b), "a.ko")
				put(b, path, append(testmod.ELF(), make([]byte, size-len(testmod.ELF()))...))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if err := File(b.Context(), signer, path, "", FileOptions{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkTree signs 400 modules of 64 KiB in place, over and over.
func BenchmarkTree(b *testing.B) {
	const modules, size = 400, 64 << 10
	for _, key := range benchmarkKeys {
		b.Run(key.name, func(b *testing.B) {
			signer := newSigner(b, key.algorithm, key.hash, false)
			dir := directory(b)
			data := append(testmod.ELF(), make([]byte, size-len(testmod.ELF()))...)
			for i := range modules {
				put(b, filepath.Join(dir, fmt.Sprintf("%03d.ko", i)), data)
			}
			b.SetBytes(modules * size)
			b.ReportAllocs()
			for b.Loop() {
				mustSign(b, signer, Source{Roots: []string{dir}}, Options{})
			}
		})
	}
}
