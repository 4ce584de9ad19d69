package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// isTar reports whether head is the header of a tar archive: its checksum fits, which is
// the sum of all bytes with the checksum itself as spaces. The old format has no magic.
func isTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	field := strings.Trim(string(head[148:156]), " \x00")
	want, err := strconv.ParseUint(field, 8, 32)
	if err != nil || head[0] == 0 {
		return false
	}
	var signed, unsigned int64
	for i, c := range head[:512] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return int64(want) == unsigned || int64(want) == signed
}

// isEmptyTar reports whether a file is nothing but the end of a tar archive. Tools fill that up to
// some multiple of 512 bytes.
func isEmptyTar(r io.ReaderAt, size int64) bool {
	if size < 1024 || size > 1<<20 || size%512 != 0 {
		return false
	}
	_, err := nextNonzero(r, 0)
	return err == io.EOF
}

// tar reads a tar archive, compressed or not.
func (w *walk) tar(section *io.SectionReader) error {
	s, err := w.unpacked(section)
	if err != nil {
		return err
	}
	defer s.close()
	var meta imageFiles
	isImage := false
	err = w.tarStream(s, false, func(f *File) error {
		image, err := meta.note(f)
		if err != nil {
			return err
		}
		if isImage = isImage || image; isImage && !s.plain {
			return errors.New("a container image that is compressed as a whole is not read: decompress the archive first")
		}
		return w.emit(f)
	})
	if err == nil && isImage {
		err = errors.New("a container image with further files, or with one twice, which programs may read as an " +
			"image or as a tar archive: make the archive anew, with the files of the image alone")
	}
	return err
}

// imageFiles are the files of an image layout among those of a tar archive.
type imageFiles struct{ layout, index bool }

// note notes a file, and reports whether the archive is a container image for those who read one: it
// has oci-layout and index.json, the manifest.json of docker save, or a layer of the form before that.
func (m *imageFiles) note(f *File) (bool, error) {
	name := cleanName(f.Name)
	switch {
	case isLayerName(name):
		return true, nil
	case name == layoutFile:
		m.layout = true
	case name == indexFile:
		m.index = true
	case name != manifestFile || f.Mode.IsDir():
	case !f.Mode.IsRegular() || f.Link != "" || f.Size > maxJSON:
		return true, nil // nobody knows
	default:
		b, err := io.ReadAll(f)
		f.content = bytes.NewReader(b)
		return isDockerManifest(b), err
	}
	return m.layout && m.index, nil
}

// isDockerManifest reports whether a manifest.json is that of docker save, and not of something else.
func isDockerManifest(b []byte) bool {
	var images []struct{ Layers []string }
	// What follows the first value is passed over by programs too.
	err := json.NewDecoder(bytes.NewReader(b)).Decode(&images)
	for _, im := range images {
		if im.Layers != nil {
			return err == nil
		}
	}
	return false
}

// tarStream passes on the entries of a tar archive, with names as stored. If it is known to be
// whole, it needs no end marker: umoci insert writes none.
func (w *walk) tarStream(r io.Reader, whole bool, emit func(*File) error) error {
	content := r
	if !whole {
		content = unended{r}
	}
	t := tar.NewReader(&headers{r: content})
	for {
		h, err := t.Next()
		if err == io.EOF {
			return afterEnd(r)
		}
		if err != nil {
			return tarError(err)
		}
		f := &File{Name: h.Name, Mode: h.FileInfo().Mode()}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
			f.Mode &^= fs.ModeType
			f.Size, f.content = h.Size, tarContent{t}
		case tar.TypeLink:
			f.Mode &^= fs.ModeType
			if f.Link = h.Linkname; cleanName(f.Link) == "" {
				return fmt.Errorf("%s: hard link to nothing", h.Name)
			}
		case tar.TypeSymlink:
			f.Link = h.Linkname
		case tar.TypeDir, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		case tar.TypeXGlobalHeader:
			continue
		default:
			return fmt.Errorf("%s: entry of type %q, which is not read", h.Name, h.Typeflag)
		}
		if err := emit(f); err != nil {
			return err
		}
	}
}

