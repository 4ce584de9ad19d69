package archive

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// debMembers are the members of a package (deb(5)), without what compressed them.
var debMembers = []string{"debian-binary", "control", "data"}

const (
	arMagic  = "!<arch>\n"
	arHeader = 60
)

// deb reads a Debian package: an ar archive (ar(5)) of tar archives. A header has the name
// in 16 bytes, times, owners and the mode in 32, the size in 10, all as text, and two bytes
// that end it. Members begin at even offsets.
func (w *walk) deb(section *io.SectionReader) error {
	var members []string
	for at := int64(len(arMagic)); at < section.Size(); {
		var header [arHeader]byte
		if _, err := section.ReadAt(header[:], at); err != nil {
			return fmt.Errorf("deb: member at byte %d is cut off: %w", at, cutOff(err))
		}
		size, err := strconv.ParseInt(strings.TrimRight(string(header[48:58]), " "), 10, 64)
		if err != nil || size < 0 || string(header[58:]) != "`\n" {
			return fmt.Errorf("deb: no header of an ar member at byte %d", at)
		}
		if at += arHeader; size > section.Size()-at {
			return fmt.Errorf("deb: member of %d bytes at byte %d is cut off after %d: %w", size, at, section.Size()-at,
				io.ErrUnexpectedEOF)
		}
		member := io.NewSectionReader(section, at, size)
		name := strings.TrimRight(string(header[:16]), " /")
		base, _, _ := strings.Cut(name, ".tar")
		// dpkg-deb wants these three, in this order, and passes over what begins with "_" before
		// data.tar, and over all behind it.
		switch n := len(members); {
		case slices.Contains(members, "data") && base != "data", n > 0 && strings.HasPrefix(name, "_"):
		case slices.Contains(members, base):
			err = errors.New("comes twice")
		case n == 3 || base != debMembers[n]:
			err = fmt.Errorf("a package has %s in this order", strings.Join(debMembers, ", "))
		case base == "control":
			members = append(members, base)
			err = w.member(member, func(f *File) error {
				f.Name = "DEBIAN/" + f.Name
				return w.emit(f)
			})
		case base == "data":
			members = append(members, base)
			err = w.member(member, w.emit)
		default:
			members = append(members, base)
			err = debVersion(member)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		at += size + size&1
		if err := w.admit("", ""); err != nil {
			return err
		}
	}
	if len(members) < len(debMembers) {
		return errors.New("deb: no data.tar: the package is cut off")
	}
	return nil
}

// debVersion reads debian-binary: dpkg refuses what is not of the second version.
func debVersion(member *io.SectionReader) error {
	text := make([]byte, min(member.Size(), 16))
	if _, err := io.ReadFull(member, text); err != nil {
		return err
	}
	version, _, ok := strings.Cut(string(text), "\n")
	minor, second := strings.CutPrefix(version, "2.")
	if !ok || !second || minor == "" || strings.Trim(minor, "0123456789") != "" {
		return errors.New("version of the package's format is not 2.0, and dpkg refuses it")
	}
	return nil
}

func (w *walk) member(section *io.SectionReader, emit func(*File) error) error {
	s, err := w.unpacked(section)
	if err != nil {
		return err
	}
	defer s.close()
	return w.tarStream(s, false, emit)
}
