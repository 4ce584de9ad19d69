package sign

import (
	"fmt"
	"syscall"

	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// job is one file to work on, with all the names that it has in the tree.
type job struct {
	names   []name
	outside int   // names outside of the tree, which will keep the old file
	size    int64 // as it lies on disk
}

// name is one of a file's names, and what is written for it.
type name struct {
	index int      // in the order of the input
	path  string   // as it was found
	name  string   // of the module: its path in the tree, without a compression suffix
	also  []string // the same by other roots
	from  location // where it is
	to    location // where the result goes, with its new suffix from place on
	debug location // where its debug information goes
}

// parts splits a job into one for each name if each has a trailer of its own. They are
// done one after the other: at once, each would take the other for somebody else who
// writes to the file.
func (r *run) parts(j *job) []*job {
	if len(j.names) == 1 || !r.trailers.byName() {
		return []*job{j}
	}
	r.mu.Lock()
	r.separated += len(j.names)
	r.mu.Unlock()
	parts := make([]*job, len(j.names))
	for i := range j.names {
		parts[i] = &job{names: j.names[i : i+1]}
	}
	parts[0].size, parts[0].outside = j.size, j.outside
	return parts
}

// jobs makes one job for every file, with all its names in the tree.
func (t *Tree) jobs(r *run) []*job {
	type inode struct{ dev, ino uint64 }
	var jobs []*job
	linked := make(map[inode]*job)
	taken := make(map[string]string) // whose each detached signature or debug file is
	for i, e := range t.entries {
		if e.Err != nil {
			r.fail(i, e.Path, module.BaseName(e.Rel), e.Err)
			continue
		}
		n := name{index: i, path: e.Path, name: module.BaseName(e.Rel), from: t.bases.of(&e), to: t.targets[i]}
		for _, rel := range e.Also {
			n.also = append(n.also, module.BaseName(rel))
		}
		if err := t.besides(r, &n, e, taken); err != nil {
			r.fail(i, e.Path, n.name, err)
			continue
		}
		r.total.Modules++
		st := e.Info.Sys().(*syscall.Stat_t)
		id := inode{uint64(st.Dev), st.Ino}
		if j := linked[id]; j != nil {
			j.names = append(j.names, n)
			continue
		}
		j := &job{names: []name{n}, size: e.Info.Size()}
		jobs = append(jobs, j)
		r.total.Bytes += j.size
		if st.Nlink > 1 && !r.source.Copy {
			linked[id] = j
		}
	}
	if !r.source.elsewhere() && !r.detached {
		for _, j := range linked {
			j.countOutside()
		}
	}
	return jobs
}

// countOutside counts the names of a file outside of the tree. It asks the system again:
// a file that a killed run left may have counted as a name.
func (j *job) countOutside() {
	_ = j.names[0].from.in(func(dir *dirfd.Dir, name string) error {
		st, err := dir.Lstat(name)
		if err == nil {
			j.outside = int(st.Nlink) - len(j.names)
		}
		return err
	})
}

// besides chooses where a detached signature or a debug file goes, each to its own place.
func (t *Tree) besides(r *run, n *name, e module.Entry, taken map[string]string) error {
	also, what := "", ""
	switch {
	case r.detached:
		n.to = n.to.renamed(detachedName)
		also, what = n.to.path(), "signature"
	case r.SplitDebug != "":
		rel, err := debugName(e.Path, e.Rel)
		if err != nil {
			return err
		}
		n.debug = locationBelow(t.bases.debug, r.SplitDebug, rel)
		also, what = n.debug.path(), "debug file"
	default:
		return nil
	}
	if other, ok := taken[also]; ok {
		return fmt.Errorf("the %s would be %s, which is that of %s", what, also, other)
	}
	taken[also] = e.Path
	return nil
}

// detachedName is the path of a module's detached signature.
func detachedName(path string) string { return module.BaseName(path) + ".p7s" }

// flush flushes what was written to disk, file system by file system.
func (t *Tree) flush() error {
	if t.source.Output != "" {
		return t.bases.output.SyncFS()
	}
	seen := make(map[uint64]bool)
	for _, e := range t.entries {
		if e.Info == nil {
			continue
		}
		dev := uint64(e.Info.Sys().(*syscall.Stat_t).Dev)
		if seen[dev] {
			continue
		}
		seen[dev] = true
		dir, err := t.bases.of(&e).open()
		if err != nil {
			return err
		}
		err = dir.SyncFS()
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
