package sign

import (
	"bytes"
	"context"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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
)

// state is all of a file that signing could change.
type state struct {
	Mode         fs.FileMode
	UID, GID     uint32
	MTime, CTime int64 // ns
	Inode        uint64
	Links        uint64
	Content      string // or where a link leads
}

func stateOf(t testing.TB, path string) state {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	s := state{
		Mode:  info.Mode(),
		UID:   st.Uid,
		GID:   st.Gid,
		MTime: st.Mtim.Nano(),
		CTime: st.Ctim.Nano(),
		Inode: st.Ino,
		Links: uint64(st.Nlink),
	}
	switch {
	case info.Mode().IsRegular():
		s.Content = string(read(t, path))
	case info.Mode()&fs.ModeSymlink != 0:
		if s.Content, err = os.Readlink(path); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// snapshot is the state of all below a directory, and of the directories.
func snapshot(t testing.TB, root string) map[string]state {
	t.Helper()
	all := make(map[string]state)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			all[path] = stateOf(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// unchanged compares a directory with an earlier snapshot. Of directories, the times
// tell of files that came and went; they count where dirs is set.
func unchanged(t testing.TB, what, root string, before map[string]state, dirs bool) {
	t.Helper()
	after := snapshot(t, root)
	for path, was := range before {
		is, ok := after[path]
		switch {
		case !ok:
			t.Errorf("%s: %s is gone", what, path)
		case is != was && (dirs || !is.Mode.IsDir()):
			is.Content, was.Content = abbreviate(is.Content), abbreviate(was.Content)
			t.Errorf("%s: %s was changed from\n%+v to\n%+v", what, path, was, is)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("%s: left behind %s", what, path)
		}
	}
}

func abbreviate(s string) string {
	return fmt.Sprintf("%d bytes, %q", len(s), s[:min(len(s), 60)])
}

// temps lists the temporary files below a directory.
func temps(t testing.TB, root string) []string {
	t.Helper()
	var found []string
	for path := range snapshot(t, root) {
		if atomicfile.IsTemp(filepath.Base(path)) {
			found = append(found, path)
		}
	}
	return found
}

func sameInode(t testing.TB, paths ...string) bool {
	t.Helper()
	for _, path := range paths {
		if stateOf(t, path).Inode != stateOf(t, paths[0]).Inode {
			return false
		}
	}
	return true
}

// withInfo is a payload with a trailer that may be wrong.
func withInfo(payload []byte, info module.Info, sig []byte) []byte {
	b := slices.Concat(
		payload,
		sig,
		[]byte{info.Algo, info.Hash, uint8(info.IDType), info.SignerLen, info.KeyIDLen},
		info.Pad[:],
	)
	return append(binary.BigEndian.AppendUint32(b, info.SigLen), module.Marker...)
}

// badModule is a file that is not to be signed.
type badModule struct {
	name string
	data []byte
	err  error  // what it is; nil where there is no name for it
	says string // a part of the message
}

func badModules(t testing.TB) []badModule {
	elf := testmod.ELF()
	sig := bytes.Repeat([]byte("s"), 64)
	ok := module.Info{IDType: module.TypePKCS7, SigLen: 64}
	with := func(change func(*module.Info)) module.Info {
		info := ok
		change(&info)
		return info
	}
	executable := bytes.Clone(elf)
	executable[16] = 2
	xz := compressed(t, compress.XZ, elf)
	inner := withInfo(elf, with(func(i *module.Info) { i.SigLen = 0xffffffff }), sig)
	return []badModule{
		{"empty.ko", nil, module.ErrNotModule, "empty"},
		{"text.ko", []byte("#!/bin/sh\nexit 0\n"), module.ErrNotModule, "not an ELF file"},
		{"header.ko", elf[:40], module.ErrNotModule, "cut off within the ELF header"},
		{"cut.ko", elf[:len(elf)-1], module.ErrNotModule, "cut off: section header 4"},
		{"executable.ko", executable, module.ErrNotModule, "type ET_EXEC"},
		{"signed-text.ko", withInfo([]byte("text"), ok, sig), module.ErrNotModule, "not an ELF file"},
		{"xz.ko", xz, nil, "content is xz data; the matching name is xz.ko.xz"},
		{"plain.ko.gz", elf, nil, "content is an uncompressed module; the matching name is plain.ko"},
		{"zstd.ko.xz", compressed(t, compress.Zstd, elf), nil, "the matching name is zstd.ko.zst"},
		{"part.ko.xz", xz[:len(xz)-20], io.ErrUnexpectedEOF, "xz stream is cut off"},
		{"piece.ko.gz", compressed(t, compress.Gzip, elf)[:100], io.ErrUnexpectedEOF, "gzip stream is cut off"},
		{"bit.ko.zst", compressed(t, compress.Zstd, elf)[:100], io.ErrUnexpectedEOF, "zstd stream is cut off"},
		{"two.ko.xz", slices.Concat(xz, xz), nil, "a second xz stream follows"},
		{"nothing.ko.zst", []byte("no such stream"), nil, "zstd"},
		{"letter.ko.xz", compressed(t, compress.XZ, []byte("text")), module.ErrNotModule, "not an ELF file"},
		{"marker.ko", []byte("x" + module.Marker), module.ErrNoInfo, "too short to hold a signature"},
		{
			"length.ko",
			withInfo(elf, with(func(i *module.Info) { i.SigLen = uint32(len(elf)) + 64 }), sig),
			module.ErrSigLen,
			"claims",
		},
		{
			"long.ko",
			withInfo(elf, with(func(i *module.Info) { i.SigLen = 0xffffffff }), sig),
			module.ErrSigLen,
			"claims 4294967295 bytes",
		},
		{"signer.ko", withInfo(elf, with(func(i *module.Info) { i.SignerLen = 9 }), sig), module.ErrNotModule, "cut off"},
		{"keyid.ko", withInfo(elf, with(func(i *module.Info) { i.KeyIDLen = 20 }), sig), module.ErrNotModule, "cut off"},
		{
			"names.ko",
			withInfo(elf, with(func(i *module.Info) { i.SignerLen, i.SigLen = 1, uint32(len(elf))+63 }), sig),
			module.ErrSigLen,
			"a signer of 1 and a key id of 0",
		},
		{"inner.ko", module.AppendSignature(inner, module.TypePKCS7, sig), module.ErrSigLen, "claims 4294967295 bytes"},
		{
			"within.ko.zst",
			compressed(t, compress.Zstd, module.AppendSignature(inner, module.TypePKCS7, sig)),
			module.ErrSigLen,
			"claims 4294967295 bytes",
		},
	}
}

// Each bad file among good ones: the good ones are signed, the bad ones named
// and left as they are, and the results come in the order of the input.
func TestBadModules(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	bad := badModules(t)
	works := map[string]func(*Tree, Options) (Summary, error){
		"sign": func(tree *Tree, o Options) (Summary, error) { return tree.Sign(t.Context(), signer, o) },
		"detach": func(tree *Tree, o Options) (Summary, error) {
			o.Detached = true
			return tree.Sign(t.Context(), signer, o)
		},
		"strip": func(tree *Tree, o Options) (Summary, error) {
			return tree.RemoveSignatures(t.Context(), o.WriteOptions)
		},
		"skip": func(tree *Tree, o Options) (Summary, error) {
			o.Existing = Skip
			return tree.Sign(t.Context(), signer, o)
		},
	}
	for name, work := range works {
		for _, jobs := range []int{1, 2, 8} {
			dir := t.TempDir()
			var order []string
			for i, b := range bad {
				put(t, filepath.Join(dir, "bad", b.name), b.data)
				good := filepath.Join(dir, fmt.Sprintf("good%02d.ko", i))
				put(t, good, elf)
				order = append(order, good)
			}
			put(t, filepath.Join(dir, "bad", "is-no-module"), []byte("x"))
			for _, b := range bad {
				order = append(order, filepath.Join(dir, "bad", b.name))
			}
			slices.Sort(order)
			before := snapshot(t, filepath.Join(dir, "bad"))

			tree := openTree(t, Source{Roots: []string{dir}})
			results := make(map[string]Result)
			var paths []string
			summary, err := work(tree, Options{WriteOptions: WriteOptions{Jobs: jobs, Report: Report{Result: func(r Result) {
				results[r.Path] = r
				paths = append(paths, r.Path)
			}}}})
			if !errors.Is(err, ErrIncomplete) {
				t.Fatal(err)
			}
			tree.Close()
			if !slices.Equal(paths, order) {
				t.Errorf("%s, %d jobs: the results came as %q, not %q", name, jobs, paths, order)
			}
			unchanged(t, name, filepath.Join(dir, "bad"), before, name == "skip" || name == "strip")
			for _, b := range bad {
				r := results[filepath.Join(dir, "bad", b.name)]
				switch {
				case r.Action != Failed || r.Err == nil || r.Output != "":
					t.Errorf("%s %s: %+v", name, b.name, r)
				case !strings.Contains(r.Err.Error(), b.says):
					t.Errorf("%s %s: %q does not say %q", name, b.name, r.Err, b.says)
				case b.err != nil && !errors.Is(r.Err, b.err):
					t.Errorf("%s %s: %v is no %v", name, b.name, r.Err, b.err)
				}
			}
			for _, path := range order {
				if filepath.Dir(path) != dir {
					continue
				}
				switch name {
				case "sign", "skip":
					if !bytes.Equal(read(t, path), want) || results[path].Action != Signed || results[path].Output != path {
						t.Errorf("%s, %d jobs: %s is not signed: %+v", name, jobs, path, results[path])
					}
				case "strip":
					if !bytes.Equal(read(t, path), elf) || results[path].Action != Skipped || results[path].Output != "" {
						t.Errorf("%s: %s: %+v", name, path, results[path])
					}
				case "detach":
					if !bytes.Equal(read(t, path+".p7s"), signatureOf(want)) || results[path].Output != path+".p7s" {
						t.Errorf("%s: %s: %+v", name, path, results[path])
					}
				}
			}
			if summary.Failed != len(bad) || summary.Modules != 2*len(bad) || summary.Signed+summary.Skipped != len(bad) ||
				summary.Replaced != 0 {
				t.Errorf("%s: summary %+v", name, summary)
			}
			if left := temps(t, dir); len(left) > 0 {
				t.Errorf("%s: left %q", name, left)
			}
		}
	}
}

// Each bad file given alone, and what is no regular file.
func TestBadRoots(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo.ko")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	roots := map[string]string{fifo: "not a regular file"}
	for _, b := range badModules(t) {
		path := filepath.Join(dir, b.name)
		put(t, path, b.data)
		roots[path] = b.says
	}
	before := snapshot(t, dir)
	for path, says := range roots {
		summary, results := sign(t, signer, Source{Roots: []string{path}}, Options{})
		if summary.Failed != 1 || len(results) != 1 || results[0].Path != path ||
			!strings.Contains(results[0].Err.Error(), says) {
			t.Errorf("%s: %+v, %+v", path, summary, results)
		}
	}
	unchanged(t, "one by one", dir, before, true)
}

func TestMaxSize(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir := t.TempDir()
	elf := testmod.ELF()
	for _, f := range []compress.Format{compress.Gzip, compress.XZ, compress.Zstd} {
		put(t, filepath.Join(dir, "a.ko"+f.Suffix()), compressed(t, f, elf))
	}
	before := snapshot(t, dir)
	summary, results := sign(
		t,
		signer,
		Source{Roots: []string{dir}},
		Options{WriteOptions: WriteOptions{MaxSize: int64(len(elf)) - 1}},
	)
	for _, r := range results {
		if !errors.Is(r.Err, compress.ErrTooLarge) {
			t.Errorf("%s: %v", r.Path, r.Err)
		}
	}
	if summary.Failed != 3 {
		t.Errorf("%+v", summary)
	}
	unchanged(t, "too large", dir, before, true)
	if s := mustSign(
		t, signer, Source{Roots: []string{dir}}, Options{WriteOptions: WriteOptions{MaxSize: int64(len(elf))}},
	); s.Signed != 3 {
		t.Errorf("%+v", s)
	}
}

// A module that is signed already, once and twice by the kernel's own program.
func TestExisting(t *testing.T) {
	signFile := testmod.SignFile(t)
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	signer := newSigner(t, "rsa:2048", crypto.SHA512, false)
	dir := t.TempDir()
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	files := map[string]int{"a.ko": 0, "b.ko": 1, "c.ko": 2, "d.ko": 5}
	set := func() {
		for name, layers := range files {
			path := filepath.Join(dir, name)
			put(t, path, elf)
			for range layers {
				testmod.Run(t, signFile, "sha256", key, cert, path)
			}
			put(t, path+".gz", compressed(t, compress.Gzip, read(t, path)))
		}
	}
	layersOf := func(r Result) int { return files[module.BaseName(filepath.Base(r.Path))] }

	set()
	summary, results := sign(t, signer, Source{Roots: []string{dir}}, Options{})
	if summary.Signed != 8 || summary.Replaced != 6 || summary.Stacked != 4 || summary.Bytes != int64(8*len(elf)) {
		t.Errorf("replace: %+v", summary)
	}
	for _, r := range results {
		if r.Action != Signed || r.Removed != layersOf(r) || r.Payload != int64(len(elf)) ||
			r.Signature != len(signatureOf(want)) {
			t.Errorf("replace: %+v", r)
		}
		if got := decompressed(t, r.Format, read(t, r.Path)); !bytes.Equal(got, want) {
			t.Errorf("replace: %s is not as if it had been signed once", r.Path)
		}
	}

	set()
	before := snapshot(t, dir)
	if summary, _ := sign(t, signer, Source{Roots: []string{dir}}, Options{Existing: Skip}); summary.Signed != 2 ||
		summary.Skipped != 6 ||
		summary.Replaced != 0 {
		t.Errorf("skip: %+v", summary)
	}
	for path, was := range before {
		if name := filepath.Base(path); was.Mode.IsRegular() && files[module.BaseName(name)] > 0 && stateOf(t, path) != was {
			t.Errorf("skip: %s was changed", path)
		}
	}

	set()
	before = snapshot(t, dir)
	summary, results = sign(t, signer, Source{Roots: []string{dir}}, Options{Existing: Refuse})
	if summary.Signed != 2 || summary.Failed != 6 {
		t.Errorf("refuse: %+v", summary)
	}
	for _, r := range results {
		if signed := layersOf(r) > 0; signed != errors.Is(r.Err, ErrSigned) ||
			signed && stateOf(t, r.Path) != before[r.Path] {
			t.Errorf("refuse: %+v", r)
		}
	}

	set()
	summary, results = sign(t, nil, Source{Roots: []string{dir}}, Options{})
	if summary.Stripped != 6 || summary.Skipped != 2 || summary.Stacked != 4 {
		t.Errorf("strip: %+v", summary)
	}
	for _, r := range results {
		if got := decompressed(t, r.Format, read(t, r.Path)); !bytes.Equal(got, elf) || r.Removed != layersOf(r) {
			t.Errorf("strip: %+v", r)
		}
	}

	// A detached signature is that of the bare payload, and takes nothing off.
	set()
	for name := range files {
		if err := os.Remove(filepath.Join(dir, name+".gz")); err != nil {
			t.Fatal(err)
		}
	}
	summary, _ = sign(t, signer, Source{Roots: []string{dir}}, Options{Detached: true})
	if summary.Signed != 4 || summary.Replaced != 0 || summary.Stacked != 0 {
		t.Errorf("detached: %+v", summary)
	}
	for name := range files {
		if !bytes.Equal(read(t, filepath.Join(dir, name+".p7s")), signatureOf(want)) {
			t.Errorf("detached: the signature of %s is another", name)
		}
	}
}

// Two modules cannot have one detached signature.
func TestDetachedTwice(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.ko"), testmod.ELF())
	put(t, filepath.Join(dir, "a.ko.gz"), compressed(t, compress.Gzip, append(testmod.ELF(), 0)))
	mode := fs.FileMode(0o600)
	summary, results := sign(
		t,
		signer,
		Source{Roots: []string{dir}},
		Options{WriteOptions: WriteOptions{Mode: &mode, Sync: SyncFile}, Detached: true},
	)
	if got := stateOf(t, filepath.Join(dir, "a.ko.p7s")).Mode; got != mode {
		t.Errorf("the signature has mode %v", got)
	}
	if summary.Signed != 1 || summary.Failed != 1 || results[1].Err == nil ||
		!strings.Contains(results[1].Err.Error(), "which is that of") {
		t.Errorf("%+v: %+v", summary, results)
	}
	if got := signatureOf(signed(t, signer, testmod.ELF())); !bytes.Equal(got, read(t, filepath.Join(dir, "a.ko.p7s"))) {
		t.Error("the signature is not that of the first")
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		testmod.Missing(t, "root", "run the tests as root")
	}
}

func setXattr(t testing.TB, path, name, value string) {
	t.Helper()
	if err := unix.Setxattr(path, name, []byte(value), 0); err != nil {
		testmod.Missing(
			t,
			fmt.Sprintf("a file system that takes %s (%v)", name, err),
			"set TMPDIR to a directory on ext4 or XFS",
		)
	}
}

func xattr(path, name string) string {
	var buf [1024]byte
	n, err := unix.Getxattr(path, name, buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// What a file has besides its content stays.
func TestPreserves(t *testing.T) {
	needRoot(t)
	setfacl, getfacl := testmod.Program(t, "setfacl", "acl"), testmod.Program(t, "getfacl", "acl")
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	when := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)
	mode := fs.FileMode(0o640)
	tests := []struct {
		name     string
		opts     Options
		output   bool
		mode     fs.FileMode
		attested int
	}{
		{"in place", Options{}, false, 0o751 | fs.ModeSetuid | fs.ModeSetgid, 2},
		{"synced", Options{WriteOptions: WriteOptions{Sync: SyncFile}}, false, 0o751 | fs.ModeSetuid | fs.ModeSetgid, 2},
		{"elsewhere", Options{}, true, 0o751 | fs.ModeSetuid | fs.ModeSetgid, 2},
		{"mode given", Options{WriteOptions: WriteOptions{Mode: &mode}}, false, mode, 2},
		{"new time", Options{WriteOptions: WriteOptions{NewMTime: true}}, false, 0o751 | fs.ModeSetuid | fs.ModeSetgid, 2},
		{
			"all attributes", Options{WriteOptions: WriteOptions{KeepXattrs: true}}, false,
			0o751 | fs.ModeSetuid | fs.ModeSetgid, 0,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			in := filepath.Join(dir, "in")
			for _, f := range []compress.Format{compress.None, compress.XZ} {
				path := filepath.Join(in, "a.ko"+f.Suffix())
				put(t, path, compressed(t, f, elf))
				setXattr(t, path, "user.note", "kept")
				setXattr(t, path, "security.ima", "\x01signature")
				setXattr(t, path, "security.evm", "\x02mac")
				if err := errors.Join(
					os.Chown(path, 1234, 5678), os.Chmod(path, 0o751|fs.ModeSetuid|fs.ModeSetgid), os.Chtimes(path, when, when),
				); err != nil {
					t.Fatal(err)
				}
			}
			listed := filepath.Join(in, "listed.ko")
			put(t, listed, elf)
			testmod.Run(t, setfacl, "-m", "u:1234:r,g:55:rw,m::rw", listed)
			list := testmod.Run(t, getfacl, "-cpn", listed)
			// A default list for what is new in the directory is nothing to the old files.
			bare := filepath.Join(in, "bare.ko")
			put(t, bare, elf)
			testmod.Run(t, setfacl, "-d", "-m", "u:4321:rwx", in)
			bareList := testmod.Run(t, getfacl, "-cpn", bare)

			source := Source{Roots: []string{in}}
			out := in
			if test.output {
				out = filepath.Join(dir, "out")
				source.Output = out
			}
			summary := mustSign(t, signer, source, test.opts)
			if summary.Signed != 4 || summary.DroppedXattrs != test.attested {
				t.Errorf("summary %+v", summary)
			}
			for _, f := range []compress.Format{compress.None, compress.XZ} {
				path := filepath.Join(out, "a.ko"+f.Suffix())
				got := stateOf(t, path)
				if bytes.Equal(read(t, path), compressed(t, f, elf)) {
					t.Errorf("%s was not signed", path)
				}
				if got.Mode != test.mode || got.UID != 1234 || got.GID != 5678 {
					t.Errorf("%s: mode %v, owner %d:%d", path, got.Mode, got.UID, got.GID)
				}
				if (got.MTime == when.UnixNano()) == test.opts.NewMTime {
					t.Errorf("%s: time of modification %v", path, time.Unix(0, got.MTime))
				}
				ima, evm := "\x01signature", "\x02mac"
				if !test.opts.KeepXattrs {
					ima, evm = "", ""
				}
				if xattr(path, "user.note") != "kept" || xattr(path, "security.ima") != ima || xattr(path, "security.evm") != evm {
					t.Errorf(
						"%s: user.note %q, security.ima %q, security.evm %q", path, xattr(path, "user.note"),
						xattr(path, "security.ima"), xattr(path, "security.evm"),
					)
				}
			}
			if test.opts.Mode != nil {
				list = []byte("user::rw-\ngroup::r--\nother::---\n\n")
				bareList = list
			}
			if got := testmod.Run(t, getfacl, "-cpn", filepath.Join(out, "listed.ko")); !bytes.Equal(got, list) {
				t.Errorf("the access control list is\n%sinstead of\n%s", got, list)
			}
			if got := testmod.Run(t, getfacl, "-cpn", filepath.Join(out, "bare.ko")); !bytes.Equal(got, bareList) {
				t.Errorf("the access control list is\n%sinstead of\n%s", got, bareList)
			}
		})
	}
}

// One file with several names is signed once, and stays one file.
func TestHardLinks(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	set := func() (dir string, names []string) {
		dir = t.TempDir()
		names = []string{
			filepath.Join(dir, "tree/a.ko"),
			filepath.Join(dir, "tree/sub/b.ko"),
			filepath.Join(dir, "tree/sub/c.ko"),
		}
		put(t, names[0], elf)
		put(t, filepath.Join(dir, "tree/z.ko"), elf)
		put(t, filepath.Join(dir, "tree/sub/x"), nil)
		for _, to := range []string{
			names[1], names[2], filepath.Join(dir, "outside.ko"), filepath.Join(dir, "tree/other-name"),
		} {
			if err := os.Link(names[0], to); err != nil {
				t.Fatal(err)
			}
		}
		return dir, names
	}

	dir, names := set()
	summary, results := sign(t, signer, Source{Roots: []string{filepath.Join(dir, "tree")}}, Options{})
	if summary.Signed != 4 || summary.OutsideLinks != 2 {
		t.Errorf("%+v", summary)
	}
	if !sameInode(t, names...) || stateOf(t, names[0]).Links != 3 || !bytes.Equal(read(t, names[2]), want) {
		t.Error("the names in the tree are not one signed module")
	}
	if old := filepath.Join(dir, "outside.ko"); !bytes.Equal(read(t, old), elf) ||
		!sameInode(t, old, filepath.Join(dir, "tree/other-name")) {
		t.Error("the names outside are not the old module")
	}
	for i, r := range results[:3] {
		if r.Path != names[i] || r.Output != names[i] || r.Action != Signed || (r.LinkOf != "") != (i > 0) ||
			i > 0 && r.LinkOf != names[0] {
			t.Errorf("%+v", r)
		}
	}

	// Roots that are the names, one of them by way of a link to its directory.
	dir, names = set()
	if err := os.Symlink("tree/sub", filepath.Join(dir, "way")); err != nil {
		t.Fatal(err)
	}
	summary, _ = sign(
		t,
		signer,
		Source{Roots: []string{names[0], filepath.Join(dir, "way"), filepath.Join(dir, "tree/sub"), names[1]}},
		Options{},
	)
	if summary.Modules != 3 || summary.OutsideLinks != 2 || !sameInode(t, names...) ||
		!bytes.Equal(read(t, names[2]), want) {
		t.Errorf("%+v", summary)
	}

	dir, _ = set()
	before := snapshot(t, dir)
	out := filepath.Join(dir, "out")
	summary, _ = sign(t, signer, Source{Roots: []string{filepath.Join(dir, "tree")}, Output: out}, Options{})
	if summary.Signed != 4 || summary.OutsideLinks != 0 {
		t.Errorf("%+v", summary)
	}
	written := []string{filepath.Join(out, "a.ko"), filepath.Join(out, "sub/b.ko"), filepath.Join(out, "sub/c.ko")}
	if !sameInode(t, written...) || stateOf(t, written[0]).Links != 3 || !bytes.Equal(read(t, written[0]), want) {
		t.Error("what was written elsewhere is not one signed module")
	}
	unchanged(t, "with an output directory", filepath.Join(dir, "tree"), below(before, filepath.Join(dir, "tree")), true)
}

// below is the part of a snapshot below a directory.
func below(all map[string]state, root string) map[string]state {
	part := make(map[string]state)
	for path, s := range all {
		if path == root || strings.HasPrefix(path, root+"/") {
			part[path] = s
		}
	}
	return part
}

// A run that was killed between the renames of one file's names.
func TestCompletes(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	// kill leaves behind what a kill after the first of three renames does.
	kill := func(t *testing.T, content []byte) (dir string, names []string) {
		dir = t.TempDir()
		names = []string{filepath.Join(dir, "a.ko"), filepath.Join(dir, "b.ko"), filepath.Join(dir, "sub", "c.ko")}
		put(t, names[0], elf)
		put(t, filepath.Join(dir, "sub", "x"), nil)
		for _, name := range names[1:] {
			if err := os.Link(names[0], name); err != nil {
				t.Fatal(err)
			}
		}
		f, err := atomicfile.Create(names[0], 0o644)
		if err != nil {
			t.Fatal(err)
		}
		first := f.Name()
		_, err = f.Write(content)
		if err := errors.Join(
			err, f.AlsoAt(names[1]), f.AlsoAt(names[2]), f.Close(), os.Rename(first, names[0]),
		); err != nil {
			t.Fatal(err)
		}
		return dir, names
	}
	check := func(t *testing.T, dir string, names []string, completed int) {
		t.Helper()
		tree := openTree(t, Source{Roots: []string{dir}})
		if left := temps(t, dir); len(left) != 0 {
			t.Errorf("Open left %q", left)
		}
		if sameInode(t, names...) != (completed > 0) {
			t.Error("the names are not as linked as they should be")
		}
		s, err := tree.Sign(t.Context(), signer, Options{})
		if err != nil || s.RecoveredLinks != completed || s.Signed != 3 || s.OutsideLinks != 0 {
			t.Errorf("%+v, %v", s, err)
		}
		for _, name := range names {
			if !bytes.Equal(read(t, name), want) {
				t.Errorf("%s is not signed", name)
			}
		}
	}
	t.Run("signed", func(t *testing.T) {
		dir, names := kill(t, want)
		check(t, dir, names, 2)
		if !sameInode(t, names...) {
			t.Error("the names are not one file in the end")
		}
	})
	t.Run("with another key", func(t *testing.T) {
		dir, names := kill(t, signed(t, newSigner(t, "ecdsa:p256", crypto.SHA256, false), elf))
		check(t, dir, names, 2)
	})
	t.Run("another payload", func(t *testing.T) {
		dir, names := kill(t, append(bytes.Clone(elf), 0))
		put(t, names[0], elf) // through the new file's first name
		check(t, dir, names, 2)
		other := bytes.Clone(elf)
		other[80]++ // in .text
		dir, names = kill(t, signed(t, signer, other))
		tree := openTree(t, Source{Roots: []string{dir}})
		if left := temps(t, dir); len(left) != 0 || tree.recovered != 0 || bytes.Equal(read(t, names[1]), read(t, names[0])) {
			t.Errorf("%d completed, left %q", tree.recovered, left)
		}
	})
	t.Run("an old module that cannot be read", func(t *testing.T) {
		dir, names := kill(t, want)
		put(t, names[1], []byte("text "+module.Marker)) // c.ko too
		tree := openTree(t, Source{Roots: []string{dir}})
		s, err := tree.Sign(t.Context(), signer, Options{})
		if !errors.Is(err, ErrIncomplete) || s.RecoveredLinks != 0 || s.Signed != 1 || s.Failed != 2 ||
			len(temps(t, dir)) != 0 {
			t.Errorf("%+v, %v; left %q", s, err, temps(t, dir))
		}
	})
	t.Run("roots that are files", func(t *testing.T) {
		dir, names := kill(t, want)
		tree := openTree(t, Source{Roots: names})
		if left := temps(t, dir); len(left) != 0 || tree.recovered != 2 || !sameInode(t, names...) {
			t.Errorf("%d completed, left %q", tree.recovered, left)
		}
	})
	t.Run("dry run", func(t *testing.T) {
		dir, _ := kill(t, want)
		before := snapshot(t, dir)
		if s := mustSign(t, signer, Source{Roots: []string{dir}, DryRun: true}, Options{}); s.RecoveredLinks != 0 ||
			s.Signed != 3 {
			t.Errorf("%+v", s)
		}
		unchanged(t, "dry run", dir, before, true)
	})
}

// What a killed run left is removed, and nothing else.
func TestLeftovers(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "in", "a.ko"), filepath.Join(dir, "in", "sub", "b.ko")
	put(t, a, elf)
	put(t, b, elf)
	mine := filepath.Join(dir, "in", ".modsign-note") // no temporary file by its name
	put(t, mine, nil)

	// In a tree all of them, also of a detached signature.
	left := []string{leave(t, a), leave(t, b), leave(t, a+".p7s"), leave(t, filepath.Join(dir, "in", "never-was.ko"))}
	mustSign(t, signer, Source{Roots: []string{filepath.Join(dir, "in")}}, Options{})
	for _, path := range left {
		if exists(t, path) {
			t.Errorf("%s was left", path)
		}
	}
	if !exists(t, mine) {
		t.Errorf("%s was taken for a temporary file", mine)
	}

	// For a file those that were to become it.
	other := leave(t, filepath.Join(dir, "in", "other.ko"))
	left = []string{leave(t, a), leave(t, a), leave(t, a+".p7s")}
	mustSign(t, signer, Source{Roots: []string{a}}, Options{})
	for _, path := range left {
		if exists(t, path) {
			t.Errorf("%s was left", path)
		}
	}
	if !exists(t, other) {
		t.Error("the temporary file of another module, which may be alive, was removed")
	}

	// With an output directory those in it; the input is only read.
	out := filepath.Join(dir, "out")
	put(t, filepath.Join(out, "sub", "x"), nil)
	inOutput := []string{leave(t, filepath.Join(out, "a.ko")), leave(t, filepath.Join(out, "sub", "b.ko"))}
	before := snapshot(t, filepath.Join(dir, "in"))
	mustSign(t, signer, Source{Roots: []string{filepath.Join(dir, "in")}, Output: out}, Options{})
	unchanged(t, "with an output directory", filepath.Join(dir, "in"), before, true)
	for _, path := range inOutput {
		if exists(t, path) {
			t.Errorf("%s was left", path)
		}
	}
}

func TestDryRun(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	put(t, filepath.Join(tree, "a.ko"), elf)
	put(t, filepath.Join(tree, "b.ko.xz"), compressed(t, compress.XZ, signed(t, signer, elf)))
	put(t, filepath.Join(tree, "sub", "text.ko"), []byte("text"))
	put(t, filepath.Join(tree, ".modsign-0123456789abcdef-0123456789abcdef.tmp"), nil)
	held := openTree(t, Source{Roots: []string{tree}}) // removes the temporary file
	put(t, filepath.Join(tree, ".modsign-0123456789abcdef-0123456789abcdef.tmp"), nil)
	before := snapshot(t, dir)
	for _, source := range []Source{
		{Roots: []string{tree}, DryRun: true}, {Roots: []string{tree}, Output: filepath.Join(dir, "out"), DryRun: true},
	} {
		for _, opts := range []Options{{WriteOptions: WriteOptions{DryRun: true}}, {Detached: true}, {}} {
			summary, results := sign(t, signer, source, opts)
			if summary.Signed != 2 || summary.Failed != 1 || opts.Detached != (summary.Replaced == 0) {
				t.Errorf("%+v", summary)
			}
			for _, r := range results {
				if r.Output != "" {
					t.Errorf("%s: %s was not written", r.Path, r.Output)
				}
			}
		}
		if summary, _ := sign(t, nil, source, Options{WriteOptions: WriteOptions{DryRun: true}}); summary.Stripped != 1 ||
			summary.Skipped != 1 ||
			summary.Failed != 1 {
			t.Errorf("%+v", summary)
		}
	}
	unchanged(t, "dry run", dir, before, true)
	held.Close()
}

// A link in a tree is nothing to sign, and one that is given leads to the module.
func TestSymlinks(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	dir := t.TempDir()
	tree, outside := filepath.Join(dir, "tree"), filepath.Join(dir, "outside")
	put(t, filepath.Join(tree, "a.ko"), elf)
	put(t, filepath.Join(outside, "b.ko"), elf)
	links := map[string]string{
		filepath.Join(tree, "file.ko"): "../outside/b.ko", filepath.Join(tree, "inside.ko"): "a.ko",
		filepath.Join(tree, "directory"): "../outside", filepath.Join(tree, "loop"): ".",
		filepath.Join(tree, "broken.ko"): "nowhere", filepath.Join(dir, "given.ko"): "outside/b.ko",
		filepath.Join(dir, "given"): "tree",
	}
	for link, to := range links {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t, outside)
	if s := mustSign(t, signer, Source{Roots: []string{filepath.Join(dir, "given")}}, Options{}); s.Modules != 1 ||
		s.Signed != 1 {
		t.Errorf("%+v", s)
	}
	unchanged(t, "outside", outside, before, true)
	if !bytes.Equal(read(t, filepath.Join(tree, "a.ko")), want) {
		t.Error("a.ko was not signed")
	}
	if s := mustSign(
		t, signer, Source{Roots: []string{filepath.Join(dir, "given.ko"), filepath.Join(tree, "file.ko")}}, Options{},
	); s.Modules != 1 ||
		s.Signed != 1 {
		t.Errorf("%+v", s)
	}
	if !bytes.Equal(read(t, filepath.Join(outside, "b.ko")), want) {
		t.Error("the file that the link leads to was not signed")
	}
	for link, to := range links {
		if got, err := os.Readlink(link); err != nil || got != to {
			t.Errorf("%s leads to %s (%v), not to %s", link, got, err, to)
		}
	}
}

func TestOutput(t *testing.T) {
	signFile := testmod.SignFile(t)
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	put(t, filepath.Join(in, "kernel/a.ko"), elf)
	put(t, filepath.Join(in, "kernel/deep/b.ko.gz"), compressed(t, compress.Gzip, elf))
	put(t, filepath.Join(in, "old.ko"), elf)
	testmod.Run(t, signFile, "sha256", key, cert, filepath.Join(in, "old.ko"))
	put(t, filepath.Join(in, "bad.ko"), []byte("text"))
	put(t, filepath.Join(in, "modules.dep"), []byte("x"))
	before := snapshot(t, in)
	for _, test := range []struct {
		name   string
		signer *Signer
		opts   Options
		want   map[string][]byte // decompressed
	}{
		{
			"sign", signer, Options{},
			map[string][]byte{
				"kernel/a.ko":         signed(t, signer, elf),
				"kernel/deep/b.ko.gz": signed(t, signer, elf),
				"old.ko":              signed(t, signer, elf),
			},
		},
		// The other tree has what was skipped as well.
		{
			"skip", signer, Options{Existing: Skip},
			map[string][]byte{
				"kernel/a.ko":         signed(t, signer, elf),
				"kernel/deep/b.ko.gz": signed(t, signer, elf),
				"old.ko":              read(t, filepath.Join(in, "old.ko")),
			},
		},
		{"strip", nil, Options{}, map[string][]byte{"kernel/a.ko": elf, "kernel/deep/b.ko.gz": elf, "old.ko": elf}},
		{
			"detached", signer, Options{Detached: true},
			map[string][]byte{
				"kernel/a.ko.p7s":      signatureOf(signed(t, signer, elf)),
				"kernel/deep/b.ko.p7s": signatureOf(signed(t, signer, elf)),
				"old.ko.p7s":           signatureOf(signed(t, signer, elf)),
			},
		},
		{
			"detached, skip", signer, Options{Detached: true, Existing: Skip},
			map[string][]byte{
				"kernel/a.ko.p7s":      signatureOf(signed(t, signer, elf)),
				"kernel/deep/b.ko.p7s": signatureOf(signed(t, signer, elf)),
			},
		},
	} {
		out := filepath.Join(dir, test.name, "made/for/it")
		for range 2 { // over what is there, too
			summary, results := sign(t, test.signer, Source{Roots: []string{in}, Output: out}, test.opts)
			if summary.Failed != 1 || summary.Modules != 4 {
				t.Errorf("%s: %+v", test.name, summary)
			}
			outputs := 0
			for _, r := range results {
				if r.Output == "" {
					continue
				}
				outputs++
				if _, err := os.Stat(r.Output); err != nil {
					t.Errorf("%s: %v", test.name, err)
				}
			}
			if outputs != len(test.want) {
				t.Errorf("%s: %d outputs named instead of %d", test.name, outputs, len(test.want))
			}
			written := 0
			for path, s := range snapshot(t, out) {
				if !s.Mode.IsRegular() {
					continue
				}
				written++
				rel, _ := filepath.Rel(out, path)
				if got := decompressed(t, compress.FromName(path), read(t, path)); !bytes.Equal(got, test.want[rel]) {
					t.Errorf("%s: %s is not what it should be", test.name, rel)
				}
			}
			if written != len(test.want) {
				t.Errorf("%s: %d files instead of %d", test.name, written, len(test.want))
			}
		}
		unchanged(t, test.name, in, before, true)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"in/a.ko", "in/sub/sub/b.ko", "in/sub/b.ko", "in2/a.ko", "empty/readme"} {
		put(t, filepath.Join(dir, path), testmod.ELF())
	}
	if err := os.Symlink("in", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	before := snapshot(t, dir)
	tests := []struct {
		source Source
		is     error
		says   string
	}{
		{Source{}, ErrNoModules, ""},
		{Source{Roots: []string{"empty"}}, ErrNoModules, "in empty"},
		{Source{Roots: []string{"in", "nowhere"}}, fs.ErrNotExist, "nowhere"},
		{Source{Roots: []string{"in"}, Output: "in"}, nil, "lies in the input"},
		{Source{Roots: []string{"in"}, Output: "in/new/directory"}, nil, "lies in the input"},
		{Source{Roots: []string{"link"}, Output: "in/new"}, nil, "lies in the input"},
		{Source{Roots: []string{"in"}, Output: "link/new"}, nil, "lies in the input"},
		{Source{Roots: []string{"in/a.ko"}, Output: "in"}, nil, "would replace the input in/a.ko"},
		{Source{Roots: []string{"in/a.ko"}, Output: "link"}, nil, "would replace the input link/a.ko"},
		{Source{Roots: []string{"in/sub"}, Output: "in"}, nil, "would replace the input"},
		{Source{Roots: []string{"in", "in2"}, Output: "out"}, nil, "would both become out/a.ko"},
		{Source{Roots: []string{"in"}, Output: "in/a.ko/out"}, syscall.ENOTDIR, ""},
		{Source{Roots: []string{"in2"}, Output: "in/a.ko"}, syscall.ENOTDIR, "in/a.ko"},
	}
	for _, test := range tests {
		for _, dry := range []bool{true, false} {
			test.source.DryRun = dry
			tree, err := Open(t.Context(), test.source)
			if err == nil {
				tree.Close()
				if dry && test.is == syscall.ENOTDIR {
					continue // found when it is made
				}
				t.Errorf("%+v is taken", test.source)
				continue
			}
			if test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v: %v", test.source, err)
			}
		}
	}
	if err := os.RemoveAll("out"); err != nil {
		t.Fatal(err)
	}
	after := snapshot(t, dir)
	delete(before, dir)
	delete(after, dir)
	for path := range after {
		if before[path] != after[path] {
			t.Errorf("%s was changed", path)
		}
	}
	// An output directory of which a root is a part is fine where nothing meets.
	if s := mustSign(
		t, newSigner(t, "rsa:2048", crypto.SHA256, false), Source{Roots: []string{"in/sub/sub"}, Output: "in"}, Options{},
	); s.Signed != 1 {
		t.Errorf("%+v", s)
	}
}

func TestBadOptions(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.ko"), testmod.ELF())
	put(t, filepath.Join(dir, "b.ko.gz"), compressed(t, compress.Gzip, testmod.ELF()))
	before := snapshot(t, dir)
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	tree := openTree(t, Source{Roots: []string{dir}})
	for _, level := range []int{-1, 23} {
		if _, err := tree.Sign(t.Context(), signer, Options{WriteOptions: WriteOptions{Level: level}}); err == nil ||
			!strings.Contains(err.Error(), "level") {
			t.Errorf("level %d: %v", level, err)
		}
	}
	if _, err := tree.Sign(t.Context(), nil, Options{}); err == nil {
		t.Error("signed with nothing")
	}
	unchanged(t, "bad options", dir, before, true)
	// A level that one of the formats has not.
	summary, err := tree.Sign(t.Context(), signer, Options{WriteOptions: WriteOptions{Level: 12}})
	if !errors.Is(err, ErrIncomplete) || summary.Signed != 1 || summary.Failed != 1 ||
		stateOf(t, filepath.Join(dir, "b.ko.gz")) != before[filepath.Join(dir, "b.ko.gz")] {
		t.Errorf("%+v, %v", summary, err)
	}
	// One that they all have.
	tree.Close()
	put(t, filepath.Join(dir, "c.ko.xz"), compressed(t, compress.XZ, testmod.ELF()))
	put(t, filepath.Join(dir, "d.ko.zst"), compressed(t, compress.Zstd, testmod.ELF()))
	if s := mustSign(
		t, signer, Source{Roots: []string{dir}}, Options{WriteOptions: WriteOptions{Level: 9}},
	); s.Signed != 4 {
		t.Errorf("%+v", s)
	}
	want := signed(t, signer, testmod.ELF())
	for _, name := range []string{"a.ko", "b.ko.gz", "c.ko.xz", "d.ko.zst"} {
		if !bytes.Equal(decompressed(t, compress.FromName(name), read(t, filepath.Join(dir, name))), want) {
			t.Errorf("%s is not signed", name)
		}
	}
}

func TestProgress(t *testing.T) {
	dir := t.TempDir()
	var bytes int64
	for i := range 20 {
		data := append(testmod.ELF(), make([]byte, 100*i)...)
		put(t, filepath.Join(dir, fmt.Sprintf("%02d.ko", i)), data)
		bytes += int64(len(data))
	}
	var last Count
	calls := 0
	opts := Options{WriteOptions: WriteOptions{Jobs: 4, Report: Report{Progress: func(done, total Count) {
		calls++
		if total != (Count{20, bytes}) || done.Modules <= last.Modules || done.Bytes <= last.Bytes {
			t.Errorf("%+v of %+v after %+v", done, total, last)
		}
		last = done
	}}}}
	mustSign(t, newSigner(t, "rsa:2048", crypto.SHA256, false), Source{Roots: []string{dir}}, opts)
	if calls != 20 || last != (Count{20, bytes}) {
		t.Errorf("%d calls, %+v at the end", calls, last)
	}
}

// An interrupt leaves old modules and new ones, and the next run does the rest.
func TestInterrupt(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	cause := errors.New("interrupted by the test")
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	for _, after := range []int{0, 1, 10, 29} {
		for _, jobs := range testmod.Few([]int{2, 1, 8}, 1) {
			dir := t.TempDir()
			for i := range 10 {
				for _, f := range []compress.Format{compress.None, compress.XZ, compress.Gzip} {
					put(t, filepath.Join(dir, fmt.Sprintf("%d.ko%s", i, f.Suffix())), compressed(t, f, elf))
				}
			}
			before := snapshot(t, dir)
			tree := openTree(t, Source{Roots: []string{dir}})
			ctx, cancel := context.WithCancelCause(t.Context())
			if after == 0 {
				cancel(cause)
			}
			reported := make(map[string]bool)
			summary, err := tree.Sign(ctx, signer, Options{WriteOptions: WriteOptions{Jobs: jobs, Report: Report{
				Progress: func(done, _ Count) {
					if done.Modules == after {
						cancel(cause)
					}
				},
				Result: func(r Result) {
					reported[r.Path] = true
					if r.Action != Signed {
						t.Errorf("%+v", r)
					}
				},
			}}})
			tree.Close()
			cancel(nil)
			if !errors.Is(err, cause) {
				t.Errorf("after %d, %d jobs: %v", after, jobs, err)
			}
			if summary.Signed < after || summary.Signed > after+jobs || summary.Failed != 0 || summary.Modules != 30 ||
				len(reported) != summary.Signed {
				t.Errorf("after %d, %d jobs: %+v, %d reported", after, jobs, summary, len(reported))
			}
			for path, was := range before {
				if !was.Mode.IsRegular() {
					continue
				}
				now := stateOf(t, path)
				if reported[path] {
					if !bytes.Equal(decompressed(t, compress.FromName(path), []byte(now.Content)), want) {
						t.Errorf("%s is reported and not signed", path)
					}
				} else if now != was {
					t.Errorf("%s is not reported and changed", path)
				}
			}
			if left := temps(t, dir); len(left) > 0 {
				t.Errorf("left %q", left)
			}
			if s := mustSign(t, signer, Source{Roots: []string{dir}}, Options{Existing: Skip}); s.Signed+s.Skipped != 30 ||
				s.Skipped != summary.Signed {
				t.Errorf("run again: %+v", s)
			}
		}
	}
}

// meddler does something while it signs.
type meddler struct {
	crypto.Signer
	meddle func()
}

func (m meddler) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	m.meddle()
	return m.Signer.Sign(rand, digest, opts)
}

// A module that somebody else changes while it is signed stays as they left it.
func TestChangesMeanwhile(t *testing.T) {
	key := testmod.NewKey(t, "rsa:2048")
	elf := testmod.ELF()
	changes := map[string]func(path string) error{
		"append": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("x")
			return errors.Join(err, f.Close())
		},
		"overwrite": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("x"), 100)
			return errors.Join(err, f.Close())
		},
		"truncate": func(path string) error { return os.Truncate(path, 100) },
		"replace": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", elf, 0o644), os.Rename(path+".new", path))
		},
		"chmod":  func(path string) error { return os.Chmod(path, 0o600) },
		"remove": os.Remove,
	}
	works := map[string]func(t *testing.T, signer *Signer, path string) error{
		"tree": func(t *testing.T, signer *Signer, path string) error {
			_, results := sign(t, signer, Source{Roots: []string{filepath.Dir(path)}}, Options{})
			return results[0].Err
		},
		"detached": func(t *testing.T, signer *Signer, path string) error {
			_, results := sign(t, signer, Source{Roots: []string{path}}, Options{Detached: true})
			return results[0].Err
		},
		"output": func(t *testing.T, signer *Signer, path string) error {
			out := t.TempDir()
			_, results := sign(t, signer, Source{Roots: []string{path}, Output: out}, Options{})
			if all := snapshot(t, out); len(all) > 1 {
				t.Errorf("it wrote %v", all)
			}
			return results[0].Err
		},
		"file": func(t *testing.T, signer *Signer, path string) error {
			return File(t.Context(), signer, path, "", FileOptions{})
		},
		"file with save": func(t *testing.T, signer *Signer, path string) error {
			return File(t.Context(), signer, path, filepath.Join(filepath.Dir(path), "out"), FileOptions{Save: true})
		},
	}
	for change, meddle := range changes {
		for work, do := range works {
			for _, f := range []compress.Format{compress.None, compress.XZ} {
				t.Run(change+", "+work+", "+f.String(), func(t *testing.T) {
					dir := t.TempDir()
					path := filepath.Join(dir, "a.ko"+f.Suffix())
					put(t, path, compressed(t, f, elf))
					var left map[string]state
					signer, err := NewSigner(meddler{key.Private, func() {
						if err := meddle(path); err != nil {
							t.Error(err)
						}
						left = snapshot(t, dir)
						for path := range left {
							if atomicfile.IsTemp(filepath.Base(path)) {
								delete(left, path)
							}
						}
					}}, key.Certificate, SignerOptions{Hash: crypto.SHA256})
					if err != nil {
						t.Fatal(err)
					}
					if err := do(t, signer, path); !errors.Is(err, module.ErrChanged) {
						t.Errorf("error %v", err)
					}
					if left == nil {
						t.Fatal("nothing was signed")
					}
					unchanged(t, "after the error", dir, left, false)
				})
			}
		}
	}
}

