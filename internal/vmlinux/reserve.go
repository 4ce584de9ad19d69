package vmlinux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// A Reserve is the room of a kernel for certificates that are added after its build.
type Reserve struct {
	Size         int    // of the room, in bytes
	Certificates []byte // what is in it, concatenated DER
	Found        string // the source of its address: "symbols", "System.map" or "scan"

	body         *body
	extra        int64 // offsets in the kernel
	used, length int64
	list         uint64 // the length of the list, in bytes
}

// ErrNoReserve reports a kernel that was built without CONFIG_SYSTEM_EXTRA_CERTIFICATE.
var ErrNoReserve = errors.New("the kernel was built without CONFIG_SYSTEM_EXTRA_CERTIFICATE: " +
	"it has no room for further certificates")

// defaultReserve is the default of CONFIG_SYSTEM_EXTRA_CERTIFICATE_SIZE, in bytes.
const defaultReserve = 4096

// Reserve finds the room for further certificates, as [Image.Certificates] finds the
// lists. A scan alone finds an empty one only if it has the size that is the default. The
// error is [ErrNoReserve] if the kernel has none.
func (im *Image) Reserve() (*Reserve, error) {
	f := im.body
	symbols, err := f.symbols(symbolNames())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", im.packing, err)
	}
	found := "symbols"
	if _, ok := symbols[symList]; !ok && im.mapped != nil {
		symbols, found = im.mapped, "System.map"
	}
	var r *Reserve
	if _, ok := symbols[symList]; ok {
		r, err = f.reserveAt(symbols)
	} else {
		r, err = f.scanReserve()
		found = "scan"
	}
	if err != nil {
		return nil, fmt.Errorf("%s, by %s: %w", im.packing, found, err)
	}
	r.Found = found
	return r, nil
}

// reserveAt finds the room at the addresses of symbols.
func (f *body) reserveAt(symbols map[string]symbol) (*Reserve, error) {
	extra, ok := symbols[symExtra]
	used, also := symbols[symExtraUsed]
	length, sized := symbols[symListSize]
	if !ok || !also {
		return nil, ErrNoReserve
	}
	if !sized {
		return nil, fmt.Errorf("symbol %s without %s", symList, symListSize)
	}
	size := used.addr - extra.addr
	if extra.size > 0 {
		size = min(size, extra.size)
	} else if size-size%uint64(f.intAlign) == defaultReserve {
		size = defaultReserve // a System.map has no sizes: the rest aligns the next symbol
	}
	return f.newReserve(symbols[symList].addr, extra.addr, size, used.addr, length.addr)
}

// scanReserve finds the room by the layout of the list.
func (f *body) scanReserve() (*Reserve, error) {
	lists, builtin, err := f.scanLists()
	if err != nil {
		return nil, err
	}
	l := lists[builtin]
	if !l.reserve {
		return nil, ErrNoReserve
	}
	up := func(n uint64, to int) uint64 { return (n + uint64(to) - 1) / uint64(to) * uint64(to) }
	extra := l.addr + uint64(len(l.der)-l.used)
	usual := up(extra+defaultReserve, f.intAlign)
	used, size := l.usedAt, uint64(defaultReserve)
	switch {
	case used == 0 || l.used == 0: // the zeros before the length do not tell which of them it is
		if up(usual+4, f.align) != l.sizeAt {
			return nil, errors.New("the room for further certificates does not have the size that is the default: " +
				giveSymbols)
		}
		used = usual
	case used != usual:
		size = used - extra
	}
	return f.newReserve(l.addr, extra, size, used, l.sizeAt)
}

// newReserve reads the room whose addresses are known.
func (f *body) newReserve(list, extra, size, used, length uint64) (*Reserve, error) {
	n, err := f.wordAt(length)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", symListSize, err)
	}
	count, err := f.at(used, 4)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", symExtraUsed, err)
	}
	inUse := uint64(f.order.Uint32(count))
	if used < extra || size > maxReserve || inUse > size || list+n-inUse != extra {
		return nil, fmt.Errorf("%d bytes of certificates with %d of %d in %s do not fit together; "+
			"the symbols may belong to another image", n, inUse, size, symExtra)
	}
	room, err := f.at(extra, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", symExtra, err)
	}
	r := &Reserve{Size: int(size), Certificates: bytes.Clone(room[:inUse]), body: f, list: n}
	for _, part := range []struct {
		offset     *int64
		addr, size uint64
	}{{&r.extra, extra, size}, {&r.used, used, 4}, {&r.length, length, f.wordSize()}} {
		if *part.offset, err = f.offsetOf(part.addr, part.size); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// An Edit replaces bytes at an offset of a file.
type Edit struct {
	Offset int64
	Data   []byte
}

// Fill returns what makes the certificates, concatenated DER, the only ones in the room,
// as scripts/insert-sys-cert does: edits of the kernel, which is the file itself if the
// image is [Image.Bare].
func (r *Reserve) Fill(certs []byte) ([]Edit, error) {
	if ends := certificates(certs); len(ends) == 0 || ends[len(ends)-1] != len(certs) {
		return nil, errors.New("the kernel loads only certificates that begin with 30 82, which have at least 256 bytes")
	}
	if len(certs) > r.Size {
		return nil, fmt.Errorf("certificates of %d bytes do not fit into the room of %d "+
			"(CONFIG_SYSTEM_EXTRA_CERTIFICATE_SIZE)", len(certs), r.Size)
	}
	room := make([]byte, r.Size)
	copy(room, certs)
	order := r.body.order.(binary.AppendByteOrder)
	length := r.list - uint64(len(r.Certificates)) + uint64(len(certs))
	word := order.AppendUint32(nil, uint32(length))
	if r.body.wide {
		word = order.AppendUint64(nil, length)
	}
	return []Edit{
		{r.extra, room}, {r.used, order.AppendUint32(nil, uint32(len(certs)))}, {r.length, word},
	}, nil
}

// Bare reports whether the file is the kernel itself: a vmlinux, or a flat Image that
// nothing is around.
func (im *Image) Bare() bool { return im.bare }

// Repackable reports whether [Repack] can change the kernel in the file.
func (im *Image) Repackable() bool { return im.repackable }

// Kernel returns a copy of the kernel in the image.
func (im *Image) Kernel() ([]byte, error) {
	b, err := im.body.read(0, im.body.size)
	return bytes.Clone(b), err
}
