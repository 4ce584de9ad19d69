package verify

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// sameAsFile checks that the verdict on content is that on a file with this content.
func sameAsFile(t *testing.T, what string, keys *Keyring, data []byte) Verdict {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.ko")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	got, want := Module(bytes.NewReader(data), int64(len(data)), keys), File(t.Context(), keys, path)
	got.Path = want.Path
	if (got.Err == nil) != (want.Err == nil) {
		t.Errorf("%s: the error is %v, and of the file %v", what, got.Err, want.Err)
	}
	got.Err, want.Err = nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v, and the file %+v", what, got, want)
	}
	return got.Verdict
}

func TestModuleIsAsFile(t *testing.T) {
	testmod.Slow(t, "it verifies every test module twice, damaged ones too")
	t.Parallel()
	key, other := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "ecdsa:p384")
	keys := keyring(t, key)
	for _, path := range testmod.Testdata(t) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(path, ".ko") {
			if v := sameAsFile(t, path, keys, data); v != Malformed { // it is compressed
				t.Errorf("%s: %s", path, v)
			}
			continue
		}
		if v := sameAsFile(t, path, keys, data); v != NotSigned {
			t.Errorf("%s: %s", path, v)
		}
		if v := sameAsFile(t, path, keys, signed(t, key, data)); v != Trusted {
			t.Errorf("%s, signed: %s", path, v)
		}
		if v := sameAsFile(t, path, keys, signed(t, other, data)); v != UnknownKey {
			t.Errorf("%s, signed with another key: %s", path, v)
		}
	}
	good := signed(t, key, testmod.ELF())
	seen := make(map[Verdict]int)
	for i := range good {
		mutant := slices.Clone(good)
		mutant[i] ^= 1 << (i % 8)
		seen[sameAsFile(t, "a bit of a byte", keys, mutant)]++
		if i%16 == 0 {
			seen[sameAsFile(t, "cut off", keys, good[:i])]++
		}
	}
	for _, verdict := range []Verdict{BadSignature, Malformed, NotSigned, UnknownKey, Unsupported} {
		if seen[verdict] == 0 {
			t.Errorf("no change makes the module %s: %v", verdict, seen)
		}
	}
	sameAsFile(t, "two signatures", keys, signed(t, key, signed(t, other, testmod.ELF())))
	sameAsFile(t, "a proof", keys, module.AppendSignature(testmod.ELF(), module.TypeMerkle, make([]byte, 36)))
}

// A failing reader fails, and its error is that of the result.
type failingAt struct {
	io.ReaderAt
	off int64
}

func (f failingAt) ReadAt(b []byte, off int64) (int, error) {
	if off <= f.off && f.off < off+int64(len(b)) {
		return 0, os.ErrPermission
	}
	return f.ReaderAt.ReadAt(b, off)
}

func TestModuleUnreadable(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	data := signed(t, key, testmod.ELF())
	for _, off := range []int64{0, 100, int64(len(data)) - 100, int64(len(data)) - 1} {
		r := Module(failingAt{bytes.NewReader(data), off}, int64(len(data)), keyring(t, key))
		if r.Verdict != Unreadable || r.Err == nil {
			t.Errorf("byte %d cannot be read: %+v", off, r)
		}
	}
}

func TestInspectTree(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"b.ko": signed(t, key, testmod.ELF()),
		"a.ko": testmod.ELF(),
		"c.ko": testmod.ELF(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, jobs := range []int{0, 1} {
		var got []string
		skipped, err := InspectTree(
			t.Context(),
			[]string{dir},
			Options{Jobs: jobs},
			func(path string, d *Description, err error) {
				if err != nil || d.Path != path || len(d.Layers) != map[string]int{"b.ko": 1}[filepath.Base(path)] ||
					d.Format != compress.None.String() {
					t.Errorf("%s: %+v, %v", path, d, err)
				}
				got = append(got, filepath.Base(path))
			},
		)
		if err != nil || !slices.Equal(got, []string{"a.ko", "b.ko", "c.ko"}) || len(skipped) != 0 {
			t.Errorf("%q, %q, %v", got, skipped, err)
		}
	}
}
