package integrations

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// A signedTemplate is files.json with every member that Debian's has.
type signedTemplate struct {
	Packages map[string]struct {
		TrustedCerts []string `json:"trusted_certs"`
		Files        []struct {
			Type string `json:"sig_type"`
			File string `json:"file"`
		} `json:"files"`
	} `json:"packages"`
}

func parseTemplate(t *testing.T, text string) signedTemplate {
	t.Helper()
	var template signedTemplate
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&template); err != nil {
		t.Fatalf("%v in\n%.500s", err, text)
	}
	return template
}

// TestDebianSigned sends packages to a signing service and attaches what comes back.
func TestDebianSigned(t *testing.T) {
	t.Parallel()
	for name, pkg := range map[string]string{"dpkg-deb": "dpkg", "openssl": "openssl"} {
		testmod.Program(t, name, pkg)
	}
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	const pkg = "linux-image-6.12.0-unsigned"
	dir := t.TempDir()
	root := filepath.Join(dir, pkg)
	install(t, filepath.Join(root, "lib/modules/6.12.0"), "plain")
	write(t, filepath.Join(root, "boot/vmlinuz-6.12.0"), "no kernel\n", 0o644)
	write(t, filepath.Join(root, "DEBIAN/control"), "Package: "+pkg+"\nVersion: 6.12.0-1\nArchitecture: amd64\n"+
		"Maintainer: Tests <tests@example.com>\nDescription: modules\n", 0o644)
	deb := filepath.Join(dir, "unsigned.deb")
	ok(t, "", nil, "dpkg-deb", "--root-owner-group", "--build", root, deb)

	// Out. It has the form of a real list.
	list := ok(t, "", nil, "debian-signed/files-json", "--trusted-cert", cert, pkg+"="+root)
	template := parseTemplate(t, list)
	if files := template.Packages[pkg].Files; len(files) != 3 || files[0].File != "lib/modules/6.12.0/kernel/counter.ko" {
		t.Fatalf("files.json is\n%s", list)
	}
	t.Run("like Debian's", func(t *testing.T) {
		real, _ := filepath.Glob("/usr/share/code-signing/linux-image-*-signed-template/files.json")
		if len(real) == 0 {
			testmod.Missing(t, "a template for signed packages", "apt-get install linux-image-amd64-signed-template")
		}
		if template := parseTemplate(t, read(t, real[0])); len(template.Packages) == 0 {
			t.Errorf("no package in %s", real[0])
		}
	})

	// The service, which signs each file of the packages that the list names.
	services := map[string]func(module, signature string){
		"the kernel's sign-file": func(module, signature string) {
			ok(t, "", nil, testmod.SignFile(t), "-d", "sha256", private, cert, module)
			write(t, signature, read(t, module+".p7s"), 0o644)
		},
		"modsign": func(module, signature string) {
			ok(t, "", nil, program, "sign", "-q", "-k", private, "-c", cert, "--hash", "sha256", "--detached", module)
			write(t, signature, read(t, module+".p7s"), 0o644)
		},
	}
	results := make(map[string]string)
	for name, sign := range services {
		unpacked, debian, image := t.TempDir(), t.TempDir(), t.TempDir()
		ok(t, "", nil, "dpkg-deb", "-x", deb, unpacked)
		for _, file := range template.Packages[pkg].Files {
			if file.Type != "linux-module" {
				t.Fatalf("%s has the type %s", file.File, file.Type)
			}
			sign(filepath.Join(unpacked, file.File), filepath.Join(debian, "signatures", pkg, file.File+".sig"))
		}
		write(t, filepath.Join(debian, "files.json"), list, 0o644)

		// In: the build of the signed package, with xz as Debian's.
		ok(t, "", nil, "dpkg-deb", "-x", deb, image)
		ok(t, "", nil, program, "attach", "-q", "--cert", cert, "--format", "debian", "--signatures", debian,
			"--compress", "xz", image)
		signedBy(t, image, cert)
		ok(t, "", nil, program, "verify", "-q", "--cert", cert, image)
		for _, path := range modules(t, image) {
			if !strings.HasSuffix(path, ".ko.xz") {
				t.Errorf("%s is not compressed", path)
			}
			results[name] += string(content(t, path))
		}
	}
	if results["modsign"] != results["the kernel's sign-file"] {
		t.Error("the services do not make the same signatures")
	}

	// A kernel that does not trust the certificate gets no signature.
	_, other := testmod.NewKey(t, "rsa:3072").Files(t)
	debian := t.TempDir()
	write(t, filepath.Join(debian, "files.json"), ok(t, "", nil, "debian-signed/files-json", "--trusted-cert", other,
		pkg+"="+root), 0o644)
	r := run(t, "", nil, program, "attach", "--cert", cert, "--format", "debian", "--signatures", debian, root)
	r.refuses(t, 1, "trusted_certs lacks the certificate")
}

// TestDebianFilesJSON lists several packages, and refuses what the service could not sign.
func TestDebianFilesJSON(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "openssl", "openssl")
	_, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	_, other := testmod.NewKey(t, "ecdsa:p256").Files(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	compressed, odd := filepath.Join(dir, "xz"), filepath.Join(dir, "odd")
	install(t, a, "plain")
	install(t, b, "plain")
	install(t, compressed, "xz")
	write(t, filepath.Join(odd, "a\"b.ko"), "", 0o644)
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	template := parseTemplate(t, ok(t, "", nil, "debian-signed/files-json", "--trusted-cert", cert,
		"--trusted-cert", other, "linux-a="+a, "linux-b="+b))
	if len(template.Packages) != 2 || len(template.Packages["linux-a"].TrustedCerts) != 2 {
		t.Errorf("the list is %v", template)
	}
	for says, args := range map[string][]string{
		"compressed before it is signed": {"linux=" + compressed},
		"a character that this script":   {"linux=" + odd},
		"no module":                      {"linux=" + filepath.Join(dir, "empty")},
		"not a directory":                {"linux=" + filepath.Join(dir, "nowhere")},
		"not a certificate":              {"--trusted-cert", "debian-signed/files-json", "linux=" + a},
		"usage: files-json":              {"Linux=" + a},
	} {
		r := run(t, "", nil, "debian-signed/files-json", args...)
		r.refuses(t, 1, says)
		if strings.Contains(r.output, `"packages":`) {
			t.Errorf("%q: part of a list is written:\n%s", args, r.output)
		}
	}
}
