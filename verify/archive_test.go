package verify

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// A shipped is a root directory as a kernel package installs it, with modules of every
// verdict beside the real ones, and the kernel image.
type shipped struct {
	root, version, image string
}

// ship makes the directory of about 80 real modules.
func ship(t testing.TB) shipped {
	t.Helper()
	kernels := testmod.Kernels(t)
	k := kernels[len(kernels)-1]
	s := shipped{root: filepath.Join(t.TempDir(), "root"), version: k.Version}
	s.image = filepath.Join(s.root, "boot/vmlinuz-"+k.Version)
	put := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(s.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	copied := func(from, to string) []byte {
		t.Helper()
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		put(to, data)
		return data
	}
	copied(k.Image, "boot/vmlinuz-"+k.Version)
	modules := "lib/modules/" + k.Version + "/"
	copied(filepath.Join(k.Root, modules+"modules.builtin"), modules+"modules.builtin")
	var order strings.Builder
	step := len(k.Modules) / 80
	var first string
	for i := 0; i < len(k.Modules); i += step {
		rel, err := filepath.Rel(k.Root, k.Modules[i])
		if err != nil {
			t.Fatal(err)
		}
		copied(k.Modules[i], rel)
		name := strings.TrimPrefix(module.BaseName(rel), modules)
		order.WriteString(name + "\n")
		if first == "" {
			first = filepath.Join(s.root, rel)
		}
	}
	put(modules+"modules.order", []byte(order.String()))
	whole, err := module.Open(t.Context(), first, module.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	plain, err := io.ReadAll(whole.Payload(whole.Size))
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(plain)
	changed[len(changed)/3] ^= 1
	key := testmod.NewKey(t, "ecdsa:p256")
	put(modules+"updates/changed.ko", changed)
	put(modules+"updates/unsigned.ko", testmod.ELF())
	put(modules+"updates/foreign.ko", signed(t, key, testmod.ELF()))
	put(modules+"updates/empty.ko", nil)
	put(modules+"updates/broken.ko.xz", []byte("\xfd7zXZ\x00rubbish"))
	put(modules+"updates/misnamed.ko.zst", plain)
	put(modules+"updates/plain.ko", plain)
	put("opt/vendor/elsewhere.ko", testmod.ELF())
	for link, target := range map[string]string{
		modules + "weak-updates/plain.ko": "../updates/plain.ko",
		modules + "weak-updates/abs.ko":   "/" + modules + "updates/unsigned.ko",
		modules + "weak-updates/gone.ko":  "/lib/modules/other/gone.ko",
		modules + "weak-updates/loop.ko":  "loop.ko",
		modules + "build":                 "/usr/src/linux-headers",
		modules + "extra":                 "/opt/elsewhere",
	} {
		path := filepath.Join(s.root, link)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	for link, of := range map[string]string{"hard.ko": "plain.ko", "hard2.ko": "plain.ko", "another.ko": "unsigned.ko"} {
		updates := filepath.Join(s.root, modules, "updates")
		if err := os.Link(filepath.Join(updates, of), filepath.Join(updates, link)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// brief is what has to be the same of a result in a package and on disk.
func brief(r Result) string {
	var text string
	if r.Err != nil && r.Verdict != Unreadable {
		text = r.Err.Error()
	}
	return fmt.Sprintf("%s, %q, %d layers, %d %d, %q, %q, %s", r.Verdict, r.Signer, r.Layers, r.Errno, r.Cause, r.Dmesg,
		r.Warnings, text)
}

// unpacked returns the verdicts on the modules below a root directory by a kernel image.
func unpacked(t testing.TB, root, image string) map[string]string {
	t.Helper()
	keys := new(Keyring)
	if err := keys.AddImage(image); err != nil {
		t.Fatal(err)
	}
	verdicts := make(map[string]string)
	_, err := Tree(t.Context(), keys, []string{root}, Options{Root: root, Result: func(r Result) {
		rel, _ := filepath.Rel(root, r.Path)
		verdicts[rel] = brief(r)
	}})
	if err != nil && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrIncomplete) {
		t.Fatal(err)
	}
	return verdicts
}

// packed returns the verdicts on the modules in a package, by its own kernel image if there
// is no keyring.
func packed(t testing.TB, keys *Keyring, path string) (map[string]string, Summary) {
	t.Helper()
	verdicts := make(map[string]string)
	summary, err := Archive(t.Context(), keys, path, Options{Result: func(r Result) {
		if verdicts[r.Path] != "" {
			t.Errorf("%s comes twice", r.Path)
		}
		verdicts[r.Path] = brief(r)
		if r.Archive != path {
			t.Errorf("%s is in %q", r.Path, r.Archive)
		}
	}})
	if err != nil && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrIncomplete) {
		t.Fatal(err)
	}
	if len(verdicts) != summary.Modules {
		t.Errorf("%d results, %d modules in the summary", len(verdicts), summary.Modules)
	}
	return verdicts, summary
}

func sameVerdicts(t testing.TB, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s:\npacked   %s\nunpacked %s", name, got[name], want[name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d modules packed, %d unpacked", len(got), len(want))
	}
}

// TestArchives compares the verdicts on packages, which real tools make of a directory, with
// those on the directory. The kernel image in the package judges.
func TestArchives(t *testing.T) {
	t.Parallel()
	s, out := ship(t), t.TempDir()
	want := unpacked(t, s.root, s.image)
	kinds := make(map[string]int)
	for _, v := range want {
		verdict, _, _ := strings.Cut(v, ",")
		kinds[verdict]++
	}
	for _, v := range []Verdict{Trusted, NotSigned, UnknownKey, BadSignature, Malformed, Unreadable} {
		if kinds[string(v)] == 0 {
			t.Errorf("no module is %s: %v", v, kinds)
		}
	}
	check := func(t *testing.T, path string) {
		t.Helper()
		got, summary := packed(t, nil, path)
		sameVerdicts(t, got, want)
		if !slices.Equal(summary.Kernels, []string{"boot/vmlinuz-" + s.version}) {
			t.Errorf("judged by %q", summary.Kernels)
		}
		modules := "lib/modules/" + s.version + "/"
		if !slices.Equal(summary.Skipped, []string{modules + "build"}) ||
			!slices.Equal(summary.Outside, []string{modules + "extra"}) {
			t.Errorf("links %q not followed, %q out of the package", summary.Skipped, summary.Outside)
		}
	}
	sh := func(script string) { testmod.Run(t, "sh", "-ec", "cd '"+s.root+"'\n"+script) }
	t.Run("deb", func(t *testing.T) {
		testmod.Program(t, "dpkg-deb", "dpkg")
		sh(`mkdir DEBIAN && printf '%s\n' 'Package: linux-image-test' 'Version: 1' 'Architecture: all' \
			'Maintainer: Nobody <nobody@example.org>' 'Description: test' > DEBIAN/control`)
		defer sh("rm -r DEBIAN")
		for _, z := range testmod.Few([]string{"zstd", "xz"}, 1) {
			path := filepath.Join(out, z+".deb")
			testmod.Run(t, "dpkg-deb", "--root-owner-group", "-z0", "-Z"+z, "-b", s.root, path)
			check(t, path)
		}
	})
	t.Run("tar", func(t *testing.T) {
		// The modules come before the image, which makes them wait.
		sh("tar -cf '" + out + "/plain.tar' lib opt boot")
		check(t, out+"/plain.tar")
	})
	t.Run("initramfs", func(t *testing.T) {
		testmod.Program(t, "cpio", "cpio")
		sh("find . | cpio --quiet -o -H newc | zstd -q > '" + out + "/initrd.img'")
		check(t, out+"/initrd.img")
	})
	t.Run("rpm", func(t *testing.T) {
		testmod.Decodes(t, "it runs rpmbuild")
		// rpmbuild refuses links that form a loop.
		loop := "lib/modules/" + s.version + "/weak-updates/loop.ko"
		sh("rm " + loop)
		defer sh("ln -s loop.ko " + loop)
		defer func(v string) { want[loop] = v }(want[loop])
		delete(want, loop)
		for _, payload := range []string{"w1.xzdio", "w3.zstdio"} {
			check(t, buildRPM(t, s.root, payload))
		}
	})
	t.Run("container image", func(t *testing.T) {
		testmod.Program(t, "umoci", "umoci")
		testmod.Program(t, "skopeo", "skopeo")
		// The lowest layer has other modules too, which the middle one takes away, and lacks
		// some, which the highest brings.
		updates := "lib/modules/" + s.version + "/updates"
		testmod.Run(t, "sh", "-ec", "cd '"+out+"'; u='"+updates+"'; cp -a '"+s.root+`' lower
			rm lower/$u/hard*.ko; echo old > lower/$u/plain.ko
			mkdir -p lower/lib/modules/gone lower/dir; echo x > lower/lib/modules/gone/x.ko; echo x > lower/dir/y.ko
			tar -C lower -cf lower.tar .
			mkdir -p middle/lib/modules middle/dir; touch middle/lib/modules/.wh.gone middle/dir/.wh..wh..opq
			tar -C middle -cf middle.tar .
			tar -C '`+s.root+`' -cf upper.tar $u/plain.ko $u/hard.ko $u/hard2.ko
			umoci init --layout oci; umoci new --image oci:k
			for layer in lower middle upper; do umoci raw add-layer --image oci:k $layer.tar; done
			skopeo copy -q oci:oci:k oci-archive:oci.tar; skopeo copy -q oci:oci:k docker-archive:docker.tar:linux:1`)
		for _, path := range []string{"oci", "oci.tar", "docker.tar"} {
			check(t, filepath.Join(out, path))
		}
	})
	t.Run("keyring", func(t *testing.T) {
		got, summary := packed(t, keyring(t, testmod.NewKey(t, "ecdsa:p384")), filepath.Join(out, "plain.tar"))
		if summary.Verdicts[Trusted] != 0 || len(got) != len(want) || summary.Kernels != nil {
			t.Errorf("%v, judged by %q", summary, summary.Kernels)
		}
	})
}

// TestArchiveOutside verifies a package whose link leads to modules that are not in it.
func TestArchiveOutside(t *testing.T) {
	t.Parallel()
	key, dir := testmod.NewKey(t, "ecdsa:p256"), t.TempDir()
	module := filepath.Join(dir, "root/opt/a.ko")
	if err := os.MkdirAll(filepath.Join(dir, "root/opt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(module, signed(t, key, testmod.ELF()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/srv/modules", filepath.Join(dir, "root/lib")); err != nil {
		t.Fatal(err)
	}
	for names, incomplete := range map[string]bool{"opt": false, "opt lib": true, "lib": false} {
		testmod.Run(t, "sh", "-ec", "tar -C '"+dir+"/root' -cf '"+dir+"/x.tar' "+names)
		summary, err := Archive(t.Context(), keyring(t, key), filepath.Join(dir, "x.tar"), Options{})
		if errors.Is(err, ErrIncomplete) != incomplete || errors.Is(err, ErrNoModules) != (names == "lib") ||
			(summary.String() == "all trusted") != (names == "opt") {
			t.Errorf("%s: %v, error %v", names, summary, err)
		}
	}
}

// TestArchiveBoot verifies packages with archives that were not looked into: those that a machine boots
// leave the verdict open. A FIFO is as on disk.
func TestArchiveBoot(t *testing.T) {
	t.Parallel()
	key, dir := testmod.NewKey(t, "ecdsa:p256"), t.TempDir()
	testmod.Run(t, "sh", "-ec", "cd '"+dir+`'; mkdir -p boot lib/modules/1 usr/share/doc
		echo rubbish >boot/initrd.img-1; tar -czf usr/share/doc/x.tar.gz boot; mkfifo fifo.ko`)
	if err := os.WriteFile(filepath.Join(dir, "lib/modules/1/a.ko"), signed(t, key, testmod.ELF()), 0o644); err != nil {
		t.Fatal(err)
	}
	for names, want := range map[string]error{"lib": nil, "lib usr": nil, "lib boot": ErrIncomplete,
		"lib fifo.ko": ErrRefused} {
		testmod.Run(t, "sh", "-ec", "cd '"+dir+"'; tar -cf x.tar "+names)
		summary, err := Archive(t.Context(), keyring(t, key), filepath.Join(dir, "x.tar"), Options{})
		if !errors.Is(err, want) || (summary.String() == "all trusted") != (names == "lib") {
			t.Errorf("%s: %v, error %v", names, summary, err)
		}
		if names == "lib fifo.ko" && summary.Verdicts[Malformed] != 1 {
			t.Errorf("a FIFO: %v", summary)
		}
	}
}

// buildRPM makes an RPM of a directory.
func buildRPM(t testing.TB, dir, payload string) string {
	t.Helper()
	testmod.Program(t, "rpmbuild", "rpm")
	top := t.TempDir()
	spec := fmt.Sprintf("Name: linux-test\nVersion: 1\nRelease: 1\nSummary: test\nLicense: GPL\nBuildArch: noarch\n"+
		"%%define _binary_payload %s\n%%define __os_install_post %%{nil}\n%%define debug_package %%{nil}\n"+
		"AutoReqProv: no\n%%description\ntest\n%%install\ncp -a '%s/.' %%{buildroot}/\n%%files\n/\n", payload, dir)
	path := testmod.WriteFile(t, "test.spec", []byte(spec))
	testmod.Run(t, "rpmbuild", "--quiet", "-bb", "--define", "_topdir "+top, path)
	return filepath.Join(top, "RPMS/noarch/linux-test-1-1.noarch.rpm")
}

// TestInitramfsImages compares the verdicts on initramfs images of mkinitramfs and dracut, and on
// a unified kernel image with one of them, with those on what the programs' own tools unpack.
func TestInitramfsImages(t *testing.T) {
	testmod.Decodes(t, "it runs mkinitramfs and dracut")
	if os.Geteuid() != 0 {
		testmod.Missing(t, "root, for a mount of its own below /lib/modules", "run the test as root")
	}
	testmod.Program(t, "mkinitramfs", "initramfs-tools-core")
	testmod.Program(t, "dracut", "dracut-core")
	testmod.Program(t, "depmod", "kmod")
	testmod.Program(t, "dpkg-deb", "dpkg")
	stub := "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	if _, err := os.Stat(stub); err != nil {
		testmod.Missing(t, stub, "apt-get install systemd-boot-efi")
	}
	kernels := testmod.Kernels(t)
	k, out := kernels[len(kernels)-1], t.TempDir()
	root := filepath.Join(out, "root")
	dir := filepath.Join(root, "lib/modules", k.Version)
	sh := func(script string) {
		t.Helper()
		set := fmt.Sprintf("root='%s' dir='%s' from='%s' kver='%s'\ncd '%s'\n", root, dir, k.Root, k.Version, out)
		testmod.Run(t, "sh", "-ec", set+script)
	}
	sh(`mkdir -p "$dir"; cp -a "$from/boot" "$root/"
		cd "$from/lib/modules/$kver"
		cp modules.* "$dir"
		cp -a --parents kernel/fs/ext4 kernel/fs/jbd2 kernel/fs/fat kernel/fs/nls kernel/fs/overlayfs kernel/drivers/md \
			kernel/drivers/block kernel/drivers/virtio kernel/lib kernel/crypto "$dir"
		rm "$dir"/kernel/fs/ext4/ext4.ko.*`)
	// An unsigned module, which a build of one's own may bring.
	if err := os.WriteFile(filepath.Join(dir, "kernel/fs/ext4/ext4.ko"), testmod.ELF(), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(`depmod -b "$root" $kver; cp -a /etc/initramfs-tools conf; echo ext4 >> conf/modules`)
	testmod.Run(t, "unshare", "-m", "sh", "-ec", "cd '"+out+"'; mount -t tmpfs none /lib/modules; mkdir /lib/modules/"+
		k.Version+"; mount --bind '"+dir+"' /lib/modules/"+k.Version+"; mount --bind root/boot /boot; "+
		"mkinitramfs -d conf -o initrd.img "+k.Version)
	testmod.Run(t, "dracut", "--quiet", "--force", "--no-hostonly", "--no-early-microcode", "--kmoddir", dir,
		"--kver", k.Version, "-m", "base kernel-modules", "--add-drivers", "ext4 vfat overlay dm-mod",
		"--kernel-image", k.Image, filepath.Join(out, "dracut.img"))
	sh("unmkinitramfs initrd.img u-initrd; mkdir u-dracut; cd u-dracut; lsinitrd --unpack ../dracut.img")
	initrd, dracut := filepath.Join(out, "initrd.img"), filepath.Join(out, "dracut.img")
	keys := new(Keyring)
	if err := keys.AddImage(k.Image); err != nil {
		t.Fatal(err)
	}
	for image, dir := range map[string]string{initrd: "u-initrd", dracut: "u-dracut"} {
		dir = filepath.Join(out, dir)
		if _, err := os.Stat(filepath.Join(dir, "main")); err == nil {
			dir = filepath.Join(dir, "main")
		}
		want := unpacked(t, dir, k.Image)
		for name := range want { // the link lib leads to usr/lib
			if strings.HasPrefix(name, "lib/") {
				if _, ok := want["usr/"+name]; ok {
					delete(want, name)
				}
			}
		}
		got, summary := packed(t, keys, image)
		sameVerdicts(t, got, want)
		if summary.Verdicts[Trusted] == 0 || summary.Verdicts[NotSigned] == 0 {
			t.Errorf("%s: %v", image, summary)
		}
		deb, pkg := image+".deb", image+".root"
		name := "boot/initrd.img-" + k.Version
		sh("mkdir -p '" + pkg + "/DEBIAN' '" + pkg + "/boot'; cp '" + image + "' '" + pkg + "/" + name + "'; " +
			"cp root/boot/vmlinuz-* '" + pkg + "/boot'; printf '%s\\n' 'Package: x' 'Version: 1' 'Architecture: all' " +
			"'Maintainer: x <x@x>' 'Description: x' > '" + pkg + "/DEBIAN/control'; " +
			"dpkg-deb --root-owner-group -Zxz -z0 -b '" + pkg + "' '" + deb + "'")
		inside := make(map[string]string)
		for path, verdict := range want {
			inside[name+"!"+path] = verdict
		}
		got, summary = packed(t, nil, deb)
		sameVerdicts(t, got, inside)
		if len(summary.Inner) > 0 {
			t.Errorf("not looked into: %q", summary.Inner)
		}
		uki := image + ".efi"
		testmod.Run(t, "objcopy", "--add-section", ".linux="+k.Image, "--change-section-vma", ".linux=0x2000000",
			"--add-section", ".initrd="+image, "--change-section-vma", ".initrd=0x4000000", stub, uki)
		got, summary = packed(t, nil, uki)
		sameVerdicts(t, got, want)
		if !slices.Equal(summary.Kernels, []string{".linux"}) {
			t.Errorf("judged by %q", summary.Kernels)
		}
	}
}
