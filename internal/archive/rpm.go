package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	rpmMagic     = "\xed\xab\xee\xdb"
	rpmLead      = 96
	headerMagic  = "\x8e\xad\xe8\x01"
	headerIntro  = 16 // magic, reserved, two numbers
	maxTags      = 1 << 16
	maxTagsStore = 256 << 20 // bytes, as in rpm
)

// Tags of a header (include/rpm/rpmtag.h of rpm) and their types.
const (
	tagFileSizes     = 1028
	tagFileModes     = 1030
	tagFileDevices   = 1095
	tagFileInodes    = 1096
	tagDirIndexes    = 1116
	tagBaseNames     = 1117
	tagDirNames      = 1118
	tagPayloadFormat = 1124
	tagLongFileSizes = 5008

	rpmInt16   = 3
	rpmInt32   = 4
	rpmInt64   = 5
	rpmString  = 6
	rpmStrings = 8
)

// rpm reads an RPM package.
func (w *walk) rpm(section *io.SectionReader) error {
	signature, err := readHeader(section, rpmLead)
	if err != nil {
		return fmt.Errorf("rpm: signature header: %w", err)
	}
	h, err := readHeader(section, signature.end+-signature.end&7)
	if err != nil {
		return fmt.Errorf("rpm: header: %w", err)
	}
	format, err := h.text(tagPayloadFormat)
	if err != nil {
		return fmt.Errorf("rpm: %w", err)
	}
	if format != "" && format != "cpio" {
		return errors.New("rpm: the payload is not a cpio archive")
	}
	s, err := w.unpacked(io.NewSectionReader(section, h.end, section.Size()-h.end))
	if err != nil {
		return fmt.Errorf("rpm payload: %w", err)
	}
	defer s.close()
	c := newCpio(w, s)
	c.stripped = (&rpmFiles{header: h, walk: w}).file
	if err := c.archive(); err != nil {
		return err
	}
	return drain(s)
}

// A header is the structure that holds the tags of a package: magic, a reserved word, the
// number of tags and the size of their store in bytes, then for each tag four numbers (tag,
// type, offset in the store, count), then the store. Numbers have 32 bits and are big-endian.
type header struct {
	r     *io.SectionReader
	tags  map[uint32]tag
	store int64 // offset
	size  int64 // of the store
	end   int64 // offset of what follows
}

type tag struct{ kind, offset, count uint32 }

func readHeader(r *io.SectionReader, at int64) (*header, error) {
	var intro [headerIntro]byte
	if _, err := r.ReadAt(intro[:], at); err != nil {
		return nil, fmt.Errorf("cut off: %w", cutOff(err))
	}
	if string(intro[:4]) != headerMagic {
		return nil, fmt.Errorf("no header at byte %d", at)
	}
	n, size := int64(binary.BigEndian.Uint32(intro[8:])), int64(binary.BigEndian.Uint32(intro[12:]))
	h := &header{r: r, size: size, store: at + headerIntro + 16*n}
	h.end = h.store + size
	switch {
	case n > maxTags || size > maxTagsStore:
		return nil, fmt.Errorf("%w: %d tags in %d bytes", ErrLimit, n, size)
	case h.end > r.Size():
		return nil, fmt.Errorf("%d bytes up to byte %d are cut off at byte %d: %w", h.end-at, h.end, r.Size(),
			io.ErrUnexpectedEOF)
	}
	index := make([]byte, 16*n)
	if _, err := r.ReadAt(index, at+headerIntro); err != nil {
		return nil, cutOff(err)
	}
	h.tags = make(map[uint32]tag, n)
	for ; len(index) > 0; index = index[16:] {
		u32 := func(i int) uint32 { return binary.BigEndian.Uint32(index[4*i:]) }
		h.tags[u32(0)] = tag{u32(1), u32(2), u32(3)}
	}
	return h, nil
}

// bytes reads the store from a tag on, at most size bytes.
func (h *header) bytes(t tag, size int64) ([]byte, error) {
	if int64(t.offset) > h.size {
		return nil, fmt.Errorf("tag at byte %d of a store of %d", t.offset, h.size)
	}
	b := make([]byte, min(size, h.size-int64(t.offset)))
	_, err := h.r.ReadAt(b, h.store+int64(t.offset))
	if err == io.EOF {
		err = nil
	}
	return b, err
}

// text returns a string, or "" without the tag.
func (h *header) text(number uint32) (string, error) {
	t, ok := h.tags[number]
	if !ok || t.kind != rpmString {
		return "", nil
	}
	b, err := h.bytes(t, 64)
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text), err
}

// numbers returns the numbers of a tag, which has as many as want.
func (h *header) numbers(number uint32, want int) (func(i uint32) int64, error) {
	t, ok := h.tags[number]
	width := map[uint32]int64{rpmInt16: 2, rpmInt32: 4, rpmInt64: 8}[t.kind]
	if !ok || width == 0 || int64(t.count) < int64(want) {
		return nil, fmt.Errorf("tag %d of the header does not describe %d files", number, want)
	}
	b, err := h.bytes(t, width*int64(want))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) < width*int64(want) {
		return nil, fmt.Errorf("tag %d of the header is cut off", number)
	}
	return func(i uint32) int64 {
		b := b[int64(i)*width:]
		switch width {
		case 2:
			return int64(binary.BigEndian.Uint16(b))
		case 4:
			return int64(binary.BigEndian.Uint32(b))
		}
		return int64(binary.BigEndian.Uint64(b))
	}, nil
}

