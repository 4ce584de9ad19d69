package vmlinux

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Certificates are the certificates that are built into a kernel. The lists are
// concatenated DER certificates.
type Certificates struct {
	// Builtin holds the certificates that the kernel loads into .builtin_trusted_keys.
	Builtin []byte
	// Module is the first part of Builtin: the certificates of the module signing key
	// (CONFIG_MODULE_SIG_KEY), if the image identifies them. A kernel without
	// CONFIG_MODULE_SIG does not load them.
	Module []byte
	// Extra is the last part of Builtin, added by scripts/insert-sys-cert, if the image
	// identifies the part.
	Extra []byte
	// Dropped follows Builtin in the kernel's list and is not loaded, because it begins
	// with something that the kernel's loader rejects.
	Dropped []byte
	// Revoked holds the certificates that the kernel loads into .blacklist. A
	// certificate in it overrides one in Builtin.
	Revoked []byte
	// BlacklistHashes are the "tbs:" and "bin:" strings of
	// CONFIG_SYSTEM_BLACKLIST_HASH_LIST.
	BlacklistHashes []string
	// Found is the source of the lists' addresses: "symbols", "System.map" or "scan".
	Found string
}

// ErrNoCertificates matches an error of [Image.Certificates] if the kernel has no
// built-in certificates, or none can be found.
var ErrNoCertificates = errors.New("no built-in certificates")

// Names of the kernel's objects.
const (
	symList        = "system_certificate_list"
	symListSize    = "system_certificate_list_size"
	symModuleSize  = "module_cert_size"
	symExtra       = "system_extra_cert"
	symExtraUsed   = "system_extra_cert_used"
	symRevoked     = "revocation_certificate_list"
	symRevokedSize = "revocation_certificate_list_size"
	symText        = "_text"
	symStart       = "_start"
)

func symbolNames() []string {
	return []string{symList, symListSize, symModuleSize, symExtra, symExtraUsed, symRevoked, symRevokedSize}
}

// UseSystemMap uses the addresses in the System.map of the same build for an image
// without symbols. A map without the list's address is an error and changes nothing;
// Debian's map in /boot, for example, is a stub.
func (im *Image) UseSystemMap(r io.Reader) error {
	mapped, wanted := make(map[string]symbol), append(symbolNames(), symText, symStart)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// c1234567 R system_certificate_list
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 {
			continue
		}
		name := fields[2]
		addr, err := strconv.ParseUint(fields[0], 16, 64)
		if err != nil || !slices.Contains(wanted, name) {
			continue
		}
		if old, ok := mapped[name]; ok && old.addr != addr {
			return fmt.Errorf("%s is at both %#x and %#x in the System.map", name, old.addr, addr)
		}
		mapped[name] = symbol{addr: addr}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the System.map: %w", err)
	}
	if _, ok := mapped[symList]; !ok {
		return fmt.Errorf("the System.map does not contain %s: the file is a stub, "+
			"or the kernel was built without CONFIG_SYSTEM_TRUSTED_KEYRING", symList)
	}
	if im.body.flat {
		text, ok := mapped[symText]
		if start, also := mapped[symStart]; also && (!ok || start.addr < text.addr) {
			text, ok = start, true
		}
		if !ok {
			return fmt.Errorf("the System.map does not contain %s, where the image begins", symText)
		}
		for name, s := range mapped {
			s.addr -= text.addr
			mapped[name] = s
		}
	}
	im.mapped = mapped
	return nil
}

// Certificates reads the lists from the image. Their addresses come from its symbols,
// else from the given System.map. Otherwise Certificates searches for the lists by
// their layout:
//
//   - A list is a run of certificates, aligned as the machine's assembler does,
//     followed by its own length in bytes in the next aligned word. Between the two there may be the reserve
//     for the extra certificate, which only the built-in list has.
//   - A list that has a reserve, or whose length is followed by a module_cert_size
//     that ends on one of its certificates, is the built-in list. Every other list
//     is taken for revoked.
//   - A module_cert_size of 0 proves little. The built-in list of such a kernel
//     is the first of several lists, because it is linked before the revocation
//     list, or the only one if the kernel has no code to load a revocation list.
//     Otherwise it could also be the revocation list of a kernel whose
//     built-in list is empty, and Certificates fails: a revoked certificate must
//     never be reported as trusted.
//
// If the kernel has no built-in certificates, the error is [ErrNoCertificates].
func (im *Image) Certificates() (*Certificates, error) {
	symbols, err := im.body.symbols(symbolNames())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", im.packing, err)
	}
	found := "symbols"
	if _, ok := symbols[symList]; !ok && im.mapped != nil {
		symbols, found = im.mapped, "System.map"
	}
	var c *Certificates
	if _, ok := symbols[symList]; ok {
		c, err = im.body.listsAt(symbols)
	} else {
		c, err = im.body.scan()
		found = "scan"
	}
	if err != nil {
		return nil, fmt.Errorf("%s, by %s: %w", im.packing, found, err)
	}
	c.Found = found
	if c.BlacklistHashes, err = im.body.blacklistHashes(); err != nil {
		return nil, fmt.Errorf("%s: %w", im.packing, err)
	}
	return c, nil
}

