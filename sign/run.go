package sign

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
)

// task is what a run does with every module of a tree.
type task struct {
	WriteOptions
	DebugOptions
	existing Existing
	detached bool
	trailers trailerSource
	guard    *guard
	last     stage // how far each module goes
}

// check refuses what does not fit the source.
func (k *task) check(source *Source) error {
	if k.detached && source.renames() {
		return fmt.Errorf("detached signatures leave the modules as they are: they cannot be compressed with %v as well",
			source.Compress)
	}
	return k.WriteOptions.check()
}

// run is one pass over a tree.
type run struct {
	task
	source     *Source
	links      *links
	encoder    *compress.Encoder
	limits     module.Limits
	usedOutput bool // the output directory held something before

	droppedXattrs atomic.Int64
	linking       sync.Mutex // of build ids to debug files

	mu        sync.Mutex // for what follows
	queue     *batch.Queue[Result]
	done      Count
	total     Count
	summary   Summary
	separated int // names of one file that become files of their own
	failed    failures.List
	stale     staleIndexes
}

// run works on every module. Its error is [ErrIncomplete] if modules fail; any other one
// ended the run.
func (t *Tree) run(ctx context.Context, k task) (Summary, error) {
	if err := t.check(); err != nil {
		return Summary{}, err
	}
	if err := k.check(&t.source); err != nil {
		return Summary{}, err
	}
	start := time.Now()
	if err := t.openDebug(&k); err != nil {
		return Summary{}, err
	}
	r, err := t.newRun(k)
	if err != nil {
		return Summary{}, err
	}
	err = r.do(ctx, t.jobs(r))
	if r.Sync == SyncTree && r.last == stagePlace {
		err = errors.Join(err, t.flush())
		if r.summary.DebugFiles > 0 {
			err = errors.Join(err, t.bases.debug.SyncFS())
		}
	}
	t.complete(r)
	r.summary.Duration = time.Since(start)
	if err == nil {
		err = r.failed.Err(ErrIncomplete, fmt.Sprintf("%d of %d modules failed", r.failed.Len(), r.summary.Modules))
	}
	return r.summary, err
}

func (t *Tree) newRun(k task) (*run, error) {
	encoder, err := compress.NewEncoder(compress.Options{Level: k.Level})
	if err != nil {
		return nil, err
	}
	r := &run{
		task: k, source: &t.source, links: &t.symlinks, encoder: encoder,
		limits: module.SharedLimits(k.MaxSize), usedOutput: t.usedOutput,
	}
	r.queue = batch.NewQueue(func(result Result) {
		if result.Action == Failed {
			r.failed.Add(result.Path, result.Err)
		}
		if !r.source.Copy { // whose caller has depmod to call
			r.stale.add(result)
		}
		if k.Report.Result != nil {
			k.Report.Result(result)
		}
	})
	return r, nil
}

// openDebug opens the directory of debug files. A run that writes makes it.
func (t *Tree) openDebug(k *task) error {
	if k.SplitDebug == "" || t.bases.debug != nil {
		return nil
	}
	if k.last == stagePlace {
		if err := os.MkdirAll(k.SplitDebug, 0o777); err != nil {
			return err
		}
	}
	var err error
	if t.bases.debug, err = dirfd.Open(k.SplitDebug); errors.Is(err, fs.ErrNotExist) {
		err = nil // in a dry run
	}
	return err
}

// complete adds to the summary what is known of the tree, and at the end.
func (t *Tree) complete(r *run) {
	s := &r.summary
	s.Modules = len(t.entries)
	s.RecoveredLinks = t.recovered
	s.DroppedXattrs = int(r.droppedXattrs.Load())
	s.Links = t.Links()
	s.StaleIndexes = slices.Sorted(maps.Keys(r.stale.found))
	slices.Sort(s.Notes)
	s.Notes = slices.Concat(t.notes, s.Notes, r.encoder.Notes())
	if r.separated > 0 && r.last == stagePlace {
		s.Notes = append(s.Notes,
			fmt.Sprintf("%d names of hard links became files of their own, since each has its own proof", r.separated))
	}
	s.Notes = append(s.Notes, t.symlinks.dangling()...)
	if t.lock != nil && t.lock.Unsupported {
		s.Notes = append(s.Notes, "the file system has no locks: nothing kept another run from the same modules")
	}
}

func (r *run) do(ctx context.Context, jobs []*job) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	// The largest first, so that none of them begins when all others are done.
	slices.SortStableFunc(jobs, func(a, b *job) int { return cmp.Compare(b.size, a.size) })
	err := batch.Each(ctx, len(jobs), fitting(r.trailers.jobs(r.Jobs), dirfd.MaxOpen()), func(i int) error {
		for _, part := range r.parts(jobs[i]) {
			start := time.Now()
			result := r.module(ctx, part)
			result.Duration = time.Since(start)
			if failures.IsLost(result.Err) { // every other module would fail alike
				end(&KeyLostError{result.Err})
			}
			// What an interrupt prevented did not fail.
			if result.Err == nil || ctx.Err() == nil {
				r.finish(part, result)
			}
		}
		return nil // a module that fails does not stop the others
	})
	r.queue.Close()
	return err
}

// descriptorsOfJob is more than a job needs: about six, and the connection of a key agent,
// or the pipes of a compressor.
const descriptorsOfJob = 16

// fitting returns how many of n modules this process can have open at once.
func fitting(n, descriptors int) int {
	return max(1, min(n, descriptors/descriptorsOfJob))
}

// module works on the module of a job.
func (r *run) module(ctx context.Context, j *job) Result {
	var result Result
	w := work{run: r, job: j, result: &result}
	if err := w.do(ctx); err != nil {
		return Result{Path: j.names[0].path, Action: Failed, Format: result.Format, Err: err}
	}
	return result
}

// finish records the result of a job for each name of its file.
func (r *run) finish(j *job, result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done.Modules += len(j.names)
	r.done.Bytes += j.size
	if r.Report.Progress != nil {
		r.Report.Progress(r.done, r.total)
	}
	if result.Action == Signed || result.Action == Stripped {
		r.summary.OutsideLinks += j.outside
	}
	for i, name := range j.names {
		named := result
		named.Path, named.Name = name.path, name.name
		if i > 0 {
			named.LinkOf = result.Path
		}
		if r.writes(result.Action) {
			named.Output = name.to.path()
		}
		r.summary.count(named)
		r.queue.Put(name.index, named)
	}
}

// fail records why no job was made of a name.
func (r *run) fail(index int, path, name string, err error) {
	result := Result{Path: path, Name: name, Action: Failed, Err: err}
	r.summary.count(result)
	r.queue.Put(index, result)
}

// writes reports whether a module with an action is written to a file.
func (r *run) writes(action Action) bool {
	switch {
	case r.last < stagePlace:
		return false
	case action == Skipped:
		return r.source.elsewhere() && !r.detached // a copy, so that the other tree lacks nothing
	}
	return action == Signed || action == Stripped
}

// note adds a note to the summary.
func (r *run) note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.summary.Notes = append(r.summary.Notes, text)
}
