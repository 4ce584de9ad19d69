package keyscan

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"unicode/utf8"
)

// A store is a reader of Java's DataInput: big-endian numbers, and strings with a length of
// two bytes. After an error it is nil.
type store []byte

func (s *store) bytes(n int) []byte {
	if n < 0 || n > len(*s) {
		*s = nil
		return nil
	}
	value := (*s)[:n]
	*s = (*s)[n:]
	return value
}

func (s *store) u16() int {
	if b := s.bytes(2); b != nil {
		return int(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (s *store) u32() uint32 {
	if b := s.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (s *store) text() []byte { return s.bytes(s.u16()) }

func (s *store) blob() []byte { return s.bytes(int(min(s.u32(), math.MaxInt32))) }

// parseJKS reads a keystore of Java, JKS or JCEKS, up to its first private key. One that has
// certificates alone, as every Java installs, holds none. If the store is cut off before,
// it counts as one with a key.
//
//	u32 magic, u32 version, u32 count; of each entry
//	u32 1 (private key) or 2 (certificate) or 3 (secret key), text alias, u64 time
//	1: u32-long encrypted key, u32 count of certificates, which follow as in 2
//	2: text type (version 2), u32-long certificate
func parseJKS(data []byte) (key, bool) {
	s := store(data)
	magic, version, count := s.u32(), s.u32(), s.u32()
	k := key{encrypted: true}
	switch magic {
	case 0xfeedfeed:
		k.form = "JKS keystore"
	case 0xcececece:
		k.form = "JCEKS keystore"
	default:
		return key{}, false
	}
	if s == nil || version != 1 && version != 2 {
		return key{}, false
	}
	for range count {
		tag := s.u32()
		s.text()
		s.bytes(8)
		if s == nil || tag != 2 {
			return k, s == nil || tag == 1 || tag == 3
		}
		if version == 2 {
			s.text()
		}
		s.blob()
	}
	return key{}, false
}

// parseBKS reads a keystore of Bouncy Castle up to its first private key.
//
//	u32 version 1 or 2, u32-long salt (20 bytes), u32 iterations; of each entry
//	u8 1 (certificate), 2 (key), 3 (secret), 4 (encrypted key) or 0 (the end)
//	text alias, u64 time, u32 count of certificates, each text type and u32-long
//	1: text type, u32-long certificate; 3, 4: u32-long; 2: u8 type (0: private), ...
func parseBKS(data []byte) (key, bool) {
	s := store(data)
	version, salt, iterations := s.u32(), s.blob(), s.u32()
	if s == nil || version != 1 && version != 2 || len(salt) != 20 || iterations == 0 || iterations > 1<<20 {
		return key{}, false
	}
	k := key{form: "BKS keystore", encrypted: true}
	for {
		tag := s.bytes(1)
		if tag == nil || tag[0] == 0 || tag[0] > 4 {
			return key{}, false
		}
		if alias := s.text(); alias == nil || !utf8.Valid(alias) {
			return key{}, false
		}
		s.bytes(8)
		for range min(s.u32(), 100) {
			s.text()
			s.blob()
		}
		if s == nil || tag[0] != 1 {
			return k, s != nil
		}
		s.text()
		s.blob()
	}
}

// sqliteMagic begins every database of SQLite.
const sqliteMagic = "SQLite format 3\x00"

// parseNSS recognizes key4.db, the database of private keys of NSS, and reports whether its
// table nssPrivate has rows: systems install such a database without a key. It reads the
// pages of SQLite (fileformat2.html in its documentation) as far as that needs.
func parseNSS(data []byte) (key, bool) {
	if len(data) < 512 || !bytes.HasPrefix(data, []byte(sqliteMagic)) || !bytes.Contains(data, []byte("nssPrivate")) {
		return key{}, false
	}
	k := key{form: "NSS database", encrypted: true}
	size := int(binary.BigEndian.Uint16(data[16:]))
	if size == 1 {
		size = 1 << 16
	}
	if size < 512 {
		return key{}, false
	}
	root, ok := sqliteRoot(data[:min(len(data), size)], "nssPrivate")
	if !ok || root < 2 || root > len(data)/size {
		return k, true // not to be told: the schema is larger than a page, or the file is cut off
	}
	page := data[(root-1)*size:]
	const leaf = 0x0d
	rows := binary.BigEndian.Uint16(page[3:])
	return k, page[0] != leaf || rows > 0
}

// sqliteRoot returns the number of a table's first page, from the schema in the first page.
func sqliteRoot(page []byte, table string) (root int, ok bool) {
	const start = 100 // of the header of the page, behind that of the file
	if page[start] != 0x0d {
		return 0, false
	}
	cells := int(binary.BigEndian.Uint16(page[start+3:]))
	for i := range cells {
		at := start + 8 + 2*i
		if at+2 > len(page) {
			return 0, false
		}
		at = int(binary.BigEndian.Uint16(page[at:]))
		if at >= len(page) {
			return 0, false
		}
		row := varints{page[at:]}
		row.next() // size
		row.next() // number of the row
		record := row.rest
		header := varints{record}
		size := header.next()
		// The types of the columns: type, name, table, first page, statement.
		var types [4]int
		for i := range types {
			types[i] = header.next()
		}
		offset := size
		var values [4][]byte
		for i, t := range types {
			n := sqliteSize(t)
			if n < 0 || offset < 0 || offset+n > len(record) {
				return 0, false
			}
			values[i] = record[offset : offset+n]
			offset += n
		}
		if string(values[0]) == "table" && string(values[1]) == table {
			for _, b := range values[3] {
				root = root<<8 | int(b)
			}
			return root, len(values[3]) <= 4
		}
	}
	return 0, false
}

// sqliteSize is the size in bytes of a value of a type, or -1.
func sqliteSize(t int) int {
	switch {
	case t >= 12:
		return (t - 12) / 2
	case t >= 0 && t <= 4:
		return t
	case t == 5:
		return 6
	case t == 6, t == 7:
		return 8
	case t == 8, t == 9:
		return 0
	}
	return -1
}

// varints reads SQLite's variable-length numbers.
type varints struct{ rest []byte }

func (v *varints) next() int {
	n := 0
	for i := 0; i < 4 && len(v.rest) > 0; i++ { // larger ones do not fit in a page
		b := v.rest[0]
		v.rest = v.rest[1:]
		if n = n<<7 | int(b&0x7f); b < 0x80 {
			return n
		}
	}
	return 1 << 30
}

// parseOldNSS recognizes key3.db: Berkeley DB 1.85, a hash, with the records that NSS puts
// into every database of keys. One without a key has these three alone.
func parseOldNSS(data []byte) (key, bool) {
	const (
		hash    = "\x00\x06\x15\x61\x00\x00\x00\x02"
		records = 56 // offset of their number, u32
		empty   = 3  // Version, global-salt, password-check
	)
	if len(data) < records+4 || !bytes.HasPrefix(data, []byte(hash)) || !bytes.Contains(data, []byte("global-salt")) ||
		binary.BigEndian.Uint32(data[records:]) <= empty {
		return key{}, false
	}
	return key{form: "NSS database", encrypted: true}, true
}

// parseGnuPG recognizes a file of private-keys-v1.d, in the form of GnuPG 2.1 and that of
// 2.3, which has names before the expression (agent/keyformat.txt in its source).
func parseGnuPG(data []byte) (key, bool) {
	data = data[:min(len(data), 4<<10)]
	if data[0] != '(' {
		i := bytes.Index(data, []byte("Key: ("))
		if i < 0 || i > 0 && data[i-1] != '\n' || !utf8.Valid(data[:i]) {
			return key{}, false
		}
		data = data[i+len("Key: "):]
	}
	head := string(data[:min(len(data), 200)])
	k := key{form: "GnuPG"}
	kinds := map[string]string{"private-key": "11:", "protected-private-key": "21:", "shadowed-private-key": "20:"}
	for kind, length := range kinds {
		rest, ok := strings.CutPrefix(head, "("+kind)
		if !ok {
			rest, ok = strings.CutPrefix(head, "("+length+kind)
		}
		if !ok {
			continue
		}
		if !strings.HasPrefix(strings.TrimLeft(rest, " \n"), "(") {
			return key{}, false
		}
		k.encrypted = kind == "protected-private-key"
		if kind == "shadowed-private-key" {
			k.bound = "the secret part is in a card or a TPM"
		}
		rest = strings.TrimLeft(rest, " \n(0123456789:")
		for name, algorithm := range map[string]string{"rsa": "RSA", "ecc": "ECC", "dsa": "DSA", "elg": "ElGamal"} {
			if strings.HasPrefix(rest, name) {
				k.algorithm = algorithm
			}
		}
		return k, true
	}
	return key{}, false
}

// parseSoftHSM recognizes the file of an object in a token of SoftHSM (File.cpp in its
// source), if the object is a private key. All numbers are u64, big-endian.
//
//	generation; of each attribute its type, its kind, and
//	1: u8 bool; 2: number; 3: size and bytes; 4: size and attributes; 5: count and numbers
func parseSoftHSM(data []byte) (key, bool) {
	const (
		class, private, keyType = 0, 3, 0x100 // CKA_CLASS, CKO_PRIVATE_KEY, CKA_KEY_TYPE
		attributes              = 200
	)
	s := store(data)
	number := func() uint64 {
		if b := s.bytes(8); b != nil {
			return binary.BigEndian.Uint64(b)
		}
		return 0
	}
	number()
	isKey, k := false, key{form: "SoftHSM token", encrypted: true}
	for i := 0; len(s) > 0; i++ {
		name, kind := number(), number()
		value := uint64(0)
		size := 0
		switch kind {
		case 1:
			size = 1
		case 2:
			value = number()
		case 3, 4, 5:
			n := number()
			if kind == 5 {
				n *= 8
			}
			if n > uint64(len(s)) {
				return key{}, false
			}
			size = int(n)
		default:
			return key{}, false
		}
		if size > 0 && s.bytes(size) == nil || s == nil || i > attributes {
			return key{}, false
		}
		switch {
		case name == class && kind == 2:
			isKey = value == private
		case name == keyType && kind == 2:
			k.algorithm = map[uint64]string{0: "RSA", 1: "DSA", 3: "ECDSA", 0x40: "EdDSA"}[value]
		}
	}
	return k, isKey && s != nil
}
