package explain

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/verify"
)

// TestArchive explains modules in a tar archive as the files that it holds, but for the
// commands: none of them can mend a file in an archive.
func TestArchive(t *testing.T) {
	t.Parallel()
	trusted, other := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "rsa:2048")
	plain := real(t, "hello")
	k, err := Open(t.Context(), source(t, trusted))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	names := []string{"trusted.ko", "unsigned.ko", "unknown.ko", "behind.ko.xz", "misnamed.ko.zst", "cut.ko.xz"}
	xz := packedXZ(t, sign(t, trusted, plain))
	for i, b := range [][]byte{
		sign(t, trusted, plain), plain, sign(t, other, plain), sign(t, trusted, packedXZ(t, plain)), xz, xz[:len(xz)-40],
	} {
		if err := os.WriteFile(filepath.Join(dir, names[i]), b, 0o644); err != nil {
			t.Fatal(err)
		}
		err := w.WriteHeader(&tar.Header{Name: "./lib/modules/x/" + names[i], Mode: 0o644, Size: int64(len(b))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := testmod.WriteFile(t, "a package", packed.Bytes())
	var reports []*Report
	found, err := Archive(t.Context(), path, ArchiveOptions{Kernel: k, Result: func(_ *Kernel, r *Report) {
		reports = append(reports, r)
	}})
	if err != nil || found.Modules != len(names) || len(reports) != len(names) {
		t.Fatalf("%+v, %d reports: %v", found, len(reports), err)
	}
	refused := 0
	for i, r := range reports {
		want := k.Module(t.Context(), filepath.Join(dir, names[i]))
		if r.Verdict != want.Verdict || len(r.Causes) != len(want.Causes) ||
			r.Where() != "lib/modules/x/"+names[i]+" in "+path {
			t.Errorf("%s: %s, %+v, %v; of the file %s, %+v", r.Where(), r.Verdict, r.Causes, r.Err, want.Verdict, want.Causes)
			continue
		}
		for n, c := range r.Causes {
			w := want.Causes[n]
			if c.ID != w.ID || c.Errno != w.Errno || strings.Join(c.Log, "\n") != strings.Join(w.Log, "\n") {
				t.Errorf("%s: %+v, of the file %+v", names[i], c, w)
			}
			if strings.Contains(c.Mend.Command, names[i]) || c.Mend == (Mend{}) {
				t.Errorf("%s: %s: mended with %+v", names[i], c.ID, c.Mend)
			}
		}
		if r.Verdict == Refused {
			refused++
		}
	}
	if refused < 3 || reports[0].Verdict != Loads {
		t.Errorf("%d are refused, and the first %s", refused, reports[0].Verdict)
	}

	// Without a kernel nobody decides, and what cannot be read to its end is an error.
	_, err = Archive(t.Context(), path, ArchiveOptions{Open: func(*verify.Image) (*Kernel, error) {
		return k, nil
	}})
	if !errors.Is(err, verify.ErrNoKernel) {
		t.Errorf("without a kernel: %v", err)
	}
	cut := testmod.WriteFile(t, "cut.tar", packed.Bytes()[:packed.Len()/2])
	if _, err := Archive(t.Context(), cut, ArchiveOptions{Kernel: k}); err == nil {
		t.Error("a part of an archive has no error")
	}
}

func packedXZ(t testing.TB, b []byte) []byte { return packed(t, compress.XZ, b) }
