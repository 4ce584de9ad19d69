package sign

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// clearAway removes the temporary files of a killed run; left are those below the roots.
// A temporary file that is already a hard link of a module in the tree was to become
// another name of it: clearAway completes that.
func (t *Tree) clearAway(left []location) error {
	var err error
	if t.source.Output != "" {
		left, err = t.leftInOutput()
	} else {
		left, err = t.leftBeside(left)
	}
	if err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for _, temp := range left {
		if err := t.clear(temp, deadline); err != nil {
			return fmt.Errorf("cannot remove what a killed run left: %w", err)
		}
	}
	return nil
}

// leftInOutput finds the temporary files in the output directory.
func (t *Tree) leftInOutput() (left []location, err error) {
	below := filepath.Join(t.source.Output, t.source.Below)
	err = filepath.WalkDir(below, func(path string, d fs.DirEntry, err error) error {
		if path == below && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() || !atomicfile.IsTemp(d.Name()) {
			return err
		}
		rel, err := filepath.Rel(t.source.Output, path)
		left = append(left, location{t.bases.output, rel})
		return err
	})
	return left, err
}

// leftBeside adds the files beside modules that were given or named themselves: their
// directories were not searched.
func (t *Tree) leftBeside(left []location) ([]location, error) {
	type beside struct {
		at      location // one of the modules
		targets []string
	}
	dirs := make(map[location]*beside)
	for i := range t.entries {
		e := &t.entries[i]
		if t.source.Names == nil && !e.Root {
			continue
		}
		at := t.bases.of(e)
		b := dirs[at.dir()]
		if b == nil {
			b = &beside{at: at}
			dirs[at.dir()] = b
		}
		b.targets = append(b.targets, at.name(), detachedName(at.name()))
		if t.source.Names != nil { // all that was ever written for it
			for f := compress.None; f <= compress.Zstd; f++ {
				b.targets = append(b.targets, module.BaseName(at.name())+f.Suffix())
			}
		}
	}
	for _, b := range dirs {
		err := b.at.in(func(dir *dirfd.Dir, _ string) error {
			names, err := atomicfile.Leftovers(dir, b.targets)
			for _, name := range names {
				left = append(left, b.at.beside(name))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return left, nil
}

// patience is how long clearAway waits for temporary files that are in use. A process
// that a killed run was about to start has the run's files open, and so locked, until it
// is executed.
const patience = 500 * time.Millisecond

// stillInUse reports whether a temporary file is in use until the deadline.
func stillInUse(dir *dirfd.Dir, name string, deadline time.Time) bool {
	for atomicfile.InUse(dir, name) {
		if time.Now().After(deadline) {
			return true
		}
		time.Sleep(2 * time.Millisecond)
	}
	return false
}

// clear removes a temporary file, or gives it the name that it was to have. It leaves one
// that is in use until the deadline.
func (t *Tree) clear(temp location, deadline time.Time) error {
	err := temp.in(func(dir *dirfd.Dir, name string) error {
		info, err := dir.Info(name)
		if err != nil {
			return err
		}
		if stillInUse(dir, name, deadline) {
			return nil
		}
		if target := t.unfinished(temp, info); target >= 0 {
			// The run will name an old module that cannot be read.
			at := t.bases.of(&t.entries[target])
			if same, err := samePayload(temp, at); err == nil && same {
				t.recovered++
				t.entries[target].Info = info
				return dir.Rename(name, at.name())
			}
		}
		return dir.Remove(name)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// unfinished returns the entry that a temporary file was to become, if it is another
// entry's file already, or -1.
func (t *Tree) unfinished(temp location, info fs.FileInfo) int {
	if info.Sys().(*syscall.Stat_t).Nlink < 2 || t.source.Output != "" {
		return -1
	}
	target, linked := -1, false
	for i, e := range t.entries {
		if e.Info == nil {
			continue
		}
		if os.SameFile(e.Info, info) {
			linked = true
		} else if at := t.bases.of(&e); at.dir() == temp.dir() && atomicfile.IsTempFor(temp.name(), at.name()) {
			target = i
		}
	}
	if !linked {
		return -1
	}
	return target
}
