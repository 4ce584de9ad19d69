package module

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Every trailer whose lengths fit can be removed, whatever its type and its fields. The
// kernel's rule is stricter.
func TestLayoutOfAnyFields(t *testing.T) {
	payload, signer, id, sig := []byte("payload"), []byte("Example: a signer"), []byte("twenty bytes of a ky"),
		[]byte("\x00\x09signature")
	lengths := Info{SignerLen: uint8(len(signer)), KeyIDLen: uint8(len(id)), SigLen: uint32(len(sig))}
	for idType := range 256 {
		for _, change := range []func(*Info){
			func(*Info) {},
			func(i *Info) { i.Algo, i.Hash = 1, 4 },
			func(i *Info) { i.Algo, i.Hash, i.Pad = 255, 255, [3]byte{255, 255, 255} },
			func(i *Info) { i.Pad[1] = 1 },
		} {
			info := lengths
			info.IDType = IDType(idType)
			change(&info)
			file := signed(payload, slices.Concat(signer, id, sig), info)
			layer, err := split(file)
			if err != nil || layer.Info != info || layer.Offset != int64(len(payload)) {
				t.Fatalf("%+v: %+v, %v", info, layer, err)
			}
			gotSigner, err1 := layer.Signer(bytes.NewReader(file))
			gotID, err2 := layer.KeyID(bytes.NewReader(file))
			gotSig, err3 := layer.Signature(bytes.NewReader(file))
			if err := errors.Join(err1, err2, err3); err != nil || !bytes.Equal(gotSigner, signer) || !bytes.Equal(gotID, id) ||
				!bytes.Equal(gotSig, sig) {
				t.Fatalf("%+v: signer %q, key id %q, signature %q, %v", info, gotSigner, gotID, gotSig, err)
			}
			want := ErrIDType
			if info.IDType == TypePKCS7 {
				want = ErrInfoFields
			}
			_, err = Check(bytes.NewReader(file), int64(len(file)), TypePKCS7)
			if !errors.Is(err, want) || !errors.Is(layer.Check(TypePKCS7), want) ||
				layer.Check(TypePKCS7).Error() != err.Error() {
				t.Fatalf("%+v: the kernel's rule says %v, and of the layer %v", info, err, layer.Check(TypePKCS7))
			}
		}
	}
}

// Lengths that do not fit are a layout error. The kernel's error may differ, because
// the kernel checks the type first.
func TestLengthsThatDoNotFit(t *testing.T) {
	for _, test := range []struct {
		info  Info
		fits  bool
		errno syscall.Errno
	}{
		{Info{IDType: 1, SignerLen: 20, KeyIDLen: 10, SigLen: 69}, true, syscall.ENOPKG},
		{Info{IDType: 1, SignerLen: 20, KeyIDLen: 10, SigLen: 70}, false, syscall.ENOPKG},
		{Info{IDType: 1, SignerLen: 100}, false, syscall.ENOPKG},
		{Info{IDType: 1, KeyIDLen: 100}, false, syscall.ENOPKG},
		{Info{IDType: 2, SignerLen: 255, KeyIDLen: 255}, false, syscall.EBADMSG},
		{Info{IDType: 1, SigLen: 100}, false, syscall.EBADMSG},
		{Info{IDType: 1, SignerLen: 1, SigLen: 0xffffffff}, false, syscall.EBADMSG},
	} {
		file := signed(make([]byte, 100), nil, test.info)
		_, err := split(file)
		if (err == nil) != test.fits || err != nil && !errors.Is(err, ErrSigLen) {
			t.Errorf("%+v: %v", test.info, err)
		}
		if want := fmt.Sprintf("a signer of %d and a key id of %d", test.info.SignerLen, test.info.KeyIDLen); err != nil &&
			test.info.SigLen < 100 && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v does not say %q", test.info, err, want)
		}
		_, err = Check(bytes.NewReader(file), int64(len(file)), TypePKCS7)
		if format, ok := errors.AsType[*FormatError](err); !ok || format.Errno() != test.errno {
			t.Errorf("%+v: the kernel's rule says %v, want %v", test.info, err, test.errno)
		}
	}
}

func TestNumberSize(t *testing.T) {
	for _, test := range []struct {
		sig  string
		want int
	}{{"\x00\x05value", 5}, {"\x00\x00", 0}, {"\x00\x04value", -1}, {"\x00", -1}, {"", -1}} {
		file := signed([]byte("payload"), []byte("id"+test.sig),
			Info{IDType: TypeX509, KeyIDLen: 2, SigLen: uint32(len(test.sig))})
		layer, err := split(file)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := layer.NumberSize(bytes.NewReader(file)); err != nil || got != test.want {
			t.Errorf("%q: %d, %v; want %d", test.sig, got, err, test.want)
		}
	}
}
