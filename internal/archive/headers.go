package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// Programs that unpack tar archives differ in what they make of rare headers: which of two names
// counts, whether a size belongs to a link, what a global header changes. Whoever makes an archive
// could have one program see another file than modsign does. So a header that leaves a choice is
// an error. [headers] looks for these before package archive/tar reads them.

// maxExtension is the size limit of an extension header, in bytes, as in package archive/tar.
const maxExtension = 1 << 20

// headers passes on a tar archive, and ends with an error at the first header that programs read
// differently. It gives no more bytes at once than one header or the content of one entry.
type headers struct {
	r     io.Reader
	block [512]byte
	have  int   // bytes of the block
	left  int64 // bytes of content and padding up to the next header
	ext   byte  // 'x', 'g', 'L' or 'K' while that header's content is read
	size  int64 // of that content
	body  []byte
	more  bool // the block is a further map of a sparse file, and no header
	after int64
	zeros int // blocks of zeros in a row: two end the archive
	err   error

	// What the extension headers say of the next entry.
	pax        map[string]string
	name, link string // of L and K
}

// choiceError is the error of a header that leaves a choice.
func choiceError(name, what string, args ...any) error {
	if name = cleanName(name); name != "" {
		name += ": "
	}
	return fmt.Errorf("%s%s, which programs read differently: unpack the archive, and give modsign the directory", name,
		fmt.Sprintf(what, args...))
}

func (h *headers) Read(b []byte) (n int, err error) {
	switch {
	case h.err != nil:
		return 0, h.err
	case h.zeros >= 2:
		return h.r.Read(b)
	case h.left > 0:
		n, err = h.r.Read(b[:min(int64(len(b)), h.left)])
		if h.ext != 0 && int64(len(h.body)) < h.size {
			h.body = append(h.body, b[:min(int64(n), h.size-int64(len(h.body)))]...)
		}
		h.left -= int64(n)
		if h.ext != 0 && int64(len(h.body)) == h.size {
			h.err = h.extension()
		}
	default:
		n, err = h.r.Read(b[:min(len(b), len(h.block)-h.have)])
		copy(h.block[h.have:], b[:n])
		if h.have += n; h.have == len(h.block) {
			h.have = 0
			h.err = h.header()
		}
	}
	if h.err != nil {
		return 0, h.err
	}
	return n, err
}

// seekingHeaders is headers for a file in which a reader passes over content.
type seekingHeaders struct {
	headers
	file io.Seeker
}

// Seek goes forward in the content of an entry.
func (h *seekingHeaders) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 || offset > h.left || h.ext != 0 && offset > 0 {
		return 0, errors.New("seek out of an entry of a tar archive")
	}
	h.left -= offset
	return h.file.Seek(offset, whence)
}

// field returns the text of a field, which ends at a zero byte or with the field.
func (h *headers) field(from, to int) string {
	text, _, _ := bytes.Cut(h.block[from:to], []byte{0})
	return string(text)
}

// number reads a field of digits in base 8, or of a number in base 256 if the first bit is set. Some
// programs stop at the first character that is no digit: here, spaces and zero bytes follow the last one.
func (h *headers) number(from, to int) (n int64, blank, ok bool) {
	field := h.block[from:to]
	if field[0]&0x80 != 0 {
		for i, c := range field {
			if i == 0 {
				c &= 0x7f
			}
			if n > math.MaxInt64>>8 {
				return 0, false, false
			}
			n = n<<8 | int64(c)
		}
		return n, false, true
	}
	digits := strings.TrimLeft(strings.TrimRight(string(field), " \x00"), " ")
	if digits == "" {
		return 0, true, true
	}
	u, err := strconv.ParseUint(digits, 8, 63)
	return int64(u), false, err == nil
}

