package tpmkey

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// Files of OpenSSL's provider for TPMs, of a key on P-256 and a passphrase-protected one of
// RSA.
var samples = []string{
	"MIHwBgZngQUKAQOgAwEBAQIEQAAAAQRYAFYAIwALAAYAcgAAABAAEAADABAAIP7jRil+GzvgYb5d1mTczGLUsCXehf8fI4fOt8Tb" +
		"4cMiACDoxhR1hNZAGHRTQFN+hXb3BrLnigm9I9otEMULesznkwSBgAB+ACBsGmN31PBpmVafGAZ/kabxH6jDo1S/BQEmy7I7Fcza" +
		"ewAQ0+hVUfNiDA+VRHmFsB8am1EqU6OxDDaSUVD+W231eZ/6iov1Et/I8Pz8qBJ6n7Gv0o0Ikfoztp7jix91cB+8oo4vb1wrrMZY" +
		"0NooPWfYDKsciCzMEvTERHys",
	"MIICEgYGZ4EFCgEDoAMBAQACBEAAAAEEggEYARYAAQALAAYAcgAAABAAEAgAAAAAAAEAv8Ha0CSSEs03Orp6XE68UL8wbCAMfms6" +
		"qABFGilslrD5clPf+xckcwoNb7Ts23wdNScnVXXjbqQwxY0ptFlmlOyO1Zm5uP0cXw4FlJlp9Mp6uC05ZrzUapIs+vZloMQzOeKK" +
		"6esXLS8ISuHRhYLl2Xcy0/2KyDbEu+GlRx4gewjgfWeJ5JE7X/ByeZ5ys51d6PqfQzWc22P7GoaW6TpaG3Z/ZAp4c0ac0/feFNjp" +
		"fVB5wNIv4Kr4+RRDXF4uqo39NoZj4aibYtuE9NPntp9UQs/ZaIZwORa7URFVeCdxx6SuAhUVRlOwmdi69lGRms3b9owx3m+aXjbH" +
		"cUpnZTnjawSB4ADeACDQBl6+LEQUDJJIvzpjJdlI0J7pvb7ArLgLeA0G/NgCEgAQR2iDVzkicRqrjqjMqZVkCTkl9ctoWVCrxRrO" +
		"Ex9q0i97NKcWi8cndDyxsJGhOibFXk5x3q1zJuQZHiPu5sNp492FNBvjmcokNAw7ttXP7WU3DA3jezq1DGG/O8xEFRH7MtHVJVWu" +
		"T/gL1PoLO5u8gul/24iEFdvje/Jvd0snThTeFKAtCErIL5roB9NryGHSk5GfO8cRmFwjjwiiueZGJyYRC83jgRwre0PTjc5X165j" +
		"1mtAwENEZ15b",
}

func sample(t testing.TB, i int) []byte {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(samples[i])
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Every change of one byte, and every cut, is an error or a key that can be written and read
// again.
func TestDamaged(t *testing.T) {
	t.Parallel()
	for i := range samples {
		der := sample(t, i)
		if _, err := Parse(der); err != nil {
			t.Fatal(err)
		}
		for n := range der {
			if _, err := Parse(der[:n]); err == nil {
				t.Errorf("sample %d: the first %d bytes of %d are taken", i, n, len(der))
			}
			changed := bytes.Clone(der)
			changed[n] ^= 0xff
			check(t, changed)
		}
		if _, err := Parse(append(bytes.Clone(der), 0)); err == nil {
			t.Errorf("sample %d: a byte that follows is taken", i)
		}
	}
}

// check parses a file. What is taken has a public key, and stays the same when it is written
// and read again.
func check(t *testing.T, der []byte) {
	t.Helper()
	f, err := Parse(der)
	if err != nil {
		return
	}
	if _, err := x509.MarshalPKIXPublicKey(f.Public()); err != nil {
		t.Errorf("public key: %v", err)
	}
	again, err := Parse(f.Marshal())
	if err != nil || !bytes.Equal(again.Marshal(), f.Marshal()) || again.NeedsPassphrase() != f.NeedsPassphrase() {
		t.Errorf("the file changes when it is written again: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for i := range samples {
		f.Add(sample(f, i), uint64(0))
	}
	f.Fuzz(func(t *testing.T, der []byte, change uint64) { check(t, testmod.Edit(der, change)) })
}

// What is refused says why.
func TestRefused(t *testing.T) {
	t.Parallel()
	der := sample(t, 0)
	kind := bytes.Index(der, []byte{0x67, 0x81, 5, 10, 1, 3}) + 5
	with := func(b byte) []byte {
		changed := bytes.Clone(der)
		changed[kind] = b
		return changed
	}
	policy := bytes.Clone(der)
	policy[kind+1] = 0xa1 // [1] in place of [0]
	for name, test := range map[string]struct {
		der  []byte
		want string
	}{
		"importable": {with(4), "imported"}, "sealed": {with(5), "sealed"}, "unknown": {with(9), "unknown type"},
		"policy": {policy, "policy"}, "nothing": {nil, "damaged"},
	} {
		if _, err := Parse(test.der); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