// texts returns the strings of a tag. They share the memory of the store.
func (h *header) texts(w *walk, number uint32) ([]string, error) {
	t, ok := h.tags[number]
	if !ok || t.kind != rpmStrings {
		return nil, fmt.Errorf("no tag %d in the header", number)
	}
	b, err := h.bytes(t, h.size)
	if err != nil {
		return nil, err
	}
	if int(t.count) > w.limits.Entries {
		return nil, w.limits.exceeded("entries", int64(w.limits.Entries))
	}
	if w.kept += int64(len(b)) + 16*int64(t.count); w.kept > 2*w.limits.Kept {
		return nil, w.limits.exceeded("bytes of names to remember", 2*w.limits.Kept)
	}
	all := string(b)
	texts := make([]string, 0, min(int(t.count), len(b)))
	for range t.count {
		text, rest, found := strings.Cut(all, "\x00")
		if !found {
			return nil, fmt.Errorf("tag %d of the header is cut off", number)
		}
		texts, all = append(texts, text), rest
	}
	return texts, nil
}

// rpmFiles are the files that a header lists.
type rpmFiles struct {
	header *header
	walk   *walk
	bases  []string
	dirs   []string

	groups map[inode]group

	dir, size, mode, device, inode func(i uint32) int64
}

// A group is the hard links of one inode, as rpm numbers them in a package.
type group struct{ links, last uint32 }

// An rpmFile is what the header tells of a file.
type rpmFile struct {
	name  string
	mode  uint32
	size  int64
	node  inode
	links uint32
}

func (r *rpmFiles) load() (err error) {
	h := r.header
	if r.bases, err = h.texts(r.walk, tagBaseNames); err != nil {
		return err
	}
	if r.dirs, err = h.texts(r.walk, tagDirNames); err != nil {
		return err
	}
	n := len(r.bases)
	sizes := uint32(tagLongFileSizes)
	if _, ok := h.tags[sizes]; !ok {
		sizes = tagFileSizes
	}
	for _, field := range []struct {
		to     *func(uint32) int64
		number uint32
	}{
		{&r.dir, tagDirIndexes}, {&r.size, sizes}, {&r.mode, tagFileModes}, {&r.device, tagFileDevices},
		{&r.inode, tagFileInodes},
	} {
		if *field.to, err = h.numbers(field.number, n); err != nil {
			return err
		}
	}
	if r.walk.kept += keptEntry * int64(n); r.walk.kept > 2*r.walk.limits.Kept {
		return r.walk.limits.exceeded("bytes of names to remember", 2*r.walk.limits.Kept)
	}
	r.groups = make(map[inode]group, n)
	for i := range uint32(n) {
		node := r.node(i)
		r.groups[node] = group{r.groups[node].links + 1, i}
	}
	return nil
}

func (r *rpmFiles) node(i uint32) inode { return inode{0, uint32(r.device(i)), uint32(r.inode(i))} }

// file returns the file with an index. Of several hard links, the last has the content, and
// the others come before it.
func (r *rpmFiles) file(i uint32) (*rpmFile, error) {
	if r.bases == nil {
		if err := r.load(); err != nil {
			return nil, err
		}
	}
	if int64(i) >= int64(len(r.bases)) {
		return nil, fmt.Errorf("file %d of %d in the header", i, len(r.bases))
	}
	dir := r.dir(i)
	if dir >= int64(len(r.dirs)) {
		return nil, errors.New("directory of a file is missing from the header")
	}
	f := &rpmFile{name: r.dirs[dir] + r.bases[i], mode: uint32(r.mode(i)), size: r.size(i), node: r.node(i)}
	if mode := fileMode(f.mode); mode.IsRegular() {
		group := r.groups[f.node]
		f.links = group.links
		if group.last != i {
			f.size = 0
		}
	} else if mode.Type() != fileMode(0o120000).Type() {
		f.size = 0
	}
	return f, nil
}

// strippedEntry reads an entry of the form that begins with an index of the header: magic,
// eight hexadecimal digits, padding, the content.
func (c *cpio) strippedEntry() error {
	var digits [8]byte
	if err := c.read(digits[:]); err != nil {
		return err
	}
	i, err := strconv.ParseUint(string(digits[:]), 16, 32)
	if err != nil {
		return fmt.Errorf("cpio archive is corrupt at byte %d: not a hexadecimal number", c.n-8)
	}
	if err := c.pad(); err != nil {
		return err
	}
	file, err := c.stripped(uint32(i))
	if err != nil {
		return fmt.Errorf("rpm: %w", err)
	}
	if file.size < 0 {
		return fmt.Errorf("rpm: file of %d bytes", file.size)
	}
	f := &File{Name: file.name, Mode: fileMode(file.mode)}
	return c.file(f, file.node, file.links, file.size, &part{c, file.size})
}
