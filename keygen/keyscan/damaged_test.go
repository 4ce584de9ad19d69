package keyscan_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen/keyscan"
)

// TestFailedArchives finds keys in the bytes of files that fail as archives or compressed
// files, and each of them once.
func TestFailedArchives(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256").KeyPEM
	var tarred bytes.Buffer
	w := tar.NewWriter(&tarred)
	w.WriteHeader(&tar.Header{Name: "key", Size: int64(len(key)), Mode: 0o600, Typeflag: tar.TypeReg})
	w.Write(key)
	w.Flush()
	other := testmod.NewKey(t, "ecdsa:p384").KeyPEM
	for name, test := range map[string]struct {
		data []byte
		want int
	}{
		"cpio":        {append([]byte("070701"+strings.Repeat("00000000", 13)+"x\x00\x00\x00junk"), key...), 1},
		"tar":         {append(bytes.Clone(tarred.Bytes()), other...), 2},
		"tar, twice":  {append(bytes.Clone(tarred.Bytes()), key...), 1},
		"gzip":        {append(gzipped([]byte("nothing")), key...), 1},
		"gzip, inner": {gzipped(append(gzipped([]byte("nothing")), key...)), 1},
		"gzip, cut":   {gzipped(key)[:len(gzipped(key))-4], 1},
		"ar":          {[]byte("!<arch>\n" + string(key)), 1},
	} {
		r := scan(t, keyscan.Options{}, testmod.WriteFile(t, "file", test.data))
		if len(r.Findings) != test.want || len(r.Failures) != 1 || !errors.Is(r.Err(), keyscan.ErrFound) {
			t.Errorf("%s: %+v, %+v", name, r.Findings, r.Failures)
		}
		for _, f := range r.Failures {
			if strings.Contains(f.Err.Error(), string(key[30:36])) {
				t.Errorf("%s: the error quotes the key: %v", name, f.Err)
			}
		}
	}
}

// TestTarTypes finds keys in entries of types that GNU tar takes for regular files.
func TestTarTypes(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256").KeyPEM
	for _, kind := range "0\x007ZDV" {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h := tar.Header{Name: "key", Size: int64(len(key)), Mode: 0o600, Typeflag: tar.TypeReg}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write(key)
		w.Close()
		archive := b.Bytes()
		archive[156] = byte(kind)
		copy(archive[148:], "        ")
		sum := 0
		for _, c := range archive[:512] {
			sum += int(c)
		}
		copy(archive[148:], fmt.Sprintf("%06o\x00 ", sum))
		r := scan(t, keyscan.Options{}, testmod.WriteFile(t, "file", gzipped(archive)))
		if len(r.Findings) != 1 || len(r.Failures) != 0 {
			t.Errorf("type %q: %+v, %+v", kind, r.Findings, r.Failures)
		}
	}
}

// TestZip goes on behind a member that cannot be read, and finds an archive behind a script.
func TestZip(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256").KeyPEM
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, h := range []zip.FileHeader{{Name: "lzma", Method: 14}, {Name: "encrypted", Flags: 1}, {Name: "key"}} {
		w, err := z.CreateRaw(&h)
		if h.Name == "key" {
			w, err = z.CreateHeader(&zip.FileHeader{Name: h.Name, Method: zip.Deflate})
		}
		if err == nil {
			_, err = w.Write(key)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	program := strings.Repeat("x", 500)
	for _, stub := range []string{"", "#!/bin/sh\nexit\n", "\x7fELF" + program, "MZ" + program} {
		r := scan(t, keyscan.Options{}, testmod.WriteFile(t, "file", append([]byte(stub), b.Bytes()...)))
		if len(r.Failures) != 2 || !strings.Contains(fmt.Sprint(r.Failures), "encrypted, and") ||
			!strings.Contains(fmt.Sprint(r.Failures), "method 14") {
			t.Errorf("%.4q: failures %+v", stub, r.Failures)
		}
		paths := make(map[string]bool)
		for _, f := range r.Findings {
			paths[f.Path] = true
		}
		if !paths["key"] {
			t.Errorf("%.4q: found %+v", stub, r.Findings)
		}
	}
}

// TestAr finds a key in a compressed member of an ar archive.
func TestAr(t *testing.T) {
	t.Parallel()
	member := func(name string, data []byte) string {
		return fmt.Sprintf("%-16s%-32s%-10d`\n%s%s", name, "0", len(data), data, "\n"[:len(data)&1])
	}
	key := gzipped(testmod.NewKey(t, "ecdsa:p256").KeyPEM)
	members := member("/", []byte("index")) + member("a/", []byte("text")) + member("key.gz/", key)
	found := scanData(t, []byte("!<arch>\n"+members))
	if len(found) != 1 || found[0].Path != "key.gz" {
		t.Errorf("found %+v", found)
	}
}
