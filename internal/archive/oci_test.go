package archive

import (
	"archive/tar"
	"strings"
	"testing"
)

// TestMediaTypes reads layers whose media type does not say what they are: content decides.
func TestMediaTypes(t *testing.T) {
	t.Parallel()
	layer := gz(tarOf(t, file("lib/modules/1/a.ko", "m")))
	attestation := map[string]any{
		"annotations": map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
		"platform":    map[string]string{"architecture": "unknown", "os": "unknown"},
	}
	for name, test := range map[string]struct {
		mediaType string
		more      map[string]any
		layers    []string
		files     int
		err       string
	}{
		"squashfs, and it is tar": {"application/vnd.oci.image.layer.squashfs", nil, []string{layer}, 1, ""},
		"none":                    {"", nil, []string{layer}, 1, ""},
		"upper case":              {"APPLICATION/VND.OCI.IMAGE.LAYER.V1.TAR+GZIP", nil, []string{layer}, 1, ""},
		"unknown":                 {"application/octet-stream", nil, []string{layer}, 1, ""},
		"no attestation":          {"application/vnd.in-toto+json", attestation, []string{layer}, 1, ""},
		"attestation":             {"application/vnd.in-toto+json", attestation, []string{`{"a":1}`}, 0, "no image"},
		"document beside a layer": {"application/vnd.oci.image.layer.v1.tar", nil, []string{layer, ` {}`}, 1, ""},
		"squashfs":                {"", nil, []string{layer, "hsqs" + strings.Repeat("x", 600)}, 0, "squashfs"},
		"rubbish":                 {"text/x", nil, []string{"rubbish", layer}, 0, `the media type "text/x" that is no tar`},
	} {
		files := 0
		var got error
		for _, err := range inMemory(t, ociTyped(t, test.mediaType, test.more, test.layers...), Limits{}).Files(t.Context()) {
			if got = err; err == nil {
				files++
			}
		}
		if files != test.files || (got == nil) != (test.err == "") || got != nil && !strings.Contains(got.Error(), test.err) {
			t.Errorf("%s: %d files, error %v", name, files, got)
		}
	}
}

// TestThroughLink hides a module that unpacking writes to another place.
func TestThroughLink(t *testing.T) {
	t.Parallel()
	lowest := tarOf(t, symlink("lib", "usr/lib"), file("usr/lib/x", ""))
	module, again := file("lib/modules/1/a.ko", "m"), tarOf(t, symlink("lib", "usr/lib"))
	directory := tar.Header{Name: "lib", Typeflag: tar.TypeDir}
	for name, test := range map[string]struct {
		layers []string
		err    bool
	}{
		"link again":      {[]string{lowest, tarOf(t, module), again}, true},
		"replaced":        {[]string{lowest, tarOf(t, module), tarOf(t, directory, module)}, true},
		"in one layer":    {[]string{tarOf(t, symlink("lib", "usr/lib"), module), tarOf(t, directory, module)}, true},
		"not hidden":      {[]string{tarOf(t, symlink("lib", "usr/lib"), module), tarOf(t, file("x", ""))}, false},
		"directory first": {[]string{lowest, tarOf(t, directory, module), again}, false},
		"directory later": {[]string{lowest, tarOf(t, module, directory), again}, true},
		"seen":            {[]string{lowest, tarOf(t, module)}, false},
		"no link":         {[]string{tarOf(t, module), tarOf(t, module), again}, false},
	} {
		err := drainAll(t, inMemory(t, ociTar(t, test.layers...), Limits{}))
		if (err != nil) != test.err || err != nil && !strings.Contains(err.Error(), "lib is a symbolic link") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
