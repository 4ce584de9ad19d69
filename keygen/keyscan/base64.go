package keyscan

import (
	"bytes"
	"encoding/base64"
)

// encodedDashes is "---" in base64. Every five dashes have it, wherever they begin, and those
// before BEGIN and behind KEY are too close for the end of a line in both.
var encodedDashes = []byte("LS0t")

// maxLabels is more than the digits of base64 from the five dashes before BEGIN to those
// behind KEY, a multiple of 4.
const maxLabels = 128

// findEncoded finds PEM that is encoded in base64 once more, in one line or in several, as in
// a Secret of Kubernetes: the keys that begin between from and limit. It returns false if
// found does, which ends the search.
func findEncoded(data []byte, from, limit int, found func(located) bool) bool {
	counted, digits := 0, 0 // the digits before a place
	var done [4]int         // by their number modulo 4, up to where all keys are found
	for at := from; ; {
		i := bytes.Index(data[at:], encodedDashes)
		if i < 0 || at+i >= limit+2*maxLabels {
			return true
		}
		at += i
		for bytes.HasPrefix(data[at+len(encodedDashes):], encodedDashes) {
			at += len(encodedDashes)
		}
		hit := at
		at += len(encodedDashes)
		for counted < hit {
			n, digit, _ := unit(data[counted:])
			counted += n
			if digit {
				digits++
			}
		}
		before := &done[digits&3]
		if hit < *before {
			continue
		}
		// Most dashes are those of something else, and a look at what is beside them tells.
		beside := encodedStart(data, hit, 16)
		near, _, _ := decode(data[beside:], 40)
		begins := bytes.Contains(near, []byte("BEGI"))
		if !begins && !bytes.Contains(near, []byte("KEY")) {
			continue
		}
		start := beside
		if begins {
			near, _, _ = decode(data[beside:], 16+maxLabels)
		} else {
			start = encodedStart(data, hit, maxLabels)
			near, _, _ = decode(data[start:], 16+maxLabels)
		}
		if !bytes.Contains(near, privateKey) {
			continue
		}
		text, half, _ := decode(data[start:], 2*maxBlock)
		known := *before
		*before = start + half
		begin, passed := start, 0
		if !findPEM(text, 0, len(text), func(l located) bool {
			begin += skipDigits(data[begin:], l.at/3*4-passed)
			passed = l.at / 3 * 4
			if begin < max(from, known) || begin >= min(limit, start+half) {
				return true // found before, or later
			}
			return found(located{l.key, begin})
		}) {
			return false
		}
	}
}

// encodedStart goes back from a group of base64 to one that many digits before it, or to
// where its text begins.
func encodedStart(data []byte, at, digits int) int {
	start := at
	for i, n := at-1, 0; i >= max(0, at-2*maxLabels) && n < digits; i-- {
		if i > 0 && data[i-1] == '\\' && (data[i] == 'n' || data[i] == 'r') {
			i--
			continue
		}
		_, digit, ok := unit(data[i:])
		if !ok {
			break
		}
		if !digit {
			continue
		}
		if n++; n&3 == 0 {
			start = i
		}
	}
	return start
}

// Kinds of bytes in base64.
const (
	otherByte = iota
	digitByte
	spaceByte
	escapeByte
)

var kinds = func() (kinds [256]byte) {
	for c := range 256 {
		switch b := byte(c); {
		case isDigit(b), b == '-', b == '_': // the last two as in URLs
			kinds[c] = digitByte
		case b == '\n', b == '\r', b == ' ', b == '\t':
			kinds[c] = spaceByte
		case b == '\\':
			kinds[c] = escapeByte
		}
	}
	return kinds
}()

// unit returns the length of what a text begins with, and whether it is a digit of base64. If
// it is none, ok says whether it may stand between two of them, as the end of a line.
func unit(text []byte) (n int, digit, ok bool) {
	switch kinds[text[0]] {
	case digitByte:
		return 1, true, true
	case spaceByte:
		return 1, false, true
	case escapeByte:
		if len(text) > 1 && (text[1] == 'n' || text[1] == 'r') {
			return 2, false, true
		}
	}
	return 1, false, false
}

// decode decodes the digits of base64 that a text begins with, at most that many. It returns
// where they end, and half, where half of them end if there were more, else the end too.
func decode(text []byte, most int) (decoded []byte, half, end int) {
	digits := make([]byte, 0, min(len(text), most, 512))
	for end < len(text) && len(digits) < most {
		n, digit, ok := unit(text[end:])
		if !ok {
			break
		}
		if digit {
			c := text[end]
			switch c {
			case '-':
				c = '+'
			case '_':
				c = '/'
			}
			if digits = append(digits, c); len(digits) <= most/2 {
				half = end + 1
			}
		}
		end += n
	}
	if len(digits) < most {
		half = end
	}
	if len(digits)&3 == 1 { // cut off within a byte
		digits = digits[:len(digits)-1]
	}
	decoded = make([]byte, base64.RawStdEncoding.DecodedLen(len(digits)))
	n, _ := base64.RawStdEncoding.Decode(decoded, digits)
	return decoded[:n], half, end
}

// skipDigits returns where the digit with that number is.
func skipDigits(text []byte, count int) (at int) {
	for at < len(text) {
		n, digit, _ := unit(text[at:])
		if digit {
			if count == 0 {
				break
			}
			count--
		}
		at += n
	}
	return at
}

// decodeAll returns what a text that consists of base64 alone encodes.
func decodeAll(text []byte) ([]byte, bool) {
	text = bytes.TrimRight(text, "= \r\n")
	if len(text) > 2*maxBlock {
		return nil, false
	}
	decoded, _, end := decode(text, len(text)+1)
	return decoded, end == len(text)
}
