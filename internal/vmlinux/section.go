package vmlinux

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrNoSection reports that a kernel has no section with the given name.
var ErrNoSection = errors.New("no such section")

// ErrFlat reports that a kernel is a flat binary, which does not tell where its sections
// are.
var ErrFlat = errors.New("a flat binary does not tell where its sections are: " + giveVmlinux)

// A Section is a named section of a kernel's ELF file.
type Section struct {
	Data   []byte           // contents; the caller must not change them
	Offset int64            // offset in the ELF file
	Order  binary.ByteOrder // byte order of the numbers in it
}

// header returns the section header number i.
func (f *body) header(i uint64) (s elf.Section64, err error) {
	off := f.head.Shoff + i*uint64(f.head.Shentsize)
	if f.wide {
		return s, f.decode(off, &s)
	}
	var n elf.Section32
	err = f.decode(off, &n)
	return elf.Section64{Name: n.Name, Type: n.Type, Flags: uint64(n.Flags), Link: n.Link,
		Off: uint64(n.Off), Size: uint64(n.Size)}, err
}

// Section returns the section with the given name. The error is [ErrNoSection] if there
// is none, as in every kernel without section headers. For a flat binary, the error is
// [ErrFlat].
func (im *Image) Section(name string) (*Section, error) { return im.body.section(name) }

func (f *body) section(name string) (*Section, error) {
	if f.flat {
		return nil, ErrFlat
	}
	if uint64(f.head.Shstrndx) >= uint64(f.head.Shnum) {
		return nil, ErrNoSection
	}
	names, err := f.header(uint64(f.head.Shstrndx))
	if err != nil {
		return nil, err
	}
	table, err := f.inFile(names.Off, names.Size)
	if err != nil {
		return nil, fmt.Errorf("section names: %w", err)
	}
	text, err := f.read(table.off, table.size)
	if err != nil {
		return nil, err
	}
	want := append([]byte(name), 0)
	for i := range uint64(f.head.Shnum) {
		s, err := f.header(i)
		if err != nil {
			return nil, err
		}
		if uint64(s.Name) >= uint64(len(text)) || !bytes.HasPrefix(text[s.Name:], want) {
			continue
		}
		if elf.SectionType(s.Type) == elf.SHT_NOBITS || s.Flags&uint64(elf.SHF_COMPRESSED) != 0 {
			return nil, fmt.Errorf("the file does not contain section %s uncompressed", name)
		}
		at, err := f.inFile(s.Off, s.Size)
		if err != nil {
			return nil, fmt.Errorf("section %s: %w", name, err)
		}
		data, err := f.read(at.off, at.size)
		return &Section{Data: data, Offset: at.off, Order: f.order}, err
	}
	return nil, ErrNoSection
}

// banner is the beginning of linux_banner (init/version-timestamp.c). The release
// follows, as uname -r prints it.
const banner = "Linux version "

// Release returns the kernel's release from its banner, or "" if there is no banner.
func (im *Image) Release() (string, error) { return im.body.release() }

func (f *body) release() (string, error) {
	for _, s := range f.segments {
		data, err := f.read(s.off, s.size)
		if err != nil {
			return "", err
		}
		for {
			_, after, found := bytes.Cut(data, []byte(banner))
			if !found {
				break
			}
			data = after
			release, _, found := bytes.Cut(after[:min(len(after), 66)], []byte(" "))
			// Other texts may begin with the banner's first words.
			if found && len(release) > 0 && release[0] >= '0' && release[0] <= '9' &&
				!bytes.ContainsFunc(release, func(r rune) bool { return r < '!' || r > '~' }) {
				return string(release), nil
			}
		}
	}
	return "", nil
}

// Contains reports whether the memory of the kernel has a text in one piece.
func (im *Image) Contains(text string) (bool, error) {
	found, err := im.Texts(text)
	return found[text], err
}

// Texts reports for each text whether the memory of the kernel has it in one piece.
func (im *Image) Texts(texts ...string) (map[string]bool, error) {
	found := make(map[string]bool, len(texts))
	for _, s := range im.body.segments {
		data, err := im.body.read(s.off, s.size)
		if err != nil {
			return nil, err
		}
		for _, text := range texts {
			found[text] = found[text] || bytes.Contains(data, []byte(text))
		}
	}
	return found, nil
}
