// Package hashlist is trust by content instead of by key: a kernel that has the
// hashes of its modules built in loads these modules, and no key was ever needed.
//
// There are two forms, both of a patch series for Linux that is not merged
// (CONFIG_MODULE_HASHES), and a third for people. What is hashed is a module as it
// will be loaded: stripped, not compressed, and without the signature that may be
// appended to it, so that a module may be signed besides, now or later, and so that
// the lists of two builds with two one-time keys are the same. Of a module that is not
// signed, which is all that the series knows, the hash is that of the whole file.
//
// # List
//
// As of v3 of the series, the section .module_hashes of vmlinux is an array of
// SHA-256 hashes, 32 bytes each, of the modules in the order of modules.order. The
// kernel looks for the hash of what it is to load. Modules stay as they are. See
// [List] and [List.Embedded].
//
// # Tree
//
// As of v5, the section holds the root of a Merkle tree over the modules, and each
// module has a proof appended, in the place of a signature:
//
//	leaf    SHA-256 of 0x01, the position in modules.order as be32, and the module
//	node    SHA-256 of 0x02, the left and the right hash
//	        a node without a sibling is its own
//	levels  so many times the hashes are paired: 0 for no module, 1 for one, else
//	        the logarithm of their number to the base of 2, rounded up
//	root    u32 levels in the byte order of the kernel, and the hash: 36 bytes
//	proof   be32 position, and the sibling on each level, from the leaf up
//
// It is not the tree of RFC 6962, which pairs otherwise. See [Tree], [Root], [Proof].
//
// # Text
//
// What people read, compare and sign is a file of lines:
//
//	modsign hash list 1 6.12.0
//	9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08       4 kernel/fs/a.ko
//	60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752       5 kernel/fs/b.ko
//	2
//
// The first has the version of the format and the release of the kernel. Then comes
// a line for each module in the order of modules.order, with its hash as in the
// list, its size in bytes to the right of 7 columns or more, and its path below the
// folder of all modules, to the end of the line. The last line is their number, so
// that a file that was cut off is known by it. There is one way to write a list,
// and [Parse] takes no other.
//
// # Kernels
//
// [OpenKernel] reads what a kernel has, out of vmlinux or a boot image, and [Embed]
// writes it into a vmlinux that is linked with zeros in its place. [Reference.Verify]
// compares the modules of a folder with a list or with a kernel. Hashes of many modules
// at once are for the package sign, to which [NewDigest] and [Proofs] fit.
package hashlist

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/module"
)

// Hash is a SHA-256 hash: of a module, a leaf or a node.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Sum returns the hash of a module as it stands in a list, and its size in bytes.
func Sum(r io.Reader) (hash Hash, size int64, err error) {
	if r == nil {
		return Hash{}, 0, errors.New("no module to hash is given")
	}
	h := sha256.New()
	if size, err = module.Copy(h, r); err != nil {
		return Hash{}, 0, err
	}
	return Hash(h.Sum(nil)), size, nil
}

// Module is an entry of a list.
type Module struct {
	Path string // below lib/modules/KVER: kernel/fs/ext4/ext4.ko
	Size int64  // in bytes
	Hash Hash
}

// List holds the modules of a kernel in the order of its modules.order.
type List struct {
	Release string // of the kernel, as uname -r says it
	Modules []Module
}

// Embedded is what a kernel has of the list: the bare hashes.
func (l *List) Embedded() *Embedded {
	if l == nil {
		return nil
	}
	e := &Embedded{Hashes: make([]Hash, len(l.Modules))}
	for i, m := range l.Modules {
		e.Hashes[i] = m.Hash
	}
	return e
}

const (
	title = "modsign hash list 1 "

	maxRelease = 64          // __NEW_UTS_LEN
	maxPath    = 4096        // PATH_MAX
	maxLine    = maxPath * 2 // more than any line has
	maxModules = 1 << 24     // beyond, sizes of memory are somebody's joke
)

// check refuses what the text cannot hold, or what makes no sense in it.
func (l *List) check() error {
	if l == nil {
		return errNoList
	}
	if err := checkRelease(l.Release); err != nil {
		return err
	}
	if len(l.Modules) > maxModules {
		return fmt.Errorf("%d modules are too many for a hash list", len(l.Modules))
	}
	seen := make(map[string]bool, len(l.Modules))
	for _, m := range l.Modules {
		if err := m.check(); err != nil {
			return err
		}
		if seen[m.Path] {
			return fmt.Errorf("%s is in the hash list twice", m.Path)
		}
		seen[m.Path] = true
	}
	return nil
}

