package explain

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
)

// Known are modules that are known to be signed, by their build ids or by the hashes of their
// content without signatures. A module on such a list that carries no signature has lost it.
//
// The list is a text. Each line is a build id or a SHA-256, in hexadecimal, and behind spaces
// the name of the module:
//
//	3f1c0a9e5f4f2d0e9b6a7f2b8c1d0e9f8a7b6c5d kernel/fs/ext4/ext4.ko
//
// The number of digits tells what it is: 64 are a SHA-256. Lines that are empty or begin with
// # are comments. The list of modsign hashlist build is such a text too: its first and last
// line, and the sizes in it, are passed over.
type Known struct{ names map[string]string } // by hexadecimal digits in lower case

const (
	maxKnown   = 1 << 20 // lines
	sumDigits  = 64
	leastDigit = 16 // a build id of 8 bytes, the shortest that linkers make
)

// ParseKnown reads a list. An error names the line.
func ParseKnown(r io.Reader) (*Known, error) {
	k := &Known{names: make(map[string]string)}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<16)
	n := 0
	for lines.Scan() {
		n++
		if n > maxKnown {
			return nil, fmt.Errorf("more than %d lines", maxKnown)
		}
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		id := strings.ToLower(fields[0])
		if b, err := hex.DecodeString(id); err == nil && len(id) >= leastDigit && len(fields) > 1 {
			k.names[hex.EncodeToString(b)] = fields[len(fields)-1]
			continue
		}
		// The first line of a hash list is a title, the last one a number.
		if n > 1 && len(fields) > 1 {
			return nil, fmt.Errorf("line %d: neither a build id nor a SHA-256, with the name of a module behind it", n)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	if len(k.names) == 0 {
		return nil, fmt.Errorf("no build id and no SHA-256 of a module in %d lines", n)
	}
	return k, nil
}

// OpenKnown reads the list in a file.
func OpenKnown(path string) (*Known, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	k, err := ParseKnown(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// Len returns how many entries the list has.
func (k *Known) Len() int {
	if k == nil {
		return 0
	}
	return len(k.names)
}

// find returns the name of the module with a build id or SHA-256.
func (k *Known) find(id string) (name string, ok bool) {
	if k == nil || id == "" {
		return "", false
	}
	name, ok = k.names[strings.ToLower(id)]
	return name, ok
}
