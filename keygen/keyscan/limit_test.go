package keyscan

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// zipped returns an archive with the same file a few times.
func zipped(t *testing.T, data []byte, count int) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range count {
		w, err := z.Create(fmt.Sprint(i))
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBomb checks that archives in archives do not expand without an end: the first file
// that goes beyond the limit ends all of them.
func TestBomb(t *testing.T) {
	t.Parallel()
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	bomb := zipped(t, zipped(t, zipped(t, make([]byte, 128<<10), 5), 5), 5)
	for limit, fits := range map[int64]bool{100 << 20: true, 2 << 20: false} {
		f := newFile("bomb", limit)
		err := s.look(t.Context(), f, &stream{rest: bytes.NewReader(bomb)}, 0)
		if fits && err != nil || !fits && !errors.Is(err, errBudget) || *f.budget < -window {
			t.Errorf("limit %d: %v, and %d bytes are left", limit, err, *f.budget)
		}
	}
	deep := []byte("no key")
	for range maxDepth {
		deep = zipped(t, deep, 1)
	}
	for depth, want := range []bool{true, false} {
		before := len(s.Report().Failures)
		err := s.look(t.Context(), newFile("deep", 1<<30), &stream{rest: bytes.NewReader(deep)}, depth)
		if ok := err == nil && len(s.Report().Failures) == before; ok != want {
			t.Errorf("%d archives in one another, from depth %d: %v", maxDepth, depth, err)
		}
	}
	if len(s.memory) != 0 {
		t.Error("an archive in memory was not released")
	}
}