// listsAt reads the lists at the addresses of the symbols.
func (f *body) listsAt(symbols map[string]symbol) (*Certificates, error) {
	list, err := f.listAt(symbols, symList, symListSize)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: %s is 0: "+
			"the kernel was built with neither CONFIG_MODULE_SIG_KEY nor CONFIG_SYSTEM_TRUSTED_KEYS",
			ErrNoCertificates, symListSize)
	}
	ends := certificates(list)
	if len(ends) == 0 {
		return nil, fmt.Errorf("%s at %#x begins with % x, not a certificate that the kernel loads; "+
			"the symbols may belong to another image",
			symList, symbols[symList].addr, list[:min(len(list), 5)])
	}
	loaded := ends[len(ends)-1]
	c := &Certificates{Builtin: list[:loaded:loaded], Dropped: list[loaded:]}

	if at, ok := symbols[symModuleSize]; ok {
		n, err := f.wordAt(at.addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", symModuleSize, err)
		}
		if n > uint64(len(list)) {
			return nil, fmt.Errorf("%s is %d, but the whole list has %d bytes; the symbols may belong to another image",
				symModuleSize, n, len(list))
		}
		n = min(n, uint64(loaded))
		c.Module = list[:n:n]
	}
	if at, ok := symbols[symExtraUsed]; ok {
		b, err := f.at(at.addr, 4)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", symExtraUsed, err)
		}
		used := uint64(f.order.Uint32(b))
		if used > uint64(len(list)) || used > 0 && symbols[symList].addr+uint64(len(list))-used != symbols[symExtra].addr {
			return nil, fmt.Errorf("%s is %d, which is not where the list of %d bytes reaches into %s",
				symExtraUsed, used, len(list), symExtra)
		}
		c.Extra = list[min(loaded, len(list)-int(used)):loaded]
	}
	if _, ok := symbols[symRevoked]; ok {
		revoked, err := f.listAt(symbols, symRevoked, symRevokedSize)
		if err != nil {
			return nil, err
		}
		if ends := certificates(revoked); len(ends) > 0 {
			c.Revoked = revoked[:ends[len(ends)-1]]
		}
	}
	return c, nil
}

// listAt reads the list that two symbols describe.
func (f *body) listAt(symbols map[string]symbol, list, size string) ([]byte, error) {
	at, ok := symbols[size]
	if !ok {
		return nil, fmt.Errorf("symbol %s without %s", list, size)
	}
	n, err := f.wordAt(at.addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", size, err)
	}
	b, err := f.at(symbols[list].addr, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", list, err)
	}
	return bytes.Clone(b), nil
}

func (f *body) wordAt(addr uint64) (uint64, error) {
	b, err := f.at(addr, f.wordSize())
	if err != nil {
		return 0, err
	}
	n, _ := f.word(b)
	return n, nil
}

// certificates returns the end offsets of the certificates in a list. Like the kernel's
// loader, it stops at the first that does not begin with 30 82, or does not fit.
func certificates(list []byte) (ends []int) {
	for at := 0; ; {
		n := certificate(list[at:])
		if n == 0 {
			return ends
		}
		at += n
		ends = append(ends, at)
	}
}

// certificate returns the length in bytes of the DER object at the beginning of b if
// its header is 30 82 hh ll, else 0. DER uses two bytes only for a length of at least
// 256.
func certificate(b []byte) int {
	if len(b) < 4 || b[0] != 0x30 || b[1] != 0x82 || b[2] == 0 {
		return 0
	}
	if n := 4 + int(b[2])<<8 + int(b[3]); n <= len(b) {
		return n
	}
	return 0
}

// blacklistHashes collects the strings of the blacklist anywhere in the image: the
// array of pointers to them holds addresses only after a relocatable kernel has
// relocated itself. No other data looks like these strings.
func (f *body) blacklistHashes() ([]string, error) {
	var hashes []string
	for _, s := range f.segments {
		b, err := f.read(s.off, s.size)
		if err != nil {
			return nil, err
		}
		for at := 0; ; {
			colon := bytes.IndexByte(b[at:], ':')
			if colon < 0 {
				break
			}
			at += colon + 1
			if hash := blacklistHash(b, at); hash != "" {
				hashes = append(hashes, hash)
			}
		}
	}
	return hashes, nil
}

// Lengths of a digest in a blacklist, in hexadecimal digits: from SHA-1 to the largest
// that the kernel's build accepts.
const (
	minHashDigits = 40
	maxHashDigits = 128
)

// blacklistHash returns the blacklist string around the colon before b[at:], or
// "" if there is none.
func blacklistHash(b []byte, at int) string {
	const prefix = len("tbs:")
	if at < prefix {
		return ""
	}
	if kind := string(b[at-prefix : at]); kind != "tbs:" && kind != "bin:" {
		return ""
	}
	digits := b[at:min(len(b), at+maxHashDigits+1)]
	end := bytes.IndexByte(digits, 0)
	if end < minHashDigits || end%2 != 0 || len(bytes.Trim(digits[:end], "0123456789abcdef")) > 0 {
		return ""
	}
	return string(b[at-prefix : at+end])
}

// wordSize returns the size of the target's unsigned long, in bytes.
func (f *body) wordSize() uint64 {
	if f.wide {
		return 8
	}
	return 4
}
