package vmlinux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

const (
	// maxList is the size limit of a list, in bytes: some ten thousand certificates.
	maxList = 16 << 20

	// maxReserve is the size limit of a reserve for an extra certificate, in bytes.
	// CONFIG_SYSTEM_EXTRA_CERTIFICATE_SIZE is 4096 by default.
	maxReserve = 1 << 20

	// maxSteps is the limit of certificates and zero words that a scan visits in total.
	// In Debian's kernels they are fewer than ten. The limit keeps the time
	// proportional to an image in which nearly everything looks like a certificate.
	maxSteps = 1 << 20
)

// errTooMany is returned for an image that no kernel's build makes.
var errTooMany = errors.New("too much of the image looks like certificates: " + giveSymbols)

const giveSymbols = "use the vmlinux of the kernel's build, which has symbols, or its System.map"

// list is data in the image with the layout of a certificate list.
type list struct {
	addr    uint64
	der     []byte
	reserve bool   // whether a reserve for an extra certificate follows
	used    int    // bytes of the reserve in use
	usedAt  uint64 // address of system_extra_cert_used, or 0 if it is not certain
	sizeAt  uint64 // address of the list's size
	module  int    // module_cert_size, or -1 if the next word cannot be one
}

// scanner searches for lists in a kernel without symbols.
type scanner struct {
	*body
	steps int
	lists []list // by address
}

func (f *body) scan() (*Certificates, error) {
	lists, builtin, err := f.scanLists()
	if err != nil {
		return nil, err
	}
	l := lists[builtin]
	c := &Certificates{Builtin: bytes.Clone(l.der)}
	c.Module = c.Builtin[:max(l.module, 0):max(l.module, 0)]
	c.Extra = c.Builtin[len(c.Builtin)-l.used:]
	for i, l := range lists {
		if i != builtin {
			c.Revoked = append(c.Revoked, l.der...)
		}
	}
	return c, nil
}

// scanLists returns the lists in the kernel, and which of them is the built-in list.
func (f *body) scanLists() (lists []list, builtin int, err error) {
	s := scanner{body: f}
	// Kernels before 5.13 have no revocation list. Later kernels may have one, and then
	// log a message when they load it.
	trusts, revokes := false, false
	for _, seg := range f.segments {
		b, err := f.read(seg.off, seg.size)
		if err != nil {
			return nil, 0, err
		}
		if err := s.segment(seg.addr, b); err != nil {
			return nil, 0, err
		}
		trusts = trusts || bytes.Contains(b, []byte("Loading compiled-in X.509 certificates"))
		revokes = revokes || bytes.Contains(b, []byte("Loading compiled-in revocation X.509 certificates"))
	}
	// The absence of the second message proves something only if the first is present:
	// printk may be compiled out, or the texts may have changed.
	builtin, err = chooseBuiltin(s.lists, trusts && !revokes)
	return s.lists, builtin, err
}

// chooseBuiltin determines which of the lists is the built-in list. alone reports that
// the kernel certainly has no revocation list.
func chooseBuiltin(lists []list, alone bool) (int, error) {
	if len(lists) == 0 {
		return 0, fmt.Errorf("%w: the image has no symbols, and a scan found no certificate list in it; "+
			"either the kernel was built with no key and accepts no module's signature, "+
			"or this is not the kernel itself: %s",
			ErrNoCertificates, giveSymbols)
	}
	certain := -1
	for i, l := range lists {
		switch {
		case !l.reserve && l.module <= 0:
		case certain < 0:
			certain = i
		default:
			return 0, fmt.Errorf("the lists at %#x and %#x both look like the built-in certificates: %s", lists[certain].addr,
				l.addr, giveSymbols)
		}
	}
	switch {
	case certain >= 0:
		return certain, nil
	case alone && len(lists) == 1:
		return 0, nil
	case !alone && len(lists) > 1 && lists[0].module == 0:
		return 0, nil
	case !alone && len(lists) == 1 && lists[0].module < 0:
		return 0, fmt.Errorf("%w: the only list, at %#x, is the revocation list", ErrNoCertificates, lists[0].addr)
	}
	return 0, fmt.Errorf("the certificates at %#x may be those that the kernel trusts or those that it revokes: %s",
		lists[0].addr, giveSymbols)
}

// segment collects the lists of a segment at the address addr.
func (s *scanner) segment(addr uint64, b []byte) error {
	for at := int(-addr % uint64(s.align)); at+5 <= len(b); at += s.align {
		// A certificate begins with two SEQUENCEs, the inner one being the
		// TBSCertificate.
		if b[at] != 0x30 || b[at+1] != 0x82 || b[at+4] != 0x30 {
			continue
		}
		l, slot, err := s.listAt(addr, b, at)
		if err != nil {
			return err
		}
		if slot > 0 {
			s.lists = append(s.lists, l)
			at = slot
		}
	}
	return nil
}

// listAt reads the list that begins at b[at:], and returns the offset of its size; slot
// is 0 if there is no list.
func (s *scanner) listAt(addr uint64, b []byte, at int) (l list, slot int, err error) {
	ends := certificates(b[at:min(len(b), at+maxList)])
	s.steps += 1 + len(ends)
	if len(ends) == 0 {
		return list{}, 0, s.tooMany()
	}
	size := ends[len(ends)-1]
	end := at + size

	// Zeros up to the next word: padding, and perhaps the reserve.
	next := end
	for next < min(len(b), end+maxReserve+s.align) && b[next] == 0 {
		next++
	}
	s.steps += (next - end) / s.align
	if err := s.tooMany(); err != nil {
		return list{}, 0, err
	}
	back := func(n, to int) int { return n - int((addr+uint64(n))%uint64(to)) }
	up := func(n, to int) int { return back(n+to-1, to) }

	l = list{addr: addr + uint64(at), der: b[at:end]}
	isSize := func(slot int) bool {
		n, ok := s.word(b[min(slot, len(b)):])
		return ok && n == uint64(size)
	}
	slot = back(next, s.align)
	switch {
	case slot >= end && isSize(slot):
		// If the list is only an extra certificate, this may be system_extra_cert_used,
		// with the same value as the size that follows. The list is the same in both
		// cases.
		l.reserve = slot > up(end, s.align)
	default:
		at := back(next, s.intAlign)
		if at < end || at+4 > len(b) {
			return list{}, 0, nil
		}
		used := uint64(s.order.Uint32(b[at:]))
		slot = up(at+4, s.align)
		if used > uint64(size) || !slices.Contains(append(ends, 0), size-int(used)) || !isSize(slot) {
			return list{}, 0, nil
		}
		l.reserve, l.used = true, int(used)
		l.usedAt = addr + uint64(at)
	}
	l.sizeAt = addr + uint64(slot)

	l.module = -1
	if n, ok := s.word(b[min(slot+s.align, len(b)):]); ok {
		if n == 0 || n <= uint64(size) && slices.Contains(ends, int(n)) {
			l.module = int(n)
		}
	}
	return l, slot, nil
}

func (s *scanner) tooMany() error {
	if s.steps > maxSteps {
		return errTooMany
	}
	return nil
}
