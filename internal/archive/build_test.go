package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"testing"
)

// Archives made here, for what tools do not make: lies, bombs, loops, and seeds.

// newc returns an entry of a cpio archive.
func newc(name string, mode, ino, links uint32, content string) string {
	return newcSized(name, mode, ino, links, uint32(len(content)), content)
}

func newcSized(name string, mode, ino, links, size uint32, content string) string {
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", ino, mode, 0, 0, links, 0, size,
		0, 0, 0, 0, len(name)+1, 0)
	pad := func(s string) string { return s + "\x00\x00\x00"[:-len(s)&3] }
	return pad(header+name+"\x00") + pad(content)
}

var newcEnd = newc(cpioTrailer, 0, 0, 1, "")

// ar returns an ar archive of members in order: name, content, name, content.
func ar(members ...string) string {
	b := arMagic
	for i := 0; i < len(members); i += 2 {
		b += fmt.Sprintf("%-16s%-12d%-6d%-6d%-8o%-10d`\n%s", members[i], 0, 0, 0, 0o100644, len(members[i+1]), members[i+1])
		if len(members[i+1])%2 == 1 {
			b += "\n"
		}
	}
	return b
}

// tarOf returns a tar archive.
func tarOf(t testing.TB, headers ...tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Uname // stands for it
		h.Uname = ""
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			h.Size = int64(len(content))
		}
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func file(name, content string) tar.Header { return tar.Header{Name: name, Uname: content} }

func gz(content string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, content)
	w.Close()
	return b.String()
}

// ociTar returns an image of layers, the lowest first, as a tar archive.
func ociTar(t testing.TB, layers ...string) string {
	t.Helper()
	return ociTyped(t, "application/vnd.oci.image.layer.v1.tar+gzip", nil, layers...)
}

// ociTyped returns an image whose layers have a media type, with more members in its descriptor.
func ociTyped(t testing.TB, mediaType string, more map[string]any, layers ...string) string {
	t.Helper()
	files := []tar.Header{file(layoutFile, `{"imageLayoutVersion":"1.0.0"}`)}
	blob := func(kind, content string) map[string]any {
		digest := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
		blob := file("blobs/sha256/"+digest, content)
		if !slices.ContainsFunc(files, func(f tar.Header) bool { return f.Name == blob.Name }) {
			files = append(files, blob)
		}
		return map[string]any{"mediaType": kind, "digest": "sha256:" + digest, "size": len(content)}
	}
	text := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var list []any
	for _, layer := range layers {
		list = append(list, blob(mediaType, layer))
	}
	manifest := blob("application/vnd.oci.image.manifest.v1+json", text(map[string]any{"layers": list}))
	maps.Copy(manifest, more)
	files = append(files, file(indexFile, text(map[string]any{"manifests": []any{manifest}})))
	return tarOf(t, files...)
}

// dockerTar returns an image as docker save of old wrote it.
func dockerTar(t testing.TB, layers ...string) string {
	t.Helper()
	var files []tar.Header
	var names []string
	for i, layer := range layers {
		name := fmt.Sprintf("%064x/layer.tar", i)
		names = append(names, name)
		files = append(files, file(name, layer))
	}
	b, err := json.Marshal([]any{map[string]any{"Config": "x.json", "RepoTags": []string{"linux:1"}, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, append(files, file(manifestFile, string(b)))...)
}

// peOf returns a PE file of sections in order: name, content, name, content.
func peOf(sections ...string) string {
	b := append([]byte("MZ"), make([]byte, 0x3a)...)
	b = binary.LittleEndian.AppendUint32(b, 0x40)
	b = append(b, "PE\x00\x00"...)
	b = binary.LittleEndian.AppendUint16(b, 0x8664)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(sections)/2))
	b = append(b, make([]byte, 16)...)
	at := len(b) + 40*len(sections)/2
	for i := 0; i < len(sections); i += 2 {
		entry := make([]byte, 40)
		copy(entry, sections[i])
		for offset, n := range map[int]int{8: len(sections[i+1]), 16: len(sections[i+1]), 20: at} {
			binary.LittleEndian.PutUint32(entry[offset:], uint32(n))
		}
		b = append(b, entry...)
		at += len(sections[i+1])
	}
	for i := 1; i < len(sections); i += 2 {
		b = append(b, sections[i]...)
	}
	return string(b)
}

// rpmOf returns a package with a payload. Its header lists a.ko and b.ko, two hard links to a
// file of one byte.
func rpmOf(payload string) string {
	header := func(tags ...any) string { // number, type, count, content
		var index, store []byte
		for i := 0; i < len(tags); i += 4 {
			for _, n := range []int{tags[i].(int), tags[i+1].(int), len(store), tags[i+2].(int)} {
				index = binary.BigEndian.AppendUint32(index, uint32(n))
			}
			store = append(store, tags[i+3].(string)...)
		}
		b := binary.BigEndian.AppendUint32([]byte(headerMagic+"\x00\x00\x00\x00"), uint32(len(tags)/4))
		return string(binary.BigEndian.AppendUint32(b, uint32(len(store)))) + string(index) + string(store)
	}
	one, two := "\x00\x00\x00\x01", "\x00\x00\x00\x01\x00\x00\x00\x01"
	return rpmMagic + string(make([]byte, rpmLead-len(rpmMagic))) + header(1000, rpmString, 1, "12345678") + header(
		tagPayloadFormat, rpmString, 1, "cpio\x00", tagBaseNames, rpmStrings, 2, "a.ko\x00b.ko\x00",
		tagDirNames, rpmStrings, 1, "/lib/\x00", tagDirIndexes, rpmInt32, 2, string(make([]byte, 8)),
		tagFileSizes, rpmInt32, 2, two, tagFileModes, rpmInt16, 2, "\x81\xa4\x81\xa4",
		tagFileDevices, rpmInt32, 2, two, tagFileInodes, rpmInt32, 2, one+one) + payload
}

func smallRPM(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/small.rpm")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// strippedRPM is the small package with a payload in the form without names and sizes.
func strippedRPM(t testing.TB) []byte {
	t.Helper()
	b := smallRPM(t)
	section := io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
	signature, err := readHeader(section, rpmLead)
	if err != nil {
		t.Fatal(err)
	}
	h, err := readHeader(section, signature.end+-signature.end&7)
	if err != nil {
		t.Fatal(err)
	}
	w := &walk{ctx: t.Context()}
	w.limits.complete()
	files := &rpmFiles{header: h, walk: w}
	payload := ""
	for i := range uint32(8) {
		f, err := files.file(i)
		if err != nil {
			break
		}
		entry := fmt.Sprintf("%s%08x\x00\x00", cpioStripped, i)
		if f.size > 0 {
			entry += map[int64]string{4: "a.ko", 6: "module\x00\x00"}[f.size]
		}
		payload += entry
	}
	return append(b[:h.end:h.end], payload+newcEnd...)
}

// inMemory opens an archive in memory.
func inMemory(t testing.TB, content string, limits Limits) *Archive {
	t.Helper()
	a, err := New(bytes.NewReader([]byte(content)), int64(len(content)), limits)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
