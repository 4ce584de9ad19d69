package archive

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestUnclear has archives of which programs make different files: a link leads to what another entry
// replaces, in a way that not all programs go. None of them is all good, and GNU tar shows why.
func TestUnclear(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "tar", "tar")
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir} }
	good := []tar.Header{dir("opt"), file("opt/x", "good"), file("good", "good"), file("evil", "evil")}
	for name, entries := range map[string][]tar.Header{
		"file through a link": {symlink("alias", "opt"), symlink("b.ko", "opt/x"), file("alias/x", "evil")},
		"hard link through a link": {symlink("alias", "opt"), symlink("b.ko", "opt/x"),
			hardlink("alias/x", "evil")},
		"link through a link": {symlink("alias", "opt"), symlink("b.ko", "opt/x"), symlink("alias/x", "../evil")},
		"link, then a file":   {symlink("y", "good"), symlink("b.ko", "y"), file("y", "evil")},
		"link to another directory": {symlink("alias", "good"), symlink("alias", "opt"), file("alias/x", "evil"),
			symlink("alias", "good"), symlink("b.ko", "opt/x")},
		"hard link, then a file":        {hardlink("y", "good"), symlink("b.ko", "y"), file("y", "evil")},
		"hard link to a link elsewhere": {file("x", "evil"), symlink("opt/l", "x"), hardlink("b.ko", "opt/l")},
		"file, then a link":             {file("y", "good"), symlink("b.ko", "y"), symlink("y", "evil")},
	} {
		if againstGNU(t, tarOf(t, append(slices.Clone(good), entries...)...)) {
			t.Errorf("%s: all good", name)
		}
	}
	// What is clear stays so.
	for name, entries := range map[string][]tar.Header{
		"links":        {symlink("alias", "opt"), symlink("b.ko", "alias/x"), hardlink("c.ko", "opt/x")},
		"the same":     {symlink("alias", "opt"), symlink("alias", "opt"), symlink("b.ko", "alias/x")},
		"another file": {symlink("alias", "opt"), file("alias/other", "evil"), symlink("b.ko", "opt/x")},
	} {
		if !againstGNU(t, tarOf(t, append(slices.Clone(good), entries...)...)) {
			t.Errorf("%s: not all good", name)
		}
	}
}

// TestSharedInode has initramfs images that write into a file with hard links, as the kernel does.
func TestSharedInode(t *testing.T) {
	t.Parallel()
	const regular, link, dir = 0o100644, 0o120777, 0o40755
	linked := newc("x", regular, 7, 2, "") + newc("b.ko", regular, 7, 2, "good")
	opt := newc("opt", dir, 1, 2, "") + newc("opt/x", regular, 7, 2, "") + newc("b.ko", regular, 7, 2, "good") +
		newc("alias", link, 8, 1, "opt")
	for name, test := range map[string]struct{ content, want string }{
		"once":               {linked + newcEnd, "b.ko=good"},
		"another file":       {linked + newc("y", regular, 9, 1, "evil") + newcEnd, "b.ko=good"},
		"over a name":        {linked + newc("x", regular, 9, 1, "evil") + newcEnd, "x is there twice"},
		"in another archive": {linked + newcEnd + newc("x", regular, 9, 1, "evil") + newcEnd, "x is there twice"},
		"compressed":         {linked + newcEnd + gz(newc("x", regular, 9, 1, "evil")+newcEnd), "x is there twice"},
		"through a link":     {opt + newc("alias/x", regular, 9, 1, "evil") + newcEnd, "opt/x is there twice"},
		"before":             {newc("x", regular, 9, 1, "evil") + linked + newcEnd, "x is there twice"},
		"link over a name":   {linked + newc("x", link, 9, 1, "evil") + newcEnd, "x is there twice"},
		"three": {newc("a", regular, 7, 3, "") + newc("b.ko", regular, 7, 3, "good") + newc("c", regular, 7, 3, "evil") +
			newcEnd, "second content"},
	} {
		for _, where := range []string{"", "inside"} {
			content := test.content
			if where != "" {
				content = tarOf(t, file("boot/initrd.img-1", content))
			}
			var got []string
			work := names()
			work.Emit = func(s string) { got = append(got, s) }
			_, err := Modules(t.Context(), inMemory(t, content, Limits{}), work)
			if text := fmt.Sprint(got, err); !strings.Contains(text, test.want) || strings.Contains(text, "evil") {
				t.Errorf("%s %s: %s", name, where, text)
			}
		}
	}
}

// TestImageAndArchive has archives that some programs read as a container image and some as another one,
// or as a tar archive.
func TestImageAndArchive(t *testing.T) {
	t.Parallel()
	layer := func(content string) string { return tarOf(t, file("a.ko", content)) }
	join := func(archives ...string) string { // one archive of the entries of all
		var all string
		for _, a := range archives {
			all += strings.TrimRight(a, "\x00") + strings.Repeat("\x00", -len(strings.TrimRight(a, "\x00"))&511)
		}
		return all + tarEnd
	}
	good, evil := layer("good"), layer("evil")
	oci, docker := ociTar(t, good), dockerTar(t, evil)
	other := tarOf(t, file("a.ko", "good"))
	digest := blobOf(good)
	saved := tarOf(t, file(manifestFile, `[{"Layers":["`+digest+`"]}]`))
	for name, test := range map[string]struct{ content, want string }{
		"both, the same":    {join(oci, saved), "a.ko=good"},
		"both, others":      {join(oci, docker), "other layers than index.json"},
		"others, first":     {join(docker, oci), "other layers than index.json"},
		"two manifests":     {join(dockerTar(t, good), docker), "with one twice"},
		"two indexes":       {join(oci, ociTar(t, evil)), "with one twice"},
		"docker and files":  {join(docker, other), "with further files"},
		"files and docker":  {join(other, docker), "with further files"},
		"OCI and files":     {join(oci, other), "with further files"},
		"old layer":         {join(tarOf(t, file(strings.Repeat("a", 64)+"/layer.tar", evil)), other), "with further files"},
		"manifest, a link":  {join(other, tarOf(t, symlink(manifestFile, "x"), file("x", "[]"))), "with further files"},
		"rest behind":       {join(other, tarOf(t, file(manifestFile, `[{"Layers":["x"]}] x`))), "with further files"},
		"another manifest":  {join(other, tarOf(t, file(manifestFile, `{"name":"web"}`))), "a.ko=good"},
		"another list":      {join(other, tarOf(t, file(manifestFile, `[{"name":"web"}]`))), "a.ko=good"},
		"index alone":       {join(other, tarOf(t, file(indexFile, `{}`))), "a.ko=good"},
		"JSON before a tar": {ociTar(t, good, "{\"a\":1}\n"+strings.Repeat("\x00", 504)+evil), "JSON document"},
		"JSON":              {ociTar(t, good, `{"a":1}`), "a.ko=good"},
	} {
		var got []string
		work := names()
		work.Emit = func(s string) { got = append(got, s) }
		_, err := Modules(t.Context(), inMemory(t, test.content, Limits{}), work)
		if text := fmt.Sprint(got, err); !strings.Contains(text, test.want) || (err == nil) != (test.want == "a.ko=good") {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// blobOf is the name of a blob in a layout.
func blobOf(content string) string {
	return fmt.Sprintf("blobs/sha256/%x", sha256.Sum256([]byte(content)))
}
