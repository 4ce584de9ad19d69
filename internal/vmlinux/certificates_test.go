package vmlinux

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// certificatesOf opens an image and reads its certificates.
func certificatesOf(t *testing.T, path, systemMap string) (*Certificates, error) {
	t.Helper()
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if systemMap != "" {
		f, err := os.Open(systemMap)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := im.UseSystemMap(f); err != nil {
			t.Fatal(err)
		}
	}
	return im.Certificates()
}

func sameCertificates(t *testing.T, got, want *Certificates) {
	t.Helper()
	for _, part := range []struct {
		name      string
		got, want []byte
	}{
		{"Builtin", got.Builtin, want.Builtin},
		{"Module", got.Module, want.Module},
		{"Extra", got.Extra, want.Extra},
		{"Dropped", got.Dropped, want.Dropped},
		{"Revoked", got.Revoked, want.Revoked},
	} {
		if string(part.got) != string(part.want) {
			t.Errorf("%s has %d bytes, not the %d expected\n got %.40x\nwant %.40x", part.name, len(part.got), len(part.want),
				part.got, part.want)
		}
	}
	if !slices.Equal(got.BlacklistHashes, want.BlacklistHashes) {
		t.Errorf("BlacklistHashes = %q, want %q", got.BlacklistHashes, want.BlacklistHashes)
	}
	if got.Found != want.Found {
		t.Errorf("Found = %q, want %q", got.Found, want.Found)
	}
}

