package cms

import (
	"encoding/asn1"
	"fmt"
	"syscall"
)

// Identifier octets.
const (
	tagBoolean         = 0x01
	tagInteger         = 0x02
	tagBitString       = 0x03
	tagOctetString     = 0x04
	tagOID             = 0x06
	tagIA5String       = 0x16
	tagUTCTime         = 0x17
	tagGeneralizedTime = 0x18
	tagSequence        = 0x30
	tagSet             = 0x31

	tagConstructed = 0x20 // set in constructed types
	primitive0     = 0x80 // [0]; add the number
	constructed0   = 0xa0
)

// decoder reads BER as lib/asn1_decoder.c does. The grammar asks for one element after
// the other; constructed elements are entered and left, all others are read whole. The
// decoder holds one frame per level of the grammar, allocates nothing, and reads every
// byte a fixed number of times.
//
// After the first error every method does nothing, so a grammar need not check for
// errors at each step.
type decoder struct {
	data     []byte
	pos, end int // end of the innermost element with a known length
	err      error

	// matched reports whether the last requested element was there. The kernel's
	// decoder does not update it when an optional element is requested at the very end,
	// so a missing CHOICE passes there (see choice).
	matched bool

	// The element that was read or left last: value and element return it.
	tag                  byte
	header, start, after int

	frames [10]frame // the grammars here need nine
	depth  int

	anyLength bool // lengths may have as many octets as in OpenSSL; the kernel allows two

	notDER bool // a length is not minimal, or a tag is not valid DER
}

// frame is a constructed element that has been entered.
type frame struct {
	start      int // of its contents
	header     int // length of identifier and length octets
	outerEnd   int // end to restore
	indefinite bool
}

func newDecoder(data []byte) decoder { return decoder{data: data, end: len(data)} }

// fail keeps the first error.
func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// broken reports an error for which the kernel's decoder returns EBADMSG without a
// message in dmesg.
func (d *decoder) broken(offset int, format string, args ...any) bool {
	d.fail(&Error{Kind: Malformed, Errno: syscall.EBADMSG,
		Reason: fmt.Sprintf("ASN.1: %s at offset %d", fmt.Sprintf(format, args...), offset)})
	return false
}

// need reads the next element, which must have this tag, and enters a constructed one.
func (d *decoder) need(tag byte) bool { return d.next(tag, false, false) }

// maybe reads the next element if it has this tag.
func (d *decoder) maybe(tag byte) bool { return d.next(tag, false, true) }

// needAny and maybeAny read the next element whole, whatever its tag.
func (d *decoder) needAny() bool  { return d.next(0, true, false) }
func (d *decoder) maybeAny() bool { return d.next(0, true, true) }

// choice reads the next element if it has one of these tags, and returns the tag.
// Another tag is an error. At the end of the enclosing element a missing choice is
// accepted if the previous element was there, as in the kernel's decoder.
func (d *decoder) choice(tags ...byte) byte {
	tag := d.maybeChoice(tags...)
	if tag == 0 && d.err == nil && !d.matched {
		d.broken(d.pos, "unexpected tag 0x%02x", d.tag)
	}
	return tag
}

// maybeChoice is choice for an optional element.
func (d *decoder) maybeChoice(tags ...byte) byte {
	for _, tag := range tags {
		if d.maybe(tag) {
			return tag
		}
	}
	return 0
}

func (d *decoder) next(want byte, any, optional bool) bool {
	if d.err != nil || optional && d.pos == d.end {
		return false
	}
	d.matched = false
	at := d.pos
	if d.end-d.pos < 2 {
		return d.broken(at, "data ends inside an element")
	}
	d.tag = d.data[d.pos]
	if d.tag&0x1f == 0x1f {
		return d.broken(at, "tag of more than one octet")
	}
	// For a constructed type in the grammar the kernel accepts the primitive tag too,
	// but not the other way round.
	constructed := !any && want&tagConstructed != 0
	if !any && d.tag != want && !(constructed && d.tag|tagConstructed == want) {
		if !optional {
			d.broken(at, "unexpected tag 0x%02x, want 0x%02x", d.tag, want)
		}
		return false
	}
	d.matched = true
	d.notDER = d.notDER || !any && d.tag != want
	length, indefinite := int(d.data[d.pos+1]), false
	d.pos += 2
	switch {
	case length == 0x80:
		if d.tag&tagConstructed == 0 {
			return d.broken(at, "indefinite length of a primitive type")
		}
		if d.end-d.pos < 2 {
			return d.broken(at, "data ends inside an element")
		}
		indefinite, d.notDER = true, true
	case length > 0x80:
		octets := length - 0x80
		if octets > 2 && !d.anyLength {
			return d.broken(at, "length of %d octets", octets)
		}
		if d.end-d.pos < octets {
			return d.broken(at, "data ends inside an element")
		}
		length = 0
		for range octets {
			if length > len(d.data) {
				return d.broken(at, "element longer than the remaining bytes")
			}
			length = length<<8 | int(d.data[d.pos])
			d.pos++
		}
		d.notDER = d.notDER || length < 0x80 || octets == 2 && length < 0x100
	}
	if !indefinite && length > d.end-d.pos {
		return d.broken(at, "element of %d bytes with only %d left", length, d.end-d.pos)
	}
	d.header, d.start, d.after = d.pos-at, d.pos, d.pos
	if constructed {
		if d.depth == len(d.frames) {
			return d.broken(at, "nested too deep")
		}
		d.frames[d.depth] = frame{start: d.start, header: d.header, outerEnd: d.end, indefinite: indefinite}
		d.depth++
		if !indefinite {
			d.end = d.pos + length
		}
		return true
	}
	if indefinite {
		end, ok := d.endOfIndefinite(d.pos)
		if !ok {
			return false
		}
		length = end - d.pos
	}
	d.pos += length
	d.after = d.pos
	return true
}

