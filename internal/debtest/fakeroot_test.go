package debtest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// fakerootRules build many modules, so that inodes are used again, with links and with
// owners and modes that only fakeroot knows.
const fakerootRules = `
made := debian/made/lib/modules/6.1.0-made

execute_after_dh_auto_install:
	mkdir $(made)/many
	for i in $$(seq 64); do gcc -g -Dmade=made$$i -c -o made.o module.c && \
		ld -r --build-id -o $(made)/many/$$i.ko made.o || exit; done
	ln -s many/1.ko $(made)/alias.ko
	ln $(made)/many/2.ko $(made)/second.ko

execute_after_dh_fixperms:
	chown 7:8 $(made)/many $(made)/many/3?.ko
	chmod 4600 $(made)/many/4?.ko

override_dh_modsign:
	dh_modsign --split-debug --compress=xz
`

// tarHeaders returns the headers of a built package's files by name.
func (p *sourcePackage) tarHeaders(t testing.TB, name string) map[string]*tar.Header {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(filepath.Dir(p.dir), name+"_1.0_*.deb"))
	if len(found) != 1 {
		t.Fatalf("%d packages %s were built", len(found), name)
	}
	headers := map[string]*tar.Header{}
	r := tar.NewReader(bytes.NewReader(testmod.Run(t, "dpkg-deb", "--fsys-tarfile", found[0])))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers[path.Clean(h.Name)] = h
	}
}

// Under fakeroot, which does not see what modsign does, each file of the packages has
// the type, owner and mode that it should have.
func TestDebhelperFakeroot(t *testing.T) {
	t.Parallel()
	key, cert := testmod.NewKey(t, "ecdsa:p384").Files(t)
	p := newSourcePackage(t, "", " --with modsign", fakerootRules)
	if os.Geteuid() == 0 {
		testmod.Run(t, "chown", "65534", key)
	}
	for _, dir := range []string{filepath.Dir(key), filepath.Dir(filepath.Dir(p.dir)), filepath.Dir(filepath.Dir(key))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.fakeroot = true
	r := p.build(t, "MODSIGN_KEY="+key, "MODSIGN_CERT="+cert)
	r.want(t, 0, "all trusted")
	if r.code != 0 {
		return
	}
	for _, word := range []string{"md5sum:", "tar:", "warning: fakeroot"} {
		if strings.Contains(r.output, word) {
			t.Errorf("the build speaks of %q:\n%s", word, r.output)
		}
	}

	const dir = "lib/modules/6.1.0-made"
	many, files := 0, p.tarHeaders(t, "made")
	for name, h := range files {
		kind, mode, uid, gid := byte(tar.TypeReg), int64(0o644), 0, 0
		if strings.HasPrefix(name, dir+"/many/") {
			many++
			switch number := strings.TrimSuffix(path.Base(name), ".ko.xz"); {
			case len(number) == 2 && number[0] == '3':
				uid, gid = 7, 8
			case len(number) == 2 && number[0] == '4':
				mode = 0o4600
			}
		}
		switch {
		case name == dir+"/many":
			kind, mode, uid, gid = tar.TypeDir, 0o755, 7, 8
		case strings.HasSuffix(h.Name, "/"):
			kind, mode = tar.TypeDir, 0o755
		case name == dir+"/alias.ko.xz":
			kind, mode = tar.TypeSymlink, 0o777
			if h.Linkname != "many/1.ko.xz" {
				t.Errorf("%s leads to %s", name, h.Linkname)
			}
		case name == "usr/bin/made":
			mode = 0o755
		case h.Typeflag == tar.TypeLink && (name == dir+"/second.ko.xz" || name == dir+"/many/2.ko.xz"):
			kind = tar.TypeLink
		}
		if h.Typeflag != kind || h.Mode&0o7777 != mode || h.Uid != uid || h.Gid != gid {
			t.Errorf("%s: type %c, mode %o, owner %d:%d, want %c, %o, %d:%d", name, h.Typeflag, h.Mode, h.Uid, h.Gid,
				kind, mode, uid, gid)
		}
	}
	if many != 64 {
		t.Errorf("%d modules of 64", many)
	}
	if files[dir+"/second.ko.xz"] == nil || files[dir+"/alias.ko.xz"] == nil {
		t.Error("a link is missing")
	}
	trusted(t, cert, modulesIn(t, p.unpack(t, "made"))...)

	debug := p.tarHeaders(t, "made-dbgsym")
	for name, h := range debug {
		kind := byte(tar.TypeReg)
		if h.Typeflag == tar.TypeLink { // the debug file of a module with two names has two names
			h = debug[path.Clean(h.Linkname)]
		}
		switch {
		case strings.HasSuffix(h.Name, "/"):
			kind = tar.TypeDir
		case name == "usr/share/doc/made-dbgsym":
			kind = tar.TypeSymlink
		case strings.Contains(name, "/.build-id/") && h.Typeflag == tar.TypeSymlink:
			kind = tar.TypeSymlink
			if to := debug[path.Join(path.Dir(name), h.Linkname)]; to == nil || to.Typeflag != tar.TypeReg {
				t.Errorf("%s leads to %s, which is not there", name, h.Linkname)
			}
		}
		if h.Typeflag != kind || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s: type %c, owner %d:%d", name, h.Typeflag, h.Uid, h.Gid)
		}
	}
	p.unpack(t, "made-dbgsym")
}

// modsign warns of modules that it replaces where fakeroot does not see it.
func TestFakerootWarning(t *testing.T) {
	t.Parallel()
	fakeroot := testmod.Program(t, "fakeroot", "fakeroot")
	key, cert := testmod.NewKey(t, "ecdsa:p384").Files(t)
	out := t.TempDir()
	for _, test := range []struct {
		name  string
		warns bool
		args  []string
	}{
		{"in place", true, []string{"sign", "--key", key, "--cert", cert}},
		{"a copy", false, []string{"sign", "--key", key, "--cert", cert, "--output", out}},
		{"detached", false, []string{"sign", "--key", key, "--cert", cert, "--detached"}},
		{"a dry run", false, []string{"sign", "--key", key, "--cert", cert, "--dry-run"}},
		{"stripped", true, []string{"strip", "--signature"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "a.ko"), 0o644, string(testmod.ELF()))
			if test.args[0] == "strip" {
				testmod.Run(t, program, "sign", "--key", key, "--cert", cert, dir)
			}
			args := append([]string{program}, append(test.args, dir)...)
			r := run(t, environment(), "/", fakeroot, args...)
			r.want(t, 0)
			if warns := strings.Contains(r.output, "warning: fakeroot does not see"); warns != test.warns {
				t.Errorf("a warning: %v, want %v:\n%s", warns, test.warns, r.output)
			}
			if strings.Contains(r.output, "hint: --output DIR") != test.warns {
				t.Errorf("a hint beside no warning, or none:\n%s", r.output)
			}
		})
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.ko"), 0o644, string(testmod.ELF()))
	r := run(t, environment(), "/", program, "sign", "--key", key, "--cert", cert, dir)
	if r.want(t, 0); strings.Contains(r.output, "fakeroot") {
		t.Errorf("a warning without fakeroot:\n%s", r.output)
	}
}
