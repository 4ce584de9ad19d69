package keyscan

import (
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
)

// parsePVK reads a private key of Microsoft's CryptoAPI, PRIVATEKEYBLOB, alone or in a PVK
// file. Numbers are little-endian.
//
//	PVK   u32 magic, 0, kind of key, encrypted, bytes of salt, bytes of key; the salt
//	BLOB  u8 7, u8 2, u16 0, u32 algorithm; "RSA2", u32 bits, u32 exponent, the modulus,
//	      five numbers of half its size, the private exponent; or "DSS2", u32 bits, ...
func parsePVK(data []byte) (key, bool) {
	form := "MSBLOB"
	if binary.LittleEndian.Uint32(data) == 0xb0b5f11e {
		if len(data) < 24 {
			return key{}, false
		}
		number := func(i int) uint32 { return binary.LittleEndian.Uint32(data[4*i:]) }
		kind, salt, size := number(2), uint64(number(4)), uint64(number(5))
		if number(1) != 0 || kind != 1 && kind != 2 || size < 100 || 24+salt+size > uint64(len(data)) {
			return key{}, false
		}
		form = "PVK"
		encrypted := number(3) != 0
		data = data[24+salt:]
		if encrypted && data[0] == 7 && data[1] == 2 {
			return key{form: form, encrypted: true}, true
		}
	}
	if len(data) < 100 || data[0] != 7 || data[1] != 2 || data[2]|data[3] != 0 {
		return key{}, false
	}
	bits := int(binary.LittleEndian.Uint32(data[12:]))
	switch bytes := bits / 8; string(data[8:12]) {
	case "RSA2":
		if bits < 256 || bits > maxBits || bits%16 != 0 || len(data) < 20+bytes*9/2 {
			return key{}, false
		}
		modulus := slices.Clone(data[20 : 20+bytes])
		slices.Reverse(modulus)
		n, e := new(big.Int).SetBytes(modulus), big.NewInt(int64(binary.LittleEndian.Uint32(data[16:])))
		return key{form: form, algorithm: fmt.Sprintf("RSA %d", n.BitLen()), public: rsaPublic(n, e)}, n.BitLen() == bits
	case "DSS2":
		return key{form: form, algorithm: "DSA"}, bits >= 512 && bits <= maxBits && len(data) >= 16+2*bytes+2*20
	}
	return key{}, false
}
