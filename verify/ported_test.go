package verify

import (
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestPortedModules verifies modules of Debian's packages with the image of each package.
// Debian signs the modules of every architecture, with a key of each build: another
// architecture's image refuses them.
func TestPortedModules(t *testing.T) {
	testmod.Decodes(t, "it decompresses whole kernels")
	images := testmod.PortedImages(t)
	verdicts := func(t *testing.T, image, modules string, want Verdict) {
		t.Helper()
		keys := new(Keyring)
		if err := keys.AddImage(image); err != nil {
			t.Fatal(err)
		}
		if warnings := keys.Warnings(); len(warnings) > 0 {
			t.Errorf("warnings %q", warnings)
		}
		summary, _ := Tree(t.Context(), keys, []string{modules}, Options{Result: func(r Result) {
			if r.Verdict != want {
				t.Errorf("%s: %s, want %s: %v", r.Path, r.Verdict, want, r.Err)
			}
		}})
		if n := summary.Verdicts[want]; n < 50 || n > 80 {
			t.Errorf("%d modules are %s", n, want)
		}
	}
	ported, other := 0, images[len(images)-1]
	for _, image := range images {
		if image.Modules == "" {
			continue
		}
		t.Run(image.Arch, func(t *testing.T) { verdicts(t, image.Path, image.Modules, Trusted) })
		if ported++; ported == 2 {
			t.Run(image.Arch+" by "+other.Arch, func(t *testing.T) { verdicts(t, other.Path, image.Modules, UnknownKey) })
		}
	}
	if ported < 6 {
		t.Errorf("modules of %d architectures, not of 6", ported)
	}
}

// TestFlatHashes does not judge by the certificates of a flat binary that has hashes too.
func TestFlatHashes(t *testing.T) {
	t.Parallel()
	for _, line := range []string{noSignatures, "\x015module hashes: the proof is that of another kernel",
		"Loading of unsigned module that is not in the hash list is rejected"} {
		image := make([]byte, 64)
		copy(image[56:], "ARM\x64")
		image = append(image, "Linux version 6.12.0 (x)\x00"+line...)
		err := new(Keyring).AddImage(testmod.WriteFile(t, "Image", image))
		if err == nil || !strings.Contains(err.Error(), "does not tell where its sections are") {
			t.Errorf("%q: %v", line, err)
		}
	}
}
