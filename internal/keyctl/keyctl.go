// Package keyctl reads the keyrings of the running kernel: their ids from /proc/keys, and
// their contents with keyctl(2). It sees what the process may see: the kernel's own keyrings
// are root's.
package keyctl

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrHidden reports a keyring that /proc/keys does not show: there is none, or others than
// root do not see it.
var ErrHidden = errors.New("/proc/keys does not show it")

// maxKeys is the largest number of keys of a keyring that the package reads.
const maxKeys = 1 << 16

// Keyrings returns the ids of the keyrings in the text of /proc/keys, by name. A line is
// (Documentation/security/keys/core.rst)
//
//	1323d5d6 I--Q---     1 perm 0c030000     0 65534 keyring   .user_reg: 2
func Keyrings(keys io.Reader) (map[string]int, error) {
	rings := make(map[string]int)
	lines := bufio.NewScanner(keys)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 9 || fields[7] != "keyring" {
			continue
		}
		id, err := strconv.ParseUint(fields[0], 16, 31)
		name, isKernels := strings.CutSuffix(fields[8], ":")
		if err != nil || !isKernels || !strings.HasPrefix(name, ".") {
			continue
		}
		rings[name] = int(id)
	}
	return rings, lines.Err()
}

// Read returns the descriptions of the keys in some keyrings of the running kernel, by name.
// Keyrings inside of a keyring are left out. problems has the keyrings that could not be read.
func Read(names ...string) (contents map[string][]string, problems map[string]error) {
	contents, problems = make(map[string][]string), make(map[string]error)
	rings, err := list()
	for _, name := range names {
		id, ok := rings[name]
		if err == nil && ok {
			keys, err := read(id)
			if err != nil {
				problems[name] = err
			} else {
				contents[name] = keys
			}
			continue
		}
		problems[name] = err
		if err == nil {
			problems[name] = ErrHidden
		}
	}
	return contents, problems
}

func list() (map[string]int, error) {
	f, err := os.Open("/proc/keys")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Keyrings(f)
}

// read returns the descriptions of the keys in one keyring.
func read(ring int) ([]string, error) {
	var ids []byte
	for size := 4 << 10; ; {
		ids = make([]byte, size)
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, ring, ids, 0)
		if err != nil {
			return nil, fmt.Errorf("keyctl: %w", err)
		}
		if n > 4*maxKeys {
			return nil, fmt.Errorf("keyring of more than %d keys", maxKeys)
		}
		if n <= size {
			ids = ids[:n]
			break
		}
		size = n
	}
	keys := []string{}
	for ; len(ids) >= 4; ids = ids[4:] {
		text, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, int(int32(binary.NativeEndian.Uint32(ids))))
		if err != nil {
			return nil, fmt.Errorf("keyctl: %w", err)
		}
		kind, description := split(text)
		if kind != "keyring" {
			keys = append(keys, description)
		}
	}
	return keys, nil
}

// split takes apart what KEYCTL_DESCRIBE returns: type;uid;gid;permissions;description.
func split(text string) (kind, description string) {
	fields := strings.SplitN(text, ";", 5)
	if len(fields) < 5 {
		return "", text
	}
	return fields[0], fields[4]
}
