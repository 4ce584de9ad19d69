//go:build kerneltest

package kerneltest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/kernelimage"
	"github.com/modsign/modsign/verify"
)

// addCert adds certificates to a kernel that was built without them, in its vmlinux as the
// kernel's own program does, and in its boot image, which then boots and loads what their
// keys have signed. It is a part of TestVerdicts, which has built the kernel:
//
//	scripts/kernel-test TestVerdicts/6.12/add-cert
func addCert(t *testing.T, tree *Tree, pairs keys) {
	one, two := pairs["stranger"].Certificate, pairs["unknown"].Certificate
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }

	// The vmlinux, with symbols and without.
	vmlinux := filepath.Join(tree.Objtree, "vmlinux")
	theirs, stripped := path("theirs"), path("stripped")
	testmod.Run(t, "cp", vmlinux, theirs)
	der := testmod.WriteFile(t, "stranger.der", one.Raw)
	peer := filepath.Join(tree.Objtree, "scripts/insert-sys-cert")
	testmod.Run(t, peer, "-b", theirs, "-c", der)
	testmod.Run(t, "strip", "-o", stripped, vmlinux)
	testmod.Run(t, peer, "-s", filepath.Join(tree.Objtree, "System.map"), "-b", path("stripped"), "-c", der)
	for _, c := range []struct {
		name, image, want string
		options           kernelimage.Options
	}{
		{"symbols", vmlinux, theirs, kernelimage.Options{}},
		{"scan", path("bare"), stripped, kernelimage.Options{}},
		{"System.map", path("bare"), stripped,
			kernelimage.Options{SystemMap: filepath.Join(tree.Objtree, "System.map")}},
	} {
		if c.image != vmlinux {
			testmod.Run(t, "strip", "-o", c.image, vmlinux)
		}
		c.options.Output = path("ours")
		added, err := kernelimage.AddCertificate(t.Context(), c.image, one, c.options)
		if err != nil || added.Used != len(one.Raw) || added.Room/4 != 1024 || !added.Changed {
			t.Fatalf("%s: %+v, %v", c.name, added, err)
		}
		if !bytes.Equal(read(t, path("ours")), read(t, c.want)) {
			t.Errorf("by %s, the vmlinux differs from that of insert-sys-cert", c.name)
		}
		// Twice is once, and the kernel's program says so too.
		again, err := kernelimage.AddCertificate(t.Context(), path("ours"), one, kernelimage.Options{})
		if err != nil || again.Changed {
			t.Errorf("%s: added twice: %+v, %v", c.name, again, err)
		}
	}

	methods := []string{"GZIP"}
	if full() {
		methods = append(methods, "XZ", "ZSTD")
	}
	for i, method := range methods {
		t.Run(method, func(t *testing.T) {
			if i > 0 {
				tree.Reconfigure(t, fmt.Sprintf("# CONFIG_KERNEL_%s is not set\nCONFIG_KERNEL_%s=y\n", methods[i-1], method))
				tree.Make(t, "bzImage")
			}
			image := filepath.Join(t.TempDir(), "bzImage")
			options := kernelimage.Options{Output: image}
			added, err := kernelimage.AddCertificate(t.Context(), tree.Image(), one, options)
			if errors.Is(err, kernelimage.ErrNoRoom) && method != "GZIP" {
				if _, err := os.Stat(image); !os.IsNotExist(err) {
					t.Errorf("an image without room was written: %v", err)
				}
				t.Log(err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			second, err := kernelimage.AddCertificate(t.Context(), image, two, kernelimage.Options{})
			if method != "GZIP" && errors.Is(err, kernelimage.ErrNoRoom) {
				second, err = &kernelimage.Added{Used: len(one.Raw) + len(two.Raw)}, nil
			}
			if err != nil || second.Used != len(one.Raw)+len(two.Raw) {
				t.Fatalf("the second certificate: %+v, %v", second, err)
			}
			t.Logf("%s: %d, then %d of %d bytes", added.Packing, added.Used, second.Used, second.Room)
			keys := new(verify.Keyring)
			if err := keys.AddImage(image); err != nil {
				t.Fatal(err)
			}
			payload := modulePayload(t, tree)
			var cases []Case
			for _, name := range []string{"module", "stranger", "unknown", "issued", "revoked"} {
				cases = append(cases, Case{Name: name, Data: pairs.signed(t, name, payload)})
			}
			cases = append(cases, Case{Name: "not signed", Data: payload})
			verdicts, console := bootCases(t, image, cases)
			if loaded := loadedCertificates(console); !slices.Equal(keys.Names(), loaded) {
				t.Errorf("verify finds the certificates %q, and the kernel loads %q", keys.Names(), loaded)
			}
			for j, v := range verdicts {
				trusted := slices.Contains([]string{"module", "stranger", "unknown"}, v.Name)
				if v.Name == "unknown" && second.Room == 0 {
					trusted = false
				}
				file := testmod.WriteFile(t, "case.ko", cases[j].Data)
				if r := verify.File(t.Context(), keys, file); (v.Errno == 0) != trusted || r.Errno != v.Errno {
					t.Errorf("%s: %v, %q; verify says %s, %v", v.Name, v.Errno, v.Log, r.Verdict, r.Errno)
				}
			}
			// TestVerdicts has booted the image as it was built.
			built := new(verify.Keyring)
			if err := built.AddImage(tree.Image()); err != nil || built.Holds(one.Raw) || built.Holds(two.Raw) {
				t.Errorf("the image as it was built: %q, %v", built.Names(), err)
			}
		})
	}
}
