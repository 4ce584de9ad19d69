package pkcs11

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
)

// answerTo returns the frame of an answer.
func answerTo(number uint32, f function, results []byte) []byte {
	return appendCall(nil, number, function{f.number, f.name, f.result, ""}, results)
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestFrame has the bytes of a call as p11-kit's own client writes them, and answers that
// are wrong.
func TestFrame(t *testing.T) {
	t.Parallel()
	args := encoder{}
	args.ulong(5)
	args.ulong(userNormal)
	args.bytes([]byte("12"))
	want := unhex(t, "00000010 00000000 00000023 00000012 00000004 75756179"+
		"0000000000000005 0000000000000001 01 00000002 3132")
	if got := appendCall(nil, 16, fnLogin, args); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}

	read := func(frame []byte, number uint32, f function) error {
		body, err := readFrame(bytes.NewReader(frame), number)
		if err == nil {
			var d *decoder
			if d, err = parseAnswer(body, f); err == nil {
				err = d.end()
			}
		}
		return err
	}
	good := answerTo(7, fnLogin, nil)
	if err := read(good, 7, fnLogin); err != nil {
		t.Error(err)
	}
	for i := range good {
		if err := read(good[:i], 7, fnLogin); err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Errorf("%d bytes: %v", i, err)
		}
	}
	failed := function{0, "", "u", "u"}
	refused := unhex(t, "00000000000000a0")
	err := read(answerTo(7, failed, refused), 7, fnLogin)
	if e, ok := errors.AsType[*Error](err); !ok || e.Error() != "C_Login: CKR_PIN_INCORRECT" {
		t.Errorf("error %v", err)
	}
	for name, frame := range map[string][]byte{
		"another number":   answerTo(8, fnLogin, nil),
		"another function": answerTo(7, fnLogout, nil),
		"too long":         answerTo(7, fnLogin, []byte{0}),
		"error without":    answerTo(7, failed, nil),
		"error of 0":       answerTo(7, failed, make([]byte, 8)),
		"large body":       unhex(t, "00000007 00000000 00100001"),
		"large options":    unhex(t, "00000007 00001001 00000000"),
		"huge":             unhex(t, "00000007 ffffffff ffffffff"),
		"no body":          unhex(t, "00000007 00000000 00000000"),
	} {
		if err := read(frame, 7, fnLogin); !errors.Is(err, errMalformed) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestAttributes decodes values of each type, and those that are not told.
func TestAttributes(t *testing.T) {
	t.Parallel()
	kinds := []uint32{attrKeyType, attrSign, attrID, attrLabel, attrValue}
	d := &decoder{data: unhex(t, "00000005"+
		"00000100 01 00000008 0000000000000003"+
		"00000108 01 00000001 01"+
		"00000102 01 00000002 00000002 a1b2"+
		"00000003 00"+
		"00000011 01 00000000 ffffffff")}
	values := d.attributes(kinds)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}
	_, hasLabel := values[attrLabel]
	if hasLabel || string(values[attrID]) != "\xa1\xb2" || values[attrSign][0] != 1 || values[attrKeyType][7] != 3 {
		t.Errorf("%x", values)
	}
}

// FuzzAnswers decodes what a module may answer. Nothing is larger than it may be.
func FuzzAnswers(f *testing.F) {
	for _, fn := range []function{fnGetSlotList, fnGetTokenInfo, fnGetAttributeValue, fnSign, fnFindObjects, fnLogin} {
		f.Add(answerTo(1, fn, bytes.Repeat([]byte{0, 0, 0, 1}, 60)))
	}
	f.Add(unhex(f, "00000001 00000000 00000011 00000000 00000001 75 0000000000000101"))
	f.Add(answerTo(1, fnSign, unhex(f, "01 00000003 010203")))
	f.Add(answerTo(1, fnFindObjects, unhex(f, "01 00000001 0000000000000007")))
	attributes := unhex(f, "00000002 00000102 01 00000001 00000001 aa 00000003 00 0000000000000012")
	f.Add(answerTo(1, fnGetAttributeValue, attributes))
	f.Fuzz(func(t *testing.T, frame []byte) {
		body, err := readFrame(bytes.NewReader(frame), 1)
		if err != nil {
			return
		}
		if len(body) > maxBody {
			t.Fatalf("body of %d bytes", len(body))
		}
		for _, fn := range []function{fnGetSlotList, fnGetTokenInfo, fnGetAttributeValue, fnSign, fnGetInfo} {
			d, err := parseAnswer(body, fn)
			if err != nil {
				continue
			}
			switch fn.name {
			case fnGetSlotList.name:
				if slots, _ := d.ulongs(maxSlots); len(slots) > maxSlots {
					t.Errorf("%d slots", len(slots))
				}
			case fnGetTokenInfo.name:
				if s := d.padded(32); len(s) > 32 {
					t.Errorf("label of %d bytes", len(s))
				}
			case fnGetAttributeValue.name:
				for kind, value := range d.attributes([]uint32{attrID, attrLabel}) {
					if len(value) > roomFor(kind) {
						t.Errorf("attribute of %d bytes", len(value))
					}
				}
			case fnSign.name:
				if b, _ := d.bytes(4096); len(b) > 4096 {
					t.Errorf("signature of %d bytes", len(b))
				}
			case fnGetInfo.name:
				d.version()
			}
			_ = d.end()
		}
	})
}

// TestPoints has EC points in an OCTET STRING and bare, and others that are none.
func TestPoints(t *testing.T) {
	t.Parallel()
	params := unhex(t, "06082a8648ce3d030107")
	point := unhex(t, "04"+
		"6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"+
		"4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")
	for name, test := range map[string]struct {
		params, point []byte
		want          string
	}{
		"bare":          {params, point, ""},
		"wrapped":       {params, append([]byte{4, 65}, point...), ""},
		"cut":           {params, point[:64], "no point of its curve"},
		"not on it":     {params, append(bytes.Clone(point[:64]), 0), "no point of its curve"},
		"none":          {params, nil, "no point of its curve"},
		"another curve": {unhex(t, "06052b8104000a"), point, "on the curve 1.3.132.0.10"},
		"explicit":      {unhex(t, "3000"), point, "does not name its curve"},
		"trailing":      {append(bytes.Clone(params), 0), point, "does not name its curve"},
	} {
		_, err := ecPublic(map[uint32][]byte{attrECParams: test.params, attrECPoint: test.point})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	if err := checkKind(keyMLDSA); err == nil || !strings.Contains(err.Error(), "ML-DSA") {
		t.Errorf("ML-DSA: %v", err)
	}
	if err := checkKind(0x40); err == nil || !strings.Contains(err.Error(), "CKK 0x40") {
		t.Errorf("EdDSA: %v", err)
	}
	for rv, want := range map[RV]string{
		0x30: "CKR_DEVICE_ERROR", 0x80000005: "CKR_VENDOR_DEFINED + 0x5", 0x99: "CKR_ 0x99",
	} {
		if rv.String() != want {
			t.Errorf("%v, want %s", rv, want)
		}
	}
}
