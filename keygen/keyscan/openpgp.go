package keyscan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/big"
)

// OpenPGP's algorithms of public keys (RFC 9580, 9.1).
var pgpAlgorithms = map[byte]string{
	1: "RSA", 2: "RSA", 3: "RSA", 16: "ElGamal", 17: "DSA", 18: "ECDH", 19: "ECDSA", 22: "EdDSA",
	25: "X25519", 26: "X448", 27: "Ed25519", 28: "Ed448",
}

// parseOpenPGP recognizes a file that begins with a packet of a secret key (RFC 9580, 5.5.3).
func parseOpenPGP(data []byte) (key, bool) {
	tag, packet, ok := pgpPacket(data)
	const secretKey, secretSubkey = 5, 7
	if !ok || tag != secretKey && tag != secretSubkey || len(packet) < 12 {
		return key{}, false
	}
	version, created, material := packet[0], packet[1:5], packet[5:]
	if version < 3 || version > 6 || binary.BigEndian.Uint32(created) < 600000000 { // 1989: there was no PGP
		return key{}, false
	}
	if version == 3 {
		material = material[2:] // days of validity
	}
	name, known := pgpAlgorithms[material[0]]
	if !known {
		return key{}, false
	}
	k := key{form: "OpenPGP", algorithm: name}
	numbers := material[1:]
	if version == 6 {
		if len(numbers) < 4 {
			return key{}, false
		}
		numbers = numbers[4:]
	}
	count := map[string]int{"RSA": 2, "ElGamal": 3, "DSA": 4}[name]
	var first, second *big.Int
	switch {
	case count > 0:
		if first, numbers, ok = pgpNumber(numbers); !ok {
			return key{}, false
		}
		if second, numbers, ok = pgpNumber(numbers); !ok {
			return key{}, false
		}
		for range count - 2 {
			if _, numbers, ok = pgpNumber(numbers); !ok {
				return key{}, false
			}
		}
		if first.BitLen() < 512 {
			return key{}, false
		}
		k.algorithm = fmt.Sprintf("%s %d", name, first.BitLen())
		if name == "RSA" {
			k.public = rsaPublic(first, second)
		}
	case version < 6 && material[0] < 25: // the identifier of a curve, then a point
		if len(numbers) == 0 || numbers[0] == 0 || numbers[0] == 0xff || len(numbers) < 1+int(numbers[0]) {
			return key{}, false
		}
		if first, numbers, ok = pgpNumber(numbers[1+int(numbers[0]):]); !ok || first.BitLen() < 128 {
			return key{}, false
		}
		if name == "ECDSA" {
			k.public = first.Bytes()
		}
		if name == "ECDH" && len(numbers) > 0 { // parameters of its key derivation
			numbers = numbers[min(len(numbers), 1+int(numbers[0])):]
		}
	default:
		return k, true
	}
	if len(numbers) > 0 {
		k.encrypted = numbers[0] != 0
		// GnuPG's stub of a key that is kept elsewhere: mode 1001 or 1002.
		if i := bytes.Index(numbers[:min(len(numbers), 16)], []byte("GNU")); i > 0 && len(numbers) > i+3 {
			k.bound = map[byte]string{1: "the secret part is not in it", 2: "the secret part is in a card"}[numbers[i+3]]
		}
	}
	return k, true
}

// pgpPacket reads the header of a packet, of the old form or the new one. The packet may be
// cut off.
func pgpPacket(data []byte) (tag byte, packet []byte, ok bool) {
	if len(data) < 8 || data[0]&0x80 == 0 {
		return 0, nil, false
	}
	if data[0]&0x40 == 0 {
		skip := 1 + 1<<(data[0]&3)
		if data[0]&3 == 3 {
			skip = 1
		}
		return data[0] >> 2 & 0xf, data[skip:], true
	}
	skip := 2
	switch {
	case data[1] >= 192 && data[1] < 224:
		skip = 3
	case data[1] == 255:
		skip = 6
	}
	return data[0] & 0x3f, data[skip:], true
}

// pgpNumber reads a multiprecision integer: its length in bits is exact.
func pgpNumber(data []byte) (n *big.Int, rest []byte, ok bool) {
	if len(data) < 2 {
		return nil, nil, false
	}
	bits := int(binary.BigEndian.Uint16(data))
	size := (bits + 7) / 8
	if bits == 0 || bits > maxBits || len(data) < 2+size {
		return nil, nil, false
	}
	n = new(big.Int).SetBytes(data[2 : 2+size])
	return n, data[2+size:], n.BitLen() == bits
}
