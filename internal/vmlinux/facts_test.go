package vmlinux

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// The vermagic in the image is that of the modules.
func TestVermagic(t *testing.T) {
	t.Parallel()
	for _, k := range testmod.Kernels(t) {
		image, err := Open(k.Image)
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		got, err := image.Vermagic()
		if err != nil {
			t.Fatal(err)
		}
		m, err := module.Open(t.Context(), k.Modules[0], module.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		layer, err := module.Split(m, m.Size)
		if err == nil {
			m.Size = layer.Offset
		}
		facts, err := module.ReadFacts(m, m.Size)
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := facts.Tag("vermagic"); got != want || want == "" {
			t.Errorf("%s: vermagic %q, that of its modules is %q", k.Image, got, want)
		}
		if machine, order := image.Machine(); machine != facts.Machine || order != facts.Order {
			t.Errorf("%s: machine %v, %v, that of its modules is %v", k.Image, machine, order, facts.Machine)
		}
		if _, err := image.Config(); err != ErrNoConfig {
			t.Errorf("%s: %v, and Debian's kernels have no CONFIG_IKCONFIG", k.Image, err)
		}
	}
}

// madeConfig is what CONFIG_IKCONFIG puts into a kernel.
func madeConfig(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("IKCFG_ST")
	w := gzip.NewWriter(&b)
	_, err := w.Write([]byte(text))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	b.WriteString("IKCFG_ED")
	return b.Bytes()
}

func TestMadeFacts(t *testing.T) {
	t.Parallel()
	const banner = "Linux version 6.12.0-x (a@b) #1 SMP\x00"
	open := func(parts ...[]byte) *Image {
		data := makeELF(binary.BigEndian, false, 0x1000, bytes.Join(parts, nil))
		image, err := New(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return image
	}
	for text, want := range map[string]string{
		banner + "\x006.12.0-x SMP mod_unload \x00":                       "6.12.0-x SMP mod_unload ",
		banner + "\x006.12.0-x \x00":                                      "6.12.0-x ",
		banner:                                                            "",
		banner + "\x006.12.0-x SMP mod_unload\x00":                        "", // no space at its end
		banner + "\x006.12.0-x SMP (mod_unload) \x00":                     "",
		banner + "v6.12.0-x SMP \x00":                                     "", // within a text
		banner + "v6.12.0-x SMP \x00\xff6.12.0-x SMP \x00":                "6.12.0-x SMP ",
		banner + "\x006.12.0-x " + strings.Repeat("SMP ", 1000) + "\x00":  "", // too long
		banner + "\x006.12.0-x SMP RANDSTRUCT_" + strings.Repeat("a", 64): "", // without an end
		"6.12.0-x SMP \x00":                                               "", // no banner
	} {
		got, err := open([]byte(text)).Vermagic()
		if err != nil || got != want {
			t.Errorf("vermagic %q in %.80q, expected %q: %v", got, text, want, err)
		}
	}
	const config = "CONFIG_MODULES=y\n"
	got, err := open([]byte("IKCFG_ST, a text"), madeConfig(t, config), []byte("more")).Config()
	if err != nil || string(got) != config {
		t.Errorf("configuration %q: %v", got, err)
	}
	if machine, order := open([]byte(banner)).Machine(); order != binary.BigEndian {
		t.Errorf("machine %v, %v", machine, order)
	}
	cut := madeConfig(t, config)
	for name, bad := range map[string][]byte{
		"cut off": cut[:len(cut)-20], "a bomb": madeConfig(t, strings.Repeat("x", maxConfig+1)),
	} {
		if b, err := open(bad).Config(); err == nil || err == ErrNoConfig {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

func FuzzFacts(f *testing.F) {
	f.Add([]byte("Linux version 6.12.0-x (a@b)\x00\x006.12.0-x SMP mod_unload \x00"))
	f.Add(madeConfig(f, "CONFIG_MODULES=y\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b := makeELF(binary.LittleEndian, true, 0x1000, data)
		image, err := New(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		magic, err := image.Vermagic()
		if err != nil || len(magic) > maxVermagic {
			t.Errorf("vermagic %q: %v", magic, err)
		}
		if config, err := image.Config(); err == nil && len(config) > maxConfig {
			t.Errorf("configuration of %d bytes", len(config))
		}
	})
}