// A name that cannot be replaced.
func TestRenameFails(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir := t.TempDir()
	put(t, filepath.Join(dir, "in/a.ko"), testmod.ELF())
	put(t, filepath.Join(dir, "in/b.ko"), testmod.ELF())
	put(t, filepath.Join(dir, "out/a.ko/in-the-way"), nil)
	summary, results := sign(
		t,
		signer,
		Source{Roots: []string{filepath.Join(dir, "in")}, Output: filepath.Join(dir, "out")},
		Options{},
	)
	if summary.Signed != 1 || summary.Failed != 1 || results[0].Err == nil ||
		!strings.Contains(results[0].Err.Error(), "out/a.ko") {
		t.Errorf("%+v: %v", summary, results[0].Err)
	}
	if left := temps(t, dir); len(left) > 0 {
		t.Errorf("left %q", left)
	}

	t.Run("immutable", func(t *testing.T) {
		needRoot(t)
		path := filepath.Join(dir, "in/a.ko")
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		set := func(flags int) error { return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags) }
		const immutable = 0x10 // FS_IMMUTABLE_FL of linux/fs.h
		if err := set(immutable); err != nil {
			testmod.Missing(
				t,
				fmt.Sprintf("a file system with immutable files (%v)", err),
				"set TMPDIR to a directory on ext4 or XFS",
			)
		}
		defer set(0)
		before := snapshot(t, filepath.Dir(path))
		_, results := sign(t, signer, Source{Roots: []string{path}}, Options{})
		if !errors.Is(results[0].Err, fs.ErrPermission) || !strings.Contains(results[0].Err.Error(), path) {
			t.Errorf("%v", results[0].Err)
		}
		if err := File(t.Context(), signer, path, "", FileOptions{}); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("File: %v", err)
		}
		unchanged(t, "immutable", filepath.Dir(path), before, false)
	})
}