// TestLists builds kernels with the assembler and the linker, and finds the lists in
// each by its symbols, by its System.map, and by the scan.
func TestLists(t *testing.T) {
	var (
		p256, p384, p521 = certOf(t, "ecdsa:p256"), certOf(t, "ecdsa:p384"), certOf(t, "ecdsa:p521")
		rsa              = certOf(t, "rsa:2048")
	)
	// small is a certificate that the loader rejects because its length is below 256
	// bytes.
	small := join([]byte{0x30, 0x81, 0x80}, make([]byte, 0x80))
	tests := []struct {
		name string
		kernel
		mayScan string // part of the scan's error if it must not guess
		list    string // part of the other errors if there is nothing to find
		dropped []byte
	}{
		{name: "module key", kernel: kernel{module: p384}},
		{name: "module key, no revocation list", kernel: kernel{module: rsa, noRevocation: true}},
		{name: "two certificates in the module key", kernel: kernel{module: join(p384, rsa), trusted: p521}},
		{name: "module key and others, revoked", kernel: kernel{module: p384, trusted: join(rsa, p256),
			revoked: join(p521, p256)}},
		{name: "trusted only, revoked", kernel: kernel{trusted: join(rsa, p256), revoked: p521}},
		{name: "trusted only, no revocation list", kernel: kernel{trusted: join(rsa, p256), noRevocation: true}},
		{name: "trusted only, revocation list empty", kernel: kernel{trusted: p256},
			mayScan: "may be those that the kernel trusts"},
		{name: "revoked only", kernel: kernel{revoked: p256}, mayScan: "may be those that the kernel trusts", list: "is 0"},
		{name: "revoked only, then something", kernel: kernel{revoked: p256, after: ".fill 32, 1, 0x55"},
			mayScan: "is the revocation list", list: "is 0"},
		{name: "nothing", kernel: kernel{}, mayScan: "no certificate list", list: "is 0"},
		{name: "reserve", kernel: kernel{module: p384, trusted: rsa, reserve: 4096}},
		{name: "reserve, revoked", kernel: kernel{module: p384, reserve: 4096, revoked: rsa}},
		{name: "reserve, extra", kernel: kernel{module: p384, trusted: rsa, reserve: 4096, extra: p521}},
		{name: "reserve, extra, revoked", kernel: kernel{module: p384, reserve: 4096, extra: p521, revoked: p256}},
		{name: "reserve filled", kernel: kernel{module: p384, reserve: len(p521), extra: p521, revoked: p256}},
		{name: "reserve, trusted only", kernel: kernel{trusted: rsa, reserve: 1000, revoked: p256}},
		{name: "reserve, trusted only, nothing revoked", kernel: kernel{trusted: rsa, reserve: 1001}},
		{name: "reserve, empty list, revoked", kernel: kernel{reserve: 4096, revoked: rsa}, mayScan: "may be those",
			list: "is 0"},
		{name: "before 5.13", kernel: kernel{module: p384, trusted: rsa, old: true, after: ".fill 32, 1, 0x55"}},
		{name: "before 5.13, reserve", kernel: kernel{module: p384, reserve: 4096, old: true, after: ".fill 32, 1, 0x55"}},
		{name: "blacklist", kernel: kernel{module: p384, hashes: []string{
			"tbs:" + strings.Repeat("0123456789abcdef", 4), "bin:" + strings.Repeat("f", 128)}}},
		{name: "not a blacklist", kernel: kernel{module: p384, after: `.asciz "tbs:` + strings.Repeat("AB", 32) +
			`", "bin:` + strings.Repeat("a", 41) + `", "tbs:` + strings.Repeat("a", 130) +
			`", "x:` + strings.Repeat("a", 64) + `", "tbs:ab"`}},
		{name: "short certificate behind", kernel: kernel{module: p384, trusted: join(small, rsa)},
			mayScan: "no certificate list", dropped: join(small, rsa)},
		{name: "short certificate first", kernel: kernel{module: small, trusted: rsa, revoked: p256},
			mayScan: "may be those", list: "not a certificate that the kernel loads"},
	}
	for _, g := range testmod.Few(targets, 1) {
		for _, test := range tests {
			t.Run(g.name+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				vmlinux, stripped, systemMap := test.link(t, g)
				builtin := join(test.module, test.trusted, test.extra)
				want := Certificates{
					Builtin:         builtin[:len(builtin)-len(test.dropped)],
					Module:          test.module,
					Extra:           test.extra,
					Dropped:         test.dropped,
					Revoked:         test.revoked,
					BlacklistHashes: test.hashes,
				}
				if test.old {
					want.Module = nil
				}
				for _, way := range []struct{ found, image, systemMap, err string }{
					{"symbols", vmlinux, "", test.list},
					{"symbols", vmlinux, systemMap, test.list},
					{"System.map", stripped, systemMap, test.list},
					{"scan", stripped, "", test.mayScan},
				} {
					t.Run(way.found, func(t *testing.T) {
						got, err := certificatesOf(t, way.image, way.systemMap)
						if way.err != "" {
							if got != nil || err == nil || !strings.Contains(err.Error(), way.err) {
								t.Fatalf("Certificates: %+v, %v; want an error with %q", got, err, way.err)
							}
							none := way.err == "is 0" || way.err == "no certificate list" || way.err == "is the revocation list"
							if errors.Is(err, ErrNoCertificates) != none {
								t.Errorf("%v: is ErrNoCertificates is %v", err, !none)
							}
							return
						}
						if err != nil {
							t.Fatal(err)
						}
						want := want
						want.Found = way.found
						sameCertificates(t, got, &want)
					})
				}
			})
		}
	}
}

// TestOtherSystemMap rejects the addresses of another kernel.
func TestOtherSystemMap(t *testing.T) {
	t.Parallel()
	p384 := certOf(t, "ecdsa:p384")
	_, stripped, _ := kernel{module: p384}.link(t, targets[0])
	_, _, other := kernel{module: p384, text: make([]byte, 12345)}.link(t, targets[0])
	if c, err := certificatesOf(t, stripped, other); err == nil {
		t.Errorf("found %d bytes of certificates in the wrong place", len(c.Builtin))
	}

	im, err := Open(stripped)
	if err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]string{
		"ffffffffffffffff B The real System.map is in the linux-image-dbg package\n": "stub",
		"": "stub",
		"c0000000 R system_certificate_list\nc0000008 R system_certificate_list\n": "both",
		"c0000000 R " + strings.Repeat("x", 1<<17):                                 "too long",
	} {
		if err := im.UseSystemMap(strings.NewReader(content)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("UseSystemMap(%.40q) = %v, want an error with %q", content, err, want)
		}
	}
	// The image has not changed.
	if c, err := im.Certificates(); err != nil || string(c.Builtin) != string(p384) {
		t.Errorf("Certificates after failed System.maps: %v", err)
	}
}
