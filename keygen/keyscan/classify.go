package keyscan

import (
	"bytes"
	"unicode/utf16"
)

// findWhole finds all keys in a file that is in memory as a whole or with its beginning:
// one in a binary form, which begins with the file, or any number in PEM before limit. It
// returns false if found does, which ends the search.
func findWhole(data []byte, limit int, found func(located) bool) bool {
	if k, ok := parseBinary(data); ok {
		return found(located{k, 0})
	}
	if len(data) > 16 && data[0] == 'M' { // what 0x30 begins with in base64
		if inner, ok := decodeAll(data); ok && bytes.HasPrefix(inner, []byte{0x30}) {
			if k, ok := parseBinary(inner); ok {
				return found(located{k, 0})
			}
		}
	}
	if text, ok := decodeUTF16(data); ok {
		return findPEM(text, 0, len(text), func(l located) bool { return found(located{l.key, 0}) })
	}
	return findPEM(data, 0, limit, found) && (!isText(data) || findEncoded(data, 0, limit, found))
}

// isText reports whether a file begins like text, so that it is worth to search in it for
// what binaries have by chance or never.
func isText(data []byte) bool { return bytes.IndexByte(data[:min(len(data), 512)], 0) < 0 }

// parseBinary recognizes the forms of keys that are known by the first bytes of the file.
func parseBinary(data []byte) (key, bool) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if len(data) < 16 {
		return key{}, false
	}
	var parsers []func([]byte) (key, bool)
	switch c := data[0]; {
	case c == 0x30 && data[1] >= 0x80:
		parsers = append(parsers, unlabelled, parsePKCS12)
	case c == 0x30:
		parsers = append(parsers, unlabelled)
	case c == 0x1e, c == 0x07:
		parsers = append(parsers, parsePVK)
	case c == 0xfe, c == 0xce:
		parsers = append(parsers, parseJKS, parseOpenPGP)
	case c&0x80 != 0:
		parsers = append(parsers, parseOpenPGP)
	case c == 0:
		parsers = append(parsers, parseSoftHSM, parseBKS, parseOldNSS)
	case c == 'S':
		parsers = append(parsers, parseNSS, parseGnuPG)
	case c == 'P':
		parsers = append(parsers, parsePuTTY, parseGnuPG)
	case c == '(', c >= 'A' && c <= 'Z':
		parsers = append(parsers, parseGnuPG)
	}
	for _, parse := range parsers {
		if k, ok := parse(data); ok {
			return k, true
		}
	}
	return key{}, false
}

func unlabelled(data []byte) (key, bool) { return parseDER(data, false) }

// decodeUTF16 returns the text of a small file in UTF-16, as some editors save one.
func decodeUTF16(data []byte) ([]byte, bool) {
	if len(data) < 4 || len(data) > maxBlock {
		return nil, false
	}
	high := 0 // the place of the upper byte of a character
	switch {
	case bytes.HasPrefix(data, []byte("\xff\xfe")), data[0] == '-' && data[1] == 0 && data[2] == '-' && data[3] == 0:
		high = 1
	case bytes.HasPrefix(data, []byte("\xfe\xff")), data[0] == 0 && data[1] == '-' && data[2] == 0 && data[3] == '-':
	default:
		return nil, false
	}
	units := make([]uint16, 0, len(data)/2)
	for i := 0; i+1 < len(data); i += 2 {
		units = append(units, uint16(data[i+high])<<8|uint16(data[i+1-high]))
	}
	return []byte(string(utf16.Decode(units))), true
}
