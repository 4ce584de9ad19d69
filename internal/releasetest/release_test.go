package releasetest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// An architecture has a name with Go, Debian, RPM, the program file and QEMU.
type architecture struct{ goarch, deb, rpm, file, qemu string }

var architectures = []architecture{
	{"amd64", "amd64", "x86_64", "x86-64", ""},
	{"arm64", "arm64", "aarch64", "ARM aarch64", "aarch64"},
	{"arm", "armhf", "armv7hl", "ARM, EABI5", "arm"},
	{"ppc64le", "ppc64el", "ppc64le", "64-bit PowerPC", "ppc64le"},
	{"s390x", "s390x", "s390x", "IBM S/390", "s390x"},
	{"riscv64", "riscv64", "riscv64", "UCB RISC-V", "riscv64"},
	{"loong64", "loong64", "loongarch64", "LoongArch", "loongarch64"},
}

// largest is the size in bytes that no program of a release exceeds. It is there to notice
// growth: a dependency, or text/template, which keeps the methods of all types.
const largest = 16_800_000

func TestRelease(t *testing.T) {
	testmod.Slow(t, "builds a release for seven architectures, twice")
	for name, from := range map[string]string{"buildah": "buildah", "dpkg-deb": "dpkg", "rpmbuild": "rpm", "git": "git",
		"pod2man": "perl", "skopeo": "skopeo", "umoci": "umoci", "file": "file"} {
		testmod.Program(t, name, from)
	}
	clone, version := source(t)
	made := filepath.Join(t.TempDir(), "made")
	run(t, clone, nil, "scripts/release", version, made)
	name := func(pattern string, args ...any) string {
		return filepath.Join(made, fmt.Sprintf(pattern, slices.Insert(args, 0, any(version))...))
	}

	t.Run("files", func(t *testing.T) {
		want := []string{"SHA256SUMS"}
		add := func(path string) { want = append(want, filepath.Base(path)) }
		for _, a := range architectures {
			add(name("modsign-%s-linux-%s.tar.gz", a.goarch))
			add(name("modsign_%s-1_%s.deb", a.deb))
			add(name("modsign-%s-1.%s.rpm", a.rpm))
		}
		for _, pattern := range []string{"dh-modsign_%s-1_all.deb", "modsign-%s-image.tar", "modsign-%s.tar.gz",
			"modsign-%s.cdx.json"} {
			add(name(pattern))
		}
		slices.Sort(want)
		if got := names(t, made); !slices.Equal(got, want) {
			t.Errorf("the release has the files\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
	programs := make(map[string]string)
	for _, a := range architectures {
		dir := t.TempDir()
		run(t, dir, nil, "tar", "-xzf", name("modsign-%s-linux-%s.tar.gz", a.goarch))
		programs[a.goarch] = filepath.Join(dir, fmt.Sprintf("modsign-%s-linux-%s", version, a.goarch), "modsign")
	}
	t.Run("programs", func(t *testing.T) { testPrograms(t, version, programs) })
	t.Run("packages", func(t *testing.T) {
		for _, a := range architectures {
			deb := run(t, "", nil, "dpkg-deb", "--field", name("modsign_%s-1_%s.deb", a.deb), "Architecture")
			rpm := run(t, "", nil, "rpm", "-qp", "--qf", "%{ARCH}\n", name("modsign-%s-1.%s.rpm", a.rpm))
			if deb != a.deb+"\n" || rpm != a.rpm+"\n" {
				t.Errorf("%s: the .deb is for %q, and the .rpm for %q", a.goarch, deb, rpm)
			}
			dir := t.TempDir()
			run(t, "", nil, "dpkg-deb", "-x", name("modsign_%s-1_%s.deb", a.deb), dir)
			same(t, filepath.Join(dir, "usr/bin/modsign"), programs[a.goarch])
		}
	})
	t.Run("image", func(t *testing.T) { testImage(t, name("modsign-%s-image.tar"), version, programs) })
	t.Run("bare", func(t *testing.T) {
		testBare(t, name("modsign_%s-1_%s.deb", "amd64"), name("modsign-%s-1.%s.rpm", "x86_64"))
	})
	t.Run("components", func(t *testing.T) { testComponents(t, name("modsign-%s.cdx.json"), programs) })
	t.Run("source", func(t *testing.T) {
		dir := t.TempDir()
		run(t, dir, nil, "tar", "-xzf", name("modsign-%s.tar.gz"))
		dir = filepath.Join(dir, "modsign-"+version)
		got := strings.Fields(run(t, dir, nil, "find", ".", "-type", "f", "-printf", "%P\n"))
		want := strings.Fields(run(t, clone, nil, "git", "ls-files"))
		slices.Sort(got)
		slices.Sort(want)
		if len(got) < 500 || !slices.Equal(got, want) {
			t.Errorf("the archive of the source has %d files, and the commit %d", len(got), len(want))
		}
	})
	// A verifier's own build, elsewhere, with other settings: see docs/release.md.
	t.Run("verified", func(t *testing.T) {
		elsewhere := filepath.Join(t.TempDir(), "a directory of another length")
		run(t, "", nil, "git", "clone", "--quiet", clone, elsewhere)
		script := shellBlocks(t, filepath.Join(clone, "docs/release.md"))
		script = strings.Replace(script, "scripts/release", `"$CLONE"/scripts/release`, 1)
		work := t.TempDir()
		run(t, work, nil, "cp", "-R", made+"/.", work)
		env := []string{"VERSION=" + version, "BUILT=" + filepath.Join(work, "built"), "CLONE=" + elsewhere, "TZ=JST-9",
			"GOFLAGS=-mod=mod", "GOAMD64=v3"}
		run(t, work, env, "sh", "-euc", "umask 077\n"+script)
		for _, file := range names(t, made) {
			same(t, filepath.Join(work, "built", file), filepath.Join(made, file))
		}
	})
}

// testPrograms runs the program of each architecture.
func testPrograms(t *testing.T, version string, programs map[string]string) {
	key := testmod.NewKey(t, "ecdsa:p256")
	keyFile, certFile := key.Files(t)
	modules := "../../testdata/modules"
	for _, a := range architectures {
		t.Run(a.goarch, func(t *testing.T) {
			t.Parallel()
			program := programs[a.goarch]
			kind := run(t, "", nil, "file", "--brief", program)
			for _, want := range []string{"statically linked", ", stripped", a.file} {
				if !strings.Contains(kind, want) {
					t.Errorf("file calls it %s, want %s", kind, want)
				}
			}
			if info, err := os.Stat(program); err != nil || info.Size() > largest {
				t.Errorf("the program has %d bytes, more than %d (%v)", info.Size(), largest, err)
			}
			command := []string{program}
			if a.qemu != "" {
				command = []string{testmod.Program(t, "qemu-"+a.qemu+"-static", "qemu-user-static"), program}
			}
			modsign := func(args ...string) string {
				return run(t, "", nil, command[0], append(slices.Clone(command[1:]), args...)...)
			}
			if got, want := modsign("version"), "modsign "+version+" (go"; !strings.HasPrefix(got, want) ||
				!strings.Contains(got, "linux/"+a.goarch) {
				t.Errorf("its version is %q, want %s...", got, want)
			}
			signed := filepath.Join(t.TempDir(), "signed")
			modsign("sign", "--quiet", "--key", keyFile, "--cert", certFile, "--output", signed, modules)
			modsign("verify", "--cert", certFile, signed)
			// The program of this architecture is another judge.
			run(t, "", nil, programs["amd64"], "verify", "--quiet", "--cert", certFile, signed)
		})
	}
}

// testImage runs the program of the image as a user who may write nothing but the modules.
func testImage(t *testing.T, image, version string, programs map[string]string) {
	layout := filepath.Join(t.TempDir(), "layout")
	run(t, "", nil, "skopeo", "copy", "--quiet", "--all", "oci-archive:"+image, "oci:"+layout+":m")
	var index struct {
		Manifests []struct {
			Platform struct{ Architecture, OS string }
		}
	}
	decode(t, run(t, "", nil, "skopeo", "inspect", "--raw", "oci:"+layout+":m"), &index)
	var got, want []string
	for _, m := range index.Manifests {
		got = append(got, m.Platform.OS+"/"+m.Platform.Architecture)
	}
	for _, a := range architectures {
		want = append(want, "linux/"+a.goarch)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the image is for %q, want %q", got, want)
	}
	one := filepath.Join(t.TempDir(), "one")
	for _, a := range architectures {
		run(t, "", nil, "skopeo", "copy", "--quiet", "--override-arch", a.goarch, "oci:"+layout+":m",
			"oci:"+one+":"+a.goarch)
		bundle := filepath.Join(t.TempDir(), "bundle")
		run(t, "", nil, "umoci", "unpack", "--rootless", "--image", one+":"+a.goarch, bundle)
		same(t, filepath.Join(bundle, "rootfs/usr/local/bin/modsign"), programs[a.goarch])
		if a.goarch == "amd64" {
			testContainer(t, bundle, version)
		}
	}
}

func testContainer(t *testing.T, bundle, version string) {
	var config struct {
		Process struct {
			Args []string
			Env  []string
		}
	}
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	decode(t, string(data), &config)
	if !slices.Equal(config.Process.Args, []string{"/usr/local/bin/modsign"}) {
		t.Errorf("the image runs %q", config.Process.Args)
	}
	root := filepath.Join(bundle, "rootfs")
	if link, err := os.Readlink(filepath.Join(root, "usr/local/bin/sign-file")); err != nil || link != "modsign" {
		t.Errorf("sign-file leads to %q (%v)", link, err)
	}
	if pem, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt")); err != nil ||
		bytes.Count(pem, []byte("BEGIN CERTIFICATE")) < 50 {
		t.Errorf("the image has %d certificates (%v)", bytes.Count(pem, []byte("BEGIN CERTIFICATE")), err)
	}
	if os.Geteuid() != 0 {
		testmod.Missing(t, "root", "run as root, to mount the image")
	}
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	work := t.TempDir()
	run(t, "", nil, "cp", key, filepath.Join(work, "key.pem"))
	run(t, "", nil, "cp", cert, filepath.Join(work, "cert.x509"))
	run(t, "", nil, "cp", "-R", "../../testdata/modules", work)
	run(t, "", nil, "chown", "-R", "4321:4321", work)
	if err := os.Mkdir(filepath.Join(root, "mnt"), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"ROOT=" + root, "WORK=" + work}
	out := run(t, "", env, "unshare", "--mount", "--propagation", "private", "sh", "-euc", `
		mount --bind "$ROOT" "$ROOT"
		mount --bind "$WORK" "$ROOT/mnt"
		mount -o remount,bind,ro "$ROOT"
		inside() { env -i PATH="$PATH:/usr/sbin" chroot --userspec=4321:4321 "$ROOT" "$@"; }
		inside /usr/local/bin/modsign version
		inside /usr/local/bin/modsign sign --key /mnt/key.pem --cert /mnt/cert.x509 /mnt/modules
		inside /usr/local/bin/modsign verify --cert /mnt/cert.x509 /mnt/modules 2>&1
		module=$(find "$WORK/modules" -name hello.ko -print -quit)
		inside /usr/local/bin/sign-file sha256 /mnt/key.pem /mnt/cert.x509 "/mnt${module#"$WORK"}"
		! inside /usr/local/bin/modsign keygen --out /usr/key.pem 2>/dev/null
	`)
	if !strings.HasPrefix(out, "modsign "+version+" ") || !strings.Contains(out, ": all trusted") {
		t.Errorf("in the container:\n%s", out)
	}
}

// testComponents compares the SBOM with what Go has written into the programs.
func testComponents(t *testing.T, file string, programs map[string]string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		BOMFormat  string
		Components []struct {
			Name, Version string
			Licenses      []any
		}
	}
	decode(t, string(data), &bom)
	var listed []string
	for _, c := range bom.Components {
		if c.Name == "std" {
			continue
		}
		listed = append(listed, c.Name+" "+c.Version)
		if len(c.Licenses) == 0 {
			t.Errorf("no licence of %s", c.Name)
		}
	}
	slices.Sort(listed)
	if bom.BOMFormat != "CycloneDX" || len(listed) < 10 {
		t.Fatalf("%s lists %q", bom.BOMFormat, listed)
	}
	dep := regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`)
	for _, a := range architectures {
		var linked []string
		for _, m := range dep.FindAllStringSubmatch(run(t, "", nil, "go", "version", "-m", programs[a.goarch]), -1) {
			linked = append(linked, m[1]+" "+m[2])
		}
		slices.Sort(linked)
		if !slices.Equal(linked, listed) {
			t.Errorf("%s is linked with %q, and the SBOM lists %q", a.goarch, linked, listed)
		}
	}
}

// What go install makes is static if cgo is off, as README.md has it, or net and os/user are
// those without cgo.
func TestInstall(t *testing.T) {
	testmod.Slow(t, "builds the program twice")
	for name, change := range map[string]struct{ env, tags string }{
		"CGO_ENABLED=0": {"CGO_ENABLED=0", ""},
		"tags":          {"CGO_ENABLED=1", "netgo,osusergo"},
	} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			env := []string{change.env, "GOBIN=" + bin, "GOFLAGS=-buildvcs=false"}
			run(t, "../..", env, "go", "install", "-tags="+change.tags, "./cmd/modsign")
			kind := run(t, "", nil, testmod.Program(t, "file", "file"), "--brief", filepath.Join(bin, "modsign"))
			if !strings.Contains(kind, "statically linked") {
				t.Errorf("file calls it %s", kind)
			}
		})
	}
}

func TestReleaseArguments(t *testing.T) {
	testmod.Program(t, "git", "git")
	for _, program := range []string{"buildah", "rpmbuild"} {
		testmod.Program(t, program, strings.TrimSuffix(program, "build"))
	}
	clone, version := source(t)
	there := t.TempDir()
	for _, test := range []struct {
		change, want string
		args         []string
	}{
		{"", "usage: ", nil},
		{"", "usage: ", []string{version}},
		{"", "usage: ", []string{"--help", "out"}},
		{"", "is no version", []string{"1.2", "out"}},
		{"", "is no version", []string{"1.2.3-4", "out"}},
		{"", "is there already", []string{version, there}},
		{"", `no heading "## 9.9.9"`, []string{"9.9.9", "out"}},
		{"git tag v9.9.8", "the commit has the tag v9.9.8", []string{version, "out"}},
		{"git tag -d v9.9.8; echo >>README.md", "not committed", []string{version, "out"}},
	} {
		run(t, clone, nil, "sh", "-c", test.change)
		cmd := command(t, clone, nil, "scripts/release", test.args...)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), test.want) {
			t.Errorf("release %q says %q (%v), want %q", test.args, out, err, test.want)
		}
	}
	if left := run(t, clone, nil, "git", "status", "--porcelain"); left != " M README.md\n" {
		t.Errorf("refused runs leave %q", left)
	}
}