// header judges a header, and finds out where the next one is.
func (h *headers) header() error {
	if h.more { // GNU tar's first form of sparse files
		h.more = h.block[504] != 0
		if !h.more {
			h.left = h.after
		}
		return nil
	}
	if bytes.Count(h.block[:], []byte{0}) == len(h.block) {
		if h.zeros++; h.zeros == 2 && h.pending() {
			return choiceError("", "extension headers at the end of the tar archive")
		}
		return nil
	}
	if h.zeros = 0; !isTar(h.block[:]) {
		return errNoHeader
	}
	name, size, kind := h.field(0, 100), int64(0), h.block[156]
	size, blank, ok := h.number(124, 136)
	if _, _, good := h.number(148, 156); !good || h.block[148] == 0 || !ok || blank && kind != '1' {
		return choiceError(name, "a header without a clear size or checksum")
	}
	prefix, err := h.format(name)
	if err != nil {
		return err
	}
	if prefix != "" {
		name = prefix + "/" + name
	}
	h.left = (size + 511) &^ 511
	switch kind {
	case 'x', 'g', 'L', 'K':
		if h.ext, h.size, h.body = kind, size, nil; size == 0 || size > maxExtension {
			return choiceError(name, "an extension header of %d bytes", size)
		}
		return nil
	}
	return h.entry(name, kind, size)
}

var errNoHeader = errors.New("tar archive is corrupt: no header where one has to be")

// pending reports whether there are extension headers for an entry that has not come.
func (h *headers) pending() bool { return h.pax != nil || h.name != "" || h.link != "" }

// format judges what depends on the format of a header, and returns the directory in front of its name.
func (h *headers) format(name string) (prefix string, err error) {
	zero := func(from, to int) bool { return bytes.Count(h.block[from:to], []byte{0}) == to-from }
	switch string(h.block[257:263]) {
	case "ustar\x00":
		if string(h.block[508:]) == "tar\x00" {
			return "", choiceError(name, "a header in the format of star")
		}
		return h.field(345, 500), nil
	case "ustar ":
		if string(h.block[263:265]) != " \x00" {
			return "", choiceError(name, "a header in no known format")
		}
		// Two times, and the place of a file's part in an archive of several volumes.
		for _, at := range []int{345, 357, 369} {
			n, _, ok := h.number(at, at+12)
			if !ok || at == 369 && n != 0 {
				return "", choiceError(name, "a header with more than the format of GNU tar has")
			}
		}
		return "", nil
	}
	if !zero(257, 329) || !zero(345, 512) {
		return "", choiceError(name, "a header in no known format")
	}
	return "", nil
}

// entry judges a header of a file, together with the extension headers before it.
func (h *headers) entry(name string, kind byte, size int64) error {
	link := h.field(157, 257)
	if h.name != "" {
		name = h.name
	}
	if h.link != "" {
		link = h.link
	}
	if path, ok := h.pax["path"]; ok {
		name = path
	}
	if path, ok := h.pax["linkpath"]; ok {
		link = path
	}
	if text, ok := h.pax["size"]; ok {
		real, err := strconv.ParseInt(text, 10, 64)
		if err != nil || real < 1<<33 && real != size {
			return choiceError(name, "two sizes")
		}
		size = real
		h.left = (size + 511) &^ 511
	}
	sparse := h.pax["GNU.sparse.name"] != ""
	if sparse {
		name = h.pax["GNU.sparse.name"]
	}
	regular := false
	switch kind {
	case '0', '7', 'S':
		regular = true
	case 0:
		// Of old, a directory is a file without content whose name ends in a slash.
		regular = size > 0 || !strings.HasSuffix(name, "/")
	}
	old := string(h.block[257:263]) == "ustar "
	h.pax, h.name, h.link = nil, "", ""
	switch {
	case name == "":
		return choiceError("", "an entry without a name")
	case size > math.MaxInt64-512:
		return choiceError(name, "a size of %d bytes", size)
	case hasParent(name), kind == '1' && hasParent(link):
		return choiceError(name, `".." in a name`)
	case regular && strings.HasSuffix(name, "/"):
		return choiceError(name, "a regular file whose name ends in a slash")
	case !regular && size > 0:
		return choiceError(name, "content of what is no regular file")
	case sparse && kind != '0', kind == 'S' && !old:
		return choiceError(name, "a sparse file in no known format")
	case kind == 'S' && h.block[482] != 0:
		h.more, h.after, h.left = true, h.left, 0
	}
	return nil
}