func checkRelease(release string) error {
	odd := func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }
	if release == "" || len(release) > maxRelease || strings.ContainsFunc(release, odd) {
		return fmt.Errorf("%q is not the release of a kernel", release)
	}
	return nil
}

func (m *Module) check() error {
	odd := func(r rune) bool { return r == utf8.RuneError || unicode.IsControl(r) }
	switch {
	case m.Path == "" || len(m.Path) > maxPath || strings.ContainsFunc(m.Path, odd) || m.Path[0] == ' ':
		return fmt.Errorf("%q cannot be the path of a module in a hash list", m.Path)
	case m.Size < 0:
		return fmt.Errorf("%s has a size of %d", m.Path, m.Size)
	}
	for part := range strings.SplitSeq(m.Path, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("%q is not a path below the folder of the modules", m.Path)
		}
	}
	return nil
}

func (m *Module) line() string { return fmt.Sprintf("%v %7d %s\n", m.Hash, m.Size, m.Path) }

// Write writes the list as text. Two modules of one path, or what the text cannot
// hold, are an error, and nothing is written then.
func (l *List) Write(w io.Writer) error {
	if err := l.check(); err != nil {
		return err
	}
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%s%s\n", title, l.Release)
	for i := range l.Modules {
		b.WriteString(l.Modules[i].line())
	}
	fmt.Fprintf(b, "%d\n", len(l.Modules))
	return b.Flush()
}

// WriteFile writes the list to a file, whole.
func (l *List) WriteFile(path string) error {
	var b bytes.Buffer
	if err := l.Write(&b); err != nil {
		return err
	}
	return atomicfile.WriteOutput(path, b.Bytes(), false)
}

// Parse reads what [List.Write] has written, and nothing else: an error says in
// which line it is anything else.
func Parse(r io.Reader) (*List, error) {
	l := new(List)
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	in.Split(wholeLines)
	n, ended := 0, false
	for in.Scan() {
		line := in.Text()
		n++
		err := errors.New("there is something behind the number of modules")
		if !ended {
			ended, err = l.parseLine(n, line)
		}
		if err != nil {
			return nil, fmt.Errorf("hash list, line %d: %w", n, err)
		}
	}
	switch err := in.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("hash list, line %d: it is longer than any line of a hash list", n+1)
	case err != nil:
		return nil, err
	case !ended:
		return nil, fmt.Errorf("hash list, line %d: it ends without the number of modules: it was cut off", n+1)
	}
	return l, l.check() // names that are there twice
}

// wholeLines splits at line feeds, which a line has to have.
func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, errors.New("hash list: the last line has no end: it was cut off")
	}
	return 0, nil, nil
}

// parseLine reads a line. The last one says so.
func (l *List) parseLine(n int, line string) (last bool, err error) {
	if n == 1 {
		release, ok := strings.CutPrefix(line, title)
		if !ok {
			// What it is instead may be a secret.
			return false, fmt.Errorf("a hash list begins with %q and the release of the kernel, and this does not", title)
		}
		l.Release = release
		return false, checkRelease(release)
	}
	if !strings.Contains(line, " ") {
		if line != strconv.Itoa(len(l.Modules)) {
			return false, fmt.Errorf("there are %d modules, and it says %.20q", len(l.Modules), line)
		}
		return true, nil
	}
	m, err := parseModule(line)
	if err != nil {
		return false, err
	}
	if len(l.Modules) == maxModules {
		return false, errors.New("there are too many modules")
	}
	l.Modules = append(l.Modules, m)
	return false, nil
}

func parseModule(line string) (Module, error) {
	var m Module
	hash, rest, _ := strings.Cut(line, " ")
	size, path, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
	n, err := strconv.ParseInt(size, 10, 64)
	if len(hash) == 2*len(m.Hash) && err == nil {
		_, err = hex.Decode(m.Hash[:], []byte(hash))
		m.Path, m.Size = path, n
	}
	// One way to write it: the line is formed anew, and has to be the same.
	if err != nil || m.line() != line+"\n" {
		return m, fmt.Errorf("not a hash of 64 hexadecimal digits, a size and a path: %.100q", line)
	}
	return m, m.check()
}
