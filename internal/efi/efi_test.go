package efi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

func lists() []byte {
	b := Append(nil, X509, Shim, []byte("certificate"))
	b = Append(b, SHA256, Security, bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32))
	return Append(b, X509SHA256, Security, bytes.Repeat([]byte{3}, 48))
}

func TestParse(t *testing.T) {
	t.Parallel()
	good := lists()
	for _, file := range [][]byte{good, append([]byte{6, 0, 0, 0}, good...)} {
		elements, err := ParseFile(file)
		if err != nil || len(elements) != 4 {
			t.Fatalf("got %v, %v", elements, err)
		}
		if e := elements[0]; e.Type != X509 || e.Owner != Shim || string(e.Data) != "certificate" {
			t.Errorf("the first is %v", e)
		}
		if e := elements[2]; e.Type != SHA256 || e.Data[0] != 2 || len(e.Data) != 32 {
			t.Errorf("the third is %v", e)
		}
	}
	set := func(at int, value uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at:], value)
		return b
	}
	second := 28 + 16 + 11
	for name, test := range map[string]struct {
		data  []byte
		first int // elements in front of the malformed place
	}{
		"truncated header":       {good[:20], 0},
		"truncated list":         {good[:40], 0},
		"truncated second":       {good[:second+60], 1},
		"a byte more":            {append(bytes.Clone(good), 0), 4},
		"size beyond the end":    {set(16, 1<<31), 0},
		"size 0":                 {set(16, 0), 0},
		"header beyond the list": {set(20, 0xffffffff), 0},
		"element without owner":  {set(24, 15), 0},
		"element of size 0":      {set(24, 0), 0},
		"elements do not fit":    {set(second+24, 47), 1},
		"too many":               {Append(nil, X509, Shim, make([][]byte, maxElements+1)...), 0},
	} {
		elements, err := Parse(test.data)
		if !errors.Is(err, ErrMalformed) || len(elements) != test.first {
			t.Errorf("%s: got %d elements, %v; want %d", name, len(elements), err, test.first)
		}
	}
	if _, _, err := Value([]byte{1, 2}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a variable of two bytes: %v", err)
	}
	if got, want := Shim.String(), "605dab50-e046-4300-abb6-3dd810dd8b23"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(lists())
	f.Add(append([]byte{7, 0, 0, 0}, lists()...))
	f.Add(lists()[:100])
	f.Fuzz(func(t *testing.T, data []byte) {
		elements, err := ParseFile(data)
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		total := 0
		for _, e := range elements {
			total += 16 + len(e.Data)
		}
		if total > len(data) {
			t.Fatalf("%d bytes of elements in %d bytes", total, len(data))
		}
	})
}