// hasParent reports whether ".." is in a name. Some programs leave out such files, or what is in front.
func hasParent(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// extension judges an extension header whose content is there.
func (h *headers) extension() error {
	kind, body := h.ext, h.body
	h.ext, h.body = 0, nil
	switch kind {
	case 'x':
		if h.pending() {
			return choiceError("", "several extension headers for one entry")
		}
		var err error
		h.pax, err = records(body)
		if err == nil {
			err = local(h.pax)
		}
		return err
	case 'g':
		if h.pending() {
			return choiceError("", "several extension headers for one entry")
		}
		global, err := records(body)
		for key := range global {
			if !harmless[key] && err == nil {
				err = choiceError("", "a global header with %q", key)
			}
		}
		return err
	}
	text := bytes.TrimRight(body, "\x00")
	to := &h.name
	if kind == 'K' {
		to = &h.link
	}
	switch {
	case h.pax != nil || *to != "":
		return choiceError("", "several extension headers for one entry")
	case len(text) == 0 || bytes.IndexByte(text, 0) >= 0:
		return choiceError("", "a long name that is empty or holds a zero byte")
	}
	*to = string(text)
	return nil
}

// harmless are the keys of global headers that change no file's name, place or content.
var harmless = map[string]bool{"comment": true, "mtime": true, "atime": true, "ctime": true, "uid": true, "gid": true,
	"uname": true, "gname": true, "GNU.volume.label": true}

// records reads the records of a pax header: the length of the record in bytes, a space, the key, "=",
// the value, and a newline.
func records(body []byte) (map[string]string, error) {
	all := make(map[string]string)
	for len(body) > 0 {
		digits, _, ok := bytes.Cut(body[:min(len(body), 8)], []byte(" "))
		size, err := strconv.ParseUint(string(digits), 10, 32)
		if !ok || err != nil || digits[0] == '0' || size > uint64(len(body)) || int(size) <= len(digits)+1 {
			return nil, choiceError("", "a pax header that is no list of records")
		}
		record := string(body[len(digits)+1 : size])
		body = body[size:]
		key, value, ok := strings.Cut(strings.TrimSuffix(record, "\n"), "=")
		if _, twice := all[key]; !ok || key == "" || twice || !strings.HasSuffix(record, "\n") {
			return nil, choiceError("", "a pax header with a bad record, or two with the same key")
		}
		all[key] = value
	}
	return all, nil
}

// local judges the records of a pax header for one entry.
func local(pax map[string]string) error {
	sparse := 0
	for key, value := range pax {
		switch key {
		case "path", "linkpath", "GNU.sparse.name":
			if value == "" || strings.IndexByte(value, 0) >= 0 {
				return choiceError("", "a pax header with an empty %s, or a zero byte in it", key)
			}
		case "size", "GNU.sparse.realsize":
			if value == "" || strings.Trim(value, "0123456789") != "" {
				return choiceError("", "a pax header with a bad %s", key)
			}
		case "hdrcharset":
			if value != "BINARY" && value != "ISO-IR 10646 2000 UTF-8" {
				return choiceError(pax["path"], "a name in another character set")
			}
		}
		switch {
		case key == "GNU.sparse.major" && value == "1", key == "GNU.sparse.minor" && value == "0",
			key == "GNU.sparse.name", key == "GNU.sparse.realsize":
			sparse++
		case strings.HasPrefix(key, "GNU.sparse."), strings.HasPrefix(key, "GNU.volume."), key == "GNU.dumpdir",
			key == "SCHILY.realsize", key == "SCHILY.filetype", key == "SCHILY.offset", strings.HasPrefix(key, "SUN."):
			return choiceError(pax["path"], "a pax header with %s", key)
		}
	}
	if sparse != 0 && sparse != 4 { // the form 1.0, which GNU tar writes
		return choiceError(pax["path"], "a sparse file with a part of its records")
	}
	return nil
}