// unended is a tar archive. Its end is an error, as a reader of tar archives would take it for
// the end marker, two blocks of zeros, and has read that before.
type unended struct{ io.Reader }

func (u unended) Read(b []byte) (int, error) {
	n, err := u.Reader.Read(b)
	if err == io.EOF {
		err = errNoMarker
	}
	return n, err
}

var errNoMarker = fmt.Errorf("it ends without the two blocks of zeros that end a tar archive: %w", io.ErrUnexpectedEOF)

// afterEnd reads what follows the end marker of a tar archive, which is nothing but zeros: a
// second archive there would be one that some programs see and others do not. Checksums of a
// compressed stream come last.
func afterEnd(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return errFollows
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	s, ok := r.(*stream)
	if !ok || s.plain {
		return nil
	}
	switch _, err := nextNonzero(s.section, s.at); err {
	case io.EOF:
		return nil
	case nil:
		return errFollows
	default:
		return err
	}
}

var errFollows = errors.New("data follows the end of the tar archive")

// tarContent is the content of the current file.
type tarContent struct{ t *tar.Reader }

func (c tarContent) Read(b []byte) (int, error) {
	n, err := c.t.Read(b)
	if err != nil && err != io.EOF {
		err = tarError(err)
	}
	return n, err
}

func tarError(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("tar archive is cut off: %w", err)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("tar archive is corrupt: %w", err)
	}
	return err
}

// tarKind tells whether a tar archive that is not compressed holds container images.
func tarKind(r io.ReaderAt, size int64) (Kind, error) {
	// The names are at any place: those of images have few entries, and nothing but.
	kind := Tar
	index, err := indexTar(io.NewSectionReader(r, 0, size), 1<<14, func(name string) bool {
		first, _, _ := strings.Cut(name, "/")
		switch {
		case first == layoutFile, first == indexFile, first == manifestFile, first == blobsDir, first == "repositories":
			return true
		}
		return isDigest(strings.TrimSuffix(strings.TrimSuffix(first, ".json"), ".tar"))
	})
	switch {
	case err != nil: // no image, or a corrupt archive: reading it tells
	case index[layoutFile] != nil && index[indexFile] != nil:
		kind = OCI
	case index[manifestFile] != nil:
		kind = Docker
	}
	return kind, nil
}

func isDigest(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// isLayerName reports whether docker save of old gives a layer this name.
func isLayerName(name string) bool {
	dir, base, _ := strings.Cut(name, "/")
	return isDigest(dir) && base == "layer.tar"
}

// A member is a file in a tar archive that is not compressed.
type member struct {
	at, size int64
	link     string // the name that it leads to
}

// indexTar returns where the files in a tar archive are, by clean name. A name that is not
// wanted, a name that comes twice, and more than most names, are an error.
func indexTar(section *io.SectionReader, most int, wanted func(name string) bool) (map[string]*member, error) {
	index := make(map[string]*member)
	for t := tar.NewReader(&seekingHeaders{headers{r: unended{section}}, section}); ; {
		h, err := t.Next()
		if err == io.EOF {
			return index, afterEnd(section)
		}
		if err != nil {
			return nil, tarError(err)
		}
		name := cleanName(h.Name)
		switch {
		case h.Typeflag == tar.TypeXGlobalHeader:
			continue
		case name != "" && !wanted(name):
			return nil, fmt.Errorf("%s: not a file of a container image", h.Name)
		case len(index) == most:
			return nil, fmt.Errorf("%w: more than %d files of container images", ErrLimit, most)
		case index[name] != nil && h.Typeflag != tar.TypeDir:
			return nil, fmt.Errorf("%s comes twice in the container image", name)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := section.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			index[name] = &member{at: at, size: h.Size}
		case tar.TypeLink:
			index[name] = &member{link: cleanName(h.Linkname)}
		case tar.TypeSymlink:
			index[name] = &member{link: cleanName(h.Name + "/../" + h.Linkname)}
		}
	}
}
