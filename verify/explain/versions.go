package explain

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/modsign/modsign/internal/module"
)

// crcs are the versions of the symbols of a kernel. Its Module.symvers has them all.
// Otherwise the modules that were built with it tell: each has the versions of what it needs.
type crcs struct {
	mu      sync.Mutex
	known   map[string]uint32
	from    string   // where they come from
	waiting []string // paths of modules that were not read yet
}

// maxRead is the number of modules that are read for the versions of symbols. Each takes some
// milliseconds.
const maxRead = 300

// maxSymvers is the limit of a Module.symvers, in lines. The largest kernels have 40,000.
const maxSymvers = 1 << 20

// open reads the Module.symvers, if there is one.
func (c *crcs) open(k *Kernel) {
	if k.isNot("MODVERSIONS") {
		if k.Symvers != "" {
			k.note("%s is not read: %s has no versions of symbols (CONFIG_MODVERSIONS is not set)", k.Symvers, k.Name)
		}
		return
	}
	c.known = make(map[string]uint32)
	paths := []string{k.Symvers}
	if k.Symvers == "" && k.Modules != "" {
		paths = []string{filepath.Join(k.Modules, "build/Module.symvers")}
	}
	for _, path := range paths {
		if path == "" {
			continue
		}
		known, err := readSymvers(path)
		if err == nil {
			c.known, c.from = known, path
			return
		}
		if k.Symvers != "" {
			k.note("%v: the versions of symbols come from installed modules", err)
		}
	}
	c.waiting = k.builtWith(maxRead)
}

// readSymvers reads what modpost writes: "0xCRC\tSYMBOL\tMODULE\tEXPORT\tNAMESPACE".
func readSymvers(path string) (map[string]uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	known, err := parseSymvers(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return known, nil
}

func parseSymvers(r io.Reader) (map[string]uint32, error) {
	known := make(map[string]uint32)
	lines := bufio.NewScanner(r)
	n := 0
	for lines.Scan() {
		if n++; n > maxSymvers {
			return nil, fmt.Errorf("more than %d lines", maxSymvers)
		}
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) < 3 {
			return nil, fmt.Errorf("line %d is not of a Module.symvers", n)
		}
		crc, err := strconv.ParseUint(strings.TrimPrefix(fields[0], "0x"), 16, 32)
		if err != nil {
			return nil, fmt.Errorf("line %d is not of a Module.symvers", n)
		}
		known[fields[1]] = uint32(crc)
	}
	return known, lines.Err()
}

// disagreement is a symbol of which a module has another version than the kernel.
type disagreement struct {
	symbol       string
	module, kern uint32
}

// compare compares the versions of a module with the kernel's. It returns the first symbol
// that differs, module_layout before all others as the kernel looks at that first, and the
// symbols whose versions are not known.
func (c *crcs) compare(
	ctx context.Context, versions []module.SymbolVersion, self string,
) (first *disagreement, missing []string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		first, missing = nil, nil
		for _, v := range versions {
			crc, ok := c.known[v.Name]
			switch {
			case !ok:
				missing = append(missing, v.Name)
			case crc != v.CRC && (first == nil || v.Name == layout):
				first = &disagreement{v.Name, v.CRC, crc}
			}
		}
		if first != nil || len(missing) == 0 || len(c.waiting) == 0 {
			return first, missing, nil
		}
		if err := context.Cause(ctx); err != nil {
			return nil, nil, err
		}
		c.learn(ctx, self)
	}
}

// learn reads the next modules.
func (c *crcs) learn(ctx context.Context, self string) {
	const some = 10
	n := min(some, len(c.waiting))
	for _, path := range c.waiting[:n] {
		if path == self {
			continue
		}
		facts, _, err := readFile(ctx, path)
		if err != nil {
			continue
		}
		for _, v := range facts.Versions {
			if _, ok := c.known[v.Name]; !ok {
				c.known[v.Name] = v.CRC
			}
		}
		c.from = "the modules that were built with the kernel"
	}
	c.waiting = c.waiting[n:]
}

// layout is the symbol whose version stands for the structures of modules.
const layout = "module_layout"
