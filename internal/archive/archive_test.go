package archive

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// tree makes a directory with all that archives hold: files, an empty one, links, hard
// links, a name with spaces, and a file larger than the buffers.
func tree(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	put := func(name string, data []byte) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	large := make([]byte, 300<<10)
	for i := range large {
		large[i] = byte(i * i >> 7)
	}
	put("boot/vmlinuz-6.12.0", large)
	put("usr/lib/modules/6.12.0/kernel/fs/ext4.ko", testmod.ELF())
	put("usr/lib/modules/6.12.0/kernel/a name with spaces/"+strings.Repeat("long", 20)+".ko", []byte("odd"))
	put("usr/lib/modules/6.12.0/empty", nil)
	put("etc/keep", []byte("x"))
	for link, target := range map[string]string{"lib": "usr/lib", "usr/lib/modules/6.12.0/build": "/usr/src/linux",
		"usr/lib/modules/6.12.0/kernel/alias.ko": "fs/ext4.ko"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	modules := filepath.Join(dir, "usr/lib/modules/6.12.0")
	for _, name := range []string{"hard.ko", "updates.ko"} {
		if err := os.Link(filepath.Join(modules, "kernel/fs/ext4.ko"), filepath.Join(modules, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// disk describes the files of a directory, and inside those of an archive: the same if the
// archive holds the directory. Hard links are files with the same content there.
func disk(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		switch {
		case d.IsDir():
			return nil
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			files[rel] = "link to " + target
			return err
		}
		data, err := os.ReadFile(path)
		files[rel] = fmt.Sprintf("%d bytes, %.8x", len(data), sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func inside(t testing.TB, path string) map[string]string {
	t.Helper()
	a, err := Open(path, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	return contents(t, a)
}

func contents(t testing.TB, a *Archive) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for f, err := range a.Files(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case f.Mode.IsDir():
		case f.Mode.Type() == fs.ModeSymlink:
			files[f.Name] = "link to " + f.Link
		case f.Link != "":
			if files[f.Name] = files[f.Link]; files[f.Name] == "" {
				t.Errorf("%s is a hard link to %s, which was not there before", f.Name, f.Link)
			}
		default:
			h := sha256.New()
			n, err := io.Copy(h, f)
			if err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
			if n != f.Size {
				t.Errorf("%s: %d bytes instead of %d", f.Name, n, f.Size)
			}
			files[f.Name] = fmt.Sprintf("%d bytes, %.8x", n, h.Sum(nil))
		}
	}
	return files
}

// same compares the files of an archive with those of a directory.
func same(t *testing.T, path string, kind Kind, want map[string]string) {
	t.Helper()
	if got, err := Recognize(path); err != nil || got != kind {
		t.Errorf("recognized as %q, error %v; want %q", got, err, kind)
	}
	compare(t, inside(t, path), want)
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s: %q inside, %q on disk", name, got[name], want[name])
		}
	}
	for name := range got {
		if want[name] == "" && !strings.HasPrefix(name, "DEBIAN/") {
			t.Errorf("%s is inside, and not on disk", name)
		}
	}
}

// sh runs a script in a directory.
func sh(t testing.TB, dir, script string) {
	t.Helper()
	testmod.Run(t, "sh", "-ec", "cd '"+dir+"'\n"+script)
}

func TestTar(t *testing.T) {
	t.Parallel()
	dir, out := tree(t), t.TempDir()
	want := disk(t, dir)
	for _, format := range []string{"v7", "ustar", "gnu", "posix"} {
		path := filepath.Join(out, format+".tar")
		names := "."
		if format == "v7" { // which has no long names
			names = "boot usr/lib/modules/6.12.0/kernel/fs usr/lib/modules/6.12.0/hard.ko"
		}
		sh(t, dir, "tar --format="+format+" -cf "+path+" "+names)
		if format == "v7" {
			got := inside(t, path)
			if len(got) != 3 || got["boot/vmlinuz-6.12.0"] != want["boot/vmlinuz-6.12.0"] {
				t.Errorf("v7: %v", got)
			}
			continue
		}
		same(t, path, Tar, want)
	}
	for name, command := range map[string]string{"gz": "gzip -c", "xz": "xz -c", "zst": "zstd -qc", "bz2": "bzip2 -c",
		"lzma": "xz --format=lzma -c", "lz4": "lz4 -qc", "lzo": "lzop -c"} {
		t.Run(name, func(t *testing.T) {
			program, _, _ := strings.Cut(command, " ")
			testmod.Program(t, program, program)
			path := filepath.Join(out, "any."+name)
			sh(t, out, command+" < posix.tar > "+path)
			same(t, path, Tar, want)
			sh(t, out, "head -c $(($(stat -c %s "+path+") / 2)) "+path+" > cut."+name)
			isCutOff(t, filepath.Join(out, "cut."+name))
		})
	}
	// Streams that follow one another, as pigz, pzstd and estargz make them.
	for _, command := range []string{"gzip", "xz", "zstd -q", "bzip2"} {
		program, _, _ := strings.Cut(command, " ")
		path := filepath.Join(out, "streams."+program)
		sh(t, out, "{ head -c 70000 posix.tar | "+command+" -c; printf '' | "+command+" -c; tail -c +70001 posix.tar | "+
			command+" -c; } > "+path)
		same(t, path, Tar, want)
	}
	// Frames that zstd skips, as in images of zstd:chunked.
	sh(t, out, `{ head -c 70000 posix.tar | zstd -qc; printf '\120\052\115\030\003\000\000\000abc'
		tail -c +70001 posix.tar | zstd -qc; printf '\121\052\115\030\000\000\000\000'; } > skip.zst`)
	same(t, filepath.Join(out, "skip.zst"), Tar, want)
}

// isCutOff checks that the first part of an archive is an error.
func isCutOff(t *testing.T, path string) {
	t.Helper()
	a, err := Open(path, Limits{})
	if err == nil {
		defer a.Close()
		err = drainAll(t, a)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: error %v", err)
	}
}

// drainAll reads an archive to its end, and returns the error.
func drainAll(t testing.TB, a *Archive) error {
	for f, err := range a.Files(t.Context()) {
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			return err
		}
	}
	return nil
}

func TestDeb(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "dpkg-deb", "dpkg")
	dir, out := tree(t), t.TempDir()
	want := disk(t, dir)
	control := "Package: linux-image-test\nVersion: 1\nArchitecture: all\n" +
		"Maintainer: Nobody <nobody@example.org>\nDescription: test\n"
	if err := os.MkdirAll(filepath.Join(dir, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "DEBIAN/control"), []byte(control), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, z := range []string{"none", "gzip", "xz", "zstd"} {
		path := filepath.Join(out, z+".deb")
		testmod.Run(t, "dpkg-deb", "--root-owner-group", "-Z"+z, "-b", dir, path)
		same(t, path, Deb, want)
		if got := inside(t, path)["DEBIAN/control"]; !strings.HasPrefix(got, fmt.Sprintf("%d bytes", len(control))) {
			t.Errorf("control file: %q", got)
		}
	}
	// dpkg makes blocks of 24 MiB; this is how it does it with more processors.
	path := filepath.Join(out, "none.deb")
	sh(t, out, "ar x "+path+" && xz --block-size=50000 -T2 data.tar")
	sh(t, out, "ar q blocks.deb debian-binary control.tar data.tar.xz 2>/dev/null")
	same(t, filepath.Join(out, "blocks.deb"), Deb, want)

	// Versions of the format that dpkg-deb refuses, and one that it does not.
	for _, version := range []string{"2.0", "2.1", "3.0", "1.0", "2", "x"} {
		sh(t, out, "echo "+version+" >debian-binary; rm -f version.deb; "+
			"ar q version.deb debian-binary control.tar data.tar.xz 2>/dev/null")
		refused := exec.Command("dpkg-deb", "--contents", filepath.Join(out, "version.deb")).Run()
		a, err := Open(filepath.Join(out, "version.deb"), Limits{})
		if err == nil {
			err = drainAll(t, a)
			a.Close()
		}
		if (refused != nil) != (err != nil) {
			t.Errorf("version %s: dpkg-deb: %v, here: %v", version, refused, err)
		}
	}
}

// TestOld names formats that are not read: none of them is a module.
func TestOld(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "cpio", "cpio")
	testmod.Program(t, "dpkg-deb", "dpkg")
	out := t.TempDir()
	sh(t, out, `echo m >a.ko; for format in odc bin; do echo a.ko | cpio -o -H $format >$format.cpio 2>/dev/null; done
		gzip -k odc.cpio; echo a.ko | cpio -o -H newc >newc.cpio 2>/dev/null
		(head -c 512 /dev/zero; cat newc.cpio) >zeros.cpio; mkdir -p deb/DEBIAN
		printf 'Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a <a@a>\nDescription: a\n' >deb/DEBIAN/control
		dpkg-deb --deb-format=0.939000 -Zgzip -b deb old.deb`)
	for name, want := range map[string]Kind{"odc.cpio": OldCpio, "odc.cpio.gz": OldCpio, "bin.cpio": OldCpio,
		"old.deb": OldDeb, "zeros.cpio": Initramfs} {
		a, err := Open(filepath.Join(out, name), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if a.Kind() != want {
			t.Errorf("%s: %s, want %s", name, a.Kind(), want)
		}
		if err := drainAll(t, a); (err == nil) != (want == Initramfs) {
			t.Errorf("%s: error %v", name, err)
		}
		a.Close()
	}
}

func TestRPM(t *testing.T) {
	testmod.Slow(t, "it runs rpmbuild")
	t.Parallel()
	testmod.Program(t, "rpmbuild", "rpm")
	dir := tree(t)
	want := disk(t, dir)
	for _, payload := range []string{"w9.gzdio", "w6.xzdio", "w3.zstdio", "w9.bzdio", "w7.lzdio", "w.ufdio"} {
		same(t, buildRPM(t, dir, payload), RPM, want)
	}
}

// buildRPM makes an RPM of a directory.
func buildRPM(t testing.TB, dir, payload string) string {
	t.Helper()
	top := t.TempDir()
	spec := fmt.Sprintf(`Name: linux-test
Version: 1
Release: 1
Summary: test
License: GPL
BuildArch: noarch
%%define _binary_payload %s
%%define __os_install_post %%{nil}
%%define debug_package %%{nil}
AutoReqProv: no
%%description
test
%%install
cp -a '%s/.' %%{buildroot}/
%%files
/
`, payload, dir)
	path := testmod.WriteFile(t, "test.spec", []byte(spec))
	testmod.Run(t, "rpmbuild", "--quiet", "-bb", "--define", "_topdir "+top, path)
	return filepath.Join(top, "RPMS/noarch/linux-test-1-1.noarch.rpm")
}

func TestInitramfs(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "cpio", "cpio")
	dir, out := tree(t), t.TempDir()
	want := disk(t, dir)
	for _, format := range []string{"newc", "crc"} {
		sh(t, dir, "find . | sort | cpio --quiet -o -H "+format+" > "+out+"/"+format)
	}
	same(t, filepath.Join(out, "newc"), Initramfs, want)
	same(t, filepath.Join(out, "crc"), Initramfs, want)
	sh(t, out, "mkdir -p kernel/x86/microcode && echo 1 > kernel/x86/microcode/GenuineIntel.bin")
	sh(t, out, "find kernel | cpio --quiet -o -H newc > early")
	all := maps.Clone(want)
	all["kernel/x86/microcode/GenuineIntel.bin"] = disk(t, out)["kernel/x86/microcode/GenuineIntel.bin"]
	for name, command := range map[string]string{"gzip": "gzip -c", "xz": "xz --check=crc32 -c", "zstd": "zstd -qc",
		"bzip2": "bzip2 -c", "lzma": "xz --format=lzma -c", "lz4": "lz4 -lqc", "lzo": "lzop -c"} {
		t.Run(name, func(t *testing.T) {
			program, _, _ := strings.Cut(command, " ")
			testmod.Program(t, program, program)
			path := filepath.Join(out, "image."+name)
			sh(t, out, "{ cat early; "+command+" < newc; } > "+path)
			same(t, path, Initramfs, all)
			sh(t, out, command+" < newc > only."+name)
			same(t, filepath.Join(out, "only."+name), Initramfs, want)
			// The archive, zeros, a compressed one, zeros, and a last one.
			sh(t, out, "{ cat early; head -c 512 /dev/zero; "+command+" < newc; head -c 1024 /dev/zero; cat early; "+
				"head -c 8 /dev/zero; } > two."+name)
			same(t, filepath.Join(out, "two."+name), Initramfs, all)
			sh(t, out, "head -c $(($(stat -c %s "+path+") - 1500)) "+path+" > cut."+name)
			isCutOff(t, filepath.Join(out, "cut."+name))
		})
	}
	sh(t, out, "{ cat early; echo rubbish; } > rubbish; sed 's/odd/ODD/' crc > changed")
	for name, want := range map[string]string{"rubbish": "neither a cpio archive nor compressed", "changed": "checksum"} {
		a, err := Open(filepath.Join(out, name), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if err := drainAll(t, a); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRecognize(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(testmod.Testdata(t), fifo, "/dev/null", "archive.go", t.TempDir(),
		testmod.WriteFile(t, "empty", nil), testmod.WriteFile(t, "short", []byte("MZ"))) {
		if kind, err := Recognize(path); !errors.Is(err, ErrNotArchive) {
			t.Errorf("%s: %q, %v", path, kind, err)
		}
	}
	if _, err := Recognize(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	dir := t.TempDir()
	version := []byte("Directory Transport Version: 1.1\n")
	if err := os.WriteFile(filepath.Join(dir, "version"), version, 0o644); err != nil {
		t.Fatal(err)
	}
	skopeo, err := Open(dir, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer skopeo.Close()
	if err := drainAll(t, skopeo); err == nil || !strings.Contains(err.Error(), "skopeo copy dir:") {
		t.Errorf("image in a directory: %v", err)
	}
	if kind, err := Recognize(testmod.WriteFile(t, "empty.tar", make([]byte, 10240))); kind != Tar || err != nil {
		t.Errorf("empty tar archive: %q, %v", kind, err)
	}
	a, err := New(bytes.NewReader([]byte("hsqs....")), 8, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if err := drainAll(t, a); err == nil || !strings.Contains(err.Error(), "unsquashfs") {
		t.Errorf("squashfs: %v", err)
	}
}