// endOfIndefinite returns the offset after the end-of-contents octets of the element
// whose contents begin at pos.
func (d *decoder) endOfIndefinite(pos int) (int, bool) {
	for open := 1; ; {
		if d.end-pos < 2 {
			return 0, d.broken(pos, "no end of an element of indefinite length")
		}
		tag := d.data[pos]
		pos++
		if tag == 0 {
			if d.data[pos] != 0 {
				return 0, d.broken(pos, "bad end of an element of indefinite length")
			}
			pos++
			if open--; open == 0 {
				return pos, true
			}
			continue
		}
		if tag&0x1f == 0x1f {
			for more := true; more; pos++ {
				if d.end-pos < 2 {
					return 0, d.broken(pos, "data ends inside a tag")
				}
				more = d.data[pos]&0x80 != 0
			}
		}
		length := uint64(d.data[pos]) // seven octets do not fit an int of 32 bits
		pos++
		if length == 0x80 {
			if tag&tagConstructed == 0 {
				return 0, d.broken(pos, "indefinite length of a primitive type")
			}
			open++
			continue
		}
		if length > 0x80 {
			octets := int(length - 0x80)
			if octets > 7 || octets > d.end-pos {
				return 0, d.broken(pos, "length of %d octets", octets)
			}
			length = 0
			for range octets {
				length = length<<8 | uint64(d.data[pos])
				pos++
			}
		}
		if length > uint64(d.end-pos) {
			return 0, d.broken(pos, "element of %d bytes with only %d left", length, d.end-pos)
		}
		pos += int(length)
	}
}

// again reports whether the SET OF or SEQUENCE OF that was entered last has another
// element, and leaves it if not.
func (d *decoder) again() bool {
	if d.err != nil {
		return false
	}
	f := &d.frames[d.depth-1]
	if f.indefinite {
		if d.end-d.pos < 2 {
			return d.broken(d.pos, "no end of an element of indefinite length")
		}
		if d.data[d.pos] != 0 {
			return true
		}
	} else if d.pos < d.end {
		return true
	}
	d.leave()
	return false
}

// leave ends the element that was entered last, which must have been read completely.
func (d *decoder) leave() {
	if d.err != nil {
		return
	}
	d.depth--
	f := &d.frames[d.depth]
	d.header, d.start, d.after = f.header, f.start, d.pos
	if f.indefinite {
		if d.end-d.pos < 2 || d.data[d.pos] != 0 || d.data[d.pos+1] != 0 {
			d.broken(d.pos, "no end of an element of indefinite length")
			return
		}
		d.pos += 2
	} else {
		if d.pos != d.end {
			d.broken(d.pos, "%d bytes too many in an element", d.end-d.pos)
			return
		}
		d.end = f.outerEnd
	}
	d.matched = true
}

// value returns the contents of the element that was read or left last.
func (d *decoder) value() []byte {
	if d.err != nil {
		return nil
	}
	return d.data[d.start:d.after:d.after]
}

// element returns the element with its identifier and length octets (and the
// end-of-contents octets of an element of indefinite length that was left).
func (d *decoder) element() []byte {
	if d.err != nil {
		return nil
	}
	return d.data[d.start-d.header : d.pos : d.pos]
}

// algorithm reads an AlgorithmIdentifier up to its end. It returns the contents of the
// object identifier and the parameters as an element, nil if absent.
func (d *decoder) algorithm() (oid string, parameters []byte) {
	d.need(tagOID)
	oid = string(d.value())
	if d.maybeAny() {
		parameters = d.element()
	}
	d.leave()
	return oid, parameters
}

// name reads a Name whose sequence has been entered.
func (d *decoder) name() {
	for {
		d.need(tagSet)
		for {
			d.need(tagSequence)
			d.need(tagOID)
			d.needAny()
			d.leave()
			if !d.again() {
				break
			}
		}
		if !d.again() {
			return
		}
	}
}

// dotted returns an object identifier in dotted form for messages.
func dotted(oid string) string {
	var id asn1.ObjectIdentifier
	if len(oid) < 0x80 {
		der := append([]byte{tagOID, byte(len(oid))}, oid...)
		if _, err := asn1.Unmarshal(der, &id); err == nil {
			return id.String()
		}
	}
	return fmt.Sprintf("(bad: %x)", oid)
}
