// Package hashlist implements hash-based module integrity: a kernel loads the modules
// whose hashes are built into it, and needs no key.
//
// Call [Build] first: it hashes the modules of a kernel. [Built.Embed] puts the hashes into
// the vmlinux of an object tree, and [List.Write] writes them as text. To check modules
// later, make a [Reference] from such a list ([Parse], [NewReference]) or from a kernel
// image ([OpenKernel], [NewKernelReference]), and call [Reference.Verify]. [Diff] compares
// two lists.
//
// The kernel has the hashes in one of two forms, a list or a Merkle tree. Both come from a
// patch series for Linux that is not merged (CONFIG_MODULE_HASHES). The hash is that of
// a module as it will be loaded: stripped, not compressed, and without appended
// signatures. Therefore a module can be signed as well, now or later, and two builds with
// two one-time keys have the same list. The series knows only unsigned modules, and for
// these the hash is that of the whole file.
//
// # List
//
// In v3 of the series, the section .module_hashes of vmlinux is an array of SHA-256
// hashes, 32 bytes each, of the modules in the order of modules.order. The kernel searches
// it for the hash of a module that it loads. The modules stay as they are. See [List] and
// [List.Embedded].
//
// # Tree
//
// In v5, the section holds the root of a Merkle tree over the modules, and each module
// has a proof appended in the place of a signature:
//
//	leaf    SHA-256 of 0x01, the position in modules.order as be32, and the module
//	node    SHA-256 of 0x02, the left and the right hash;
//	        a node without a sibling is paired with itself
//	levels  how many times the hashes are paired: 0 for no module, 1 for one, otherwise
//	        the binary logarithm of their number, rounded up
//	root    u32 levels in the byte order of the kernel, and the hash: 36 bytes
//	proof   be32 position, and the sibling on each level, from the leaf up
//
// It is not the tree of RFC 6962, which pairs hashes differently. See [Tree], [Root] and
// [Proof].
//
// # Text
//
// The list that people read, compare and sign is a file of lines:
//
//	modsign hash list 1 6.12.0
//	9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08       4 kernel/fs/a.ko
//	60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752       5 kernel/fs/b.ko
//	2
//
// The first line has the version of the format and the release of the kernel. One line
// follows for each module, in the order of modules.order: the hash as in the list, the
// size in bytes, right-aligned in at least 7 columns, and the path below lib/modules/KVER
// up to the end of the line. The last line is the number of modules, which shows that the
// file is complete. There is one way to write a list, and [Parse] accepts no other.
package hashlist

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
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

// Sum returns the hash of a module for a list, and its size in bytes.
func Sum(r io.Reader) (hash Hash, size int64, err error) {
	if r == nil {
		return Hash{}, 0, errors.New("no module is given")
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
	Release string // of the kernel, as uname -r prints it
	Modules []Module
}

// Embedded returns the part of the list that a kernel has: the bare hashes.
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
	maxModules = 1 << 24     // beyond, the number is not an honest one
)

// check rejects values that the text cannot hold, or that make no sense in it.
func (l *List) check() error {
	if l == nil {
		return errNoList
	}
	if err := checkRelease(l.Release); err != nil {
		return err
	}
	if len(l.Modules) > maxModules {
		return fmt.Errorf("hash list of %d modules: more than %d", len(l.Modules), maxModules)
	}
	seen := make(map[string]bool, len(l.Modules))
	for _, m := range l.Modules {
		if err := m.check(); err != nil {
			return err
		}
		if seen[m.Path] {
			return fmt.Errorf("hash list names %s twice", m.Path)
		}
		seen[m.Path] = true
	}
	return nil
}

func checkRelease(release string) error {
	odd := func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }
	if release == "" || len(release) > maxRelease || strings.ContainsFunc(release, odd) {
		return fmt.Errorf("%q is not a kernel release", release)
	}
	return nil
}

func (m *Module) check() error {
	odd := func(r rune) bool { return r == utf8.RuneError || unicode.IsControl(r) }
	switch {
	case m.Path == "" || len(m.Path) > maxPath || strings.ContainsFunc(m.Path, odd) || m.Path[0] == ' ':
		return fmt.Errorf("%q is not a valid path in a hash list", m.Path)
	case m.Size < 0:
		return fmt.Errorf("%s: negative size: %d", m.Path, m.Size)
	}
	for part := range strings.SplitSeq(m.Path, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("%q is not a path below lib/modules/KVER", m.Path)
		}
	}
	return nil
}

func (m *Module) line() string { return fmt.Sprintf("%v %7d %s\n", m.Hash, m.Size, m.Path) }

// Write writes the list as text. If two modules have the same path, or the text cannot
// hold a value, Write returns an error and writes nothing.
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

// WriteFile writes the list to a file, which it replaces as a whole.
func (l *List) WriteFile(path string) error {
	var b bytes.Buffer
	if err := l.Write(&b); err != nil {
		return err
	}
	return atomicfile.WriteOutput(path, b.Bytes(), false)
}

// ReadFile reads a list from a file with [Parse].
func ReadFile(path string) (*List, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := Parse(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// Parse reads a list that [List.Write] wrote. Its errors name the line that does not
// follow the format.
func Parse(r io.Reader) (*List, error) {
	l := new(List)
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	in.Split(wholeLines)
	n, ended := 0, false
	for in.Scan() {
		line := in.Text()
		n++
		err := errors.New("the number of modules is not the last line")
		if !ended {
			ended, err = l.parseLine(n, line)
		}
		if err != nil {
			return nil, fmt.Errorf("hash list, line %d: %w", n, err)
		}
	}
	switch err := in.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("hash list, line %d: too long", n+1)
	case err != nil:
		return nil, err
	case !ended:
		return nil, fmt.Errorf("hash list, line %d: the list is cut off: no number of modules", n+1)
	}
	return l, l.check() // paths that occur twice
}

// wholeLines is a split function for lines, of which the last one needs its line feed too.
func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, errors.New("hash list: the list is cut off: its last line has no end")
	}
	return 0, nil, nil
}

// parseLine reads a line, and reports whether it is the last one.
func (l *List) parseLine(n int, line string) (last bool, err error) {
	if n == 1 {
		release, ok := strings.CutPrefix(line, title)
		if !ok {
			// The line may be a secret: the error does not quote it.
			return false, fmt.Errorf("not a hash list: it does not begin with %q", title)
		}
		l.Release = release
		return false, checkRelease(release)
	}
	if !strings.Contains(line, " ") {
		if line != strconv.Itoa(len(l.Modules)) {
			return false, fmt.Errorf("%.20q is not the number of modules, %d", line, len(l.Modules))
		}
		return true, nil
	}
	m, err := parseModule(line)
	if err != nil {
		return false, err
	}
	if len(l.Modules) == maxModules {
		return false, errors.New("too many modules")
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
	// There is one way to write a line: written again, it has to be the same.
	if err != nil || m.line() != line+"\n" {
		return m, fmt.Errorf("not a hash of 64 hexadecimal digits, a size and a path: %.100q", line)
	}
	return m, m.check()
}
