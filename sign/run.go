package sign

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// ErrSigned says that a module is signed already, where that is refused.
var ErrSigned = errors.New("it is signed already")

// job is one file to work on, with all the names that it has in the tree.
type job struct {
	names   []name
	outside int   // names that it has elsewhere, where it is to be replaced
	size    int64 // as it lies on disk
}

// name is one of a file's names, and what is written for it.
type name struct {
	index int    // in the order of the input
	path  string // as it was found
	name  string // of the module: its path in the tree, without a suffix of compression
	from  place  // where it is
	to    place  // where it goes, with its suffix as soon as it is compressed
	debug place  // where its debug information goes
}

// run is one pass over a tree.
type run struct {
	opts     Options
	signer   maker // nil to take signatures off
	source   *Source
	links    *links
	encoder  *compress.Encoder
	limits   module.Limits
	attested atomic.Int64
	linking  sync.Mutex // of build ids to debug files

	usedOutput bool // the output held something before

	mu      sync.Mutex
	queue   *batch.Queue[Result]
	done    Count
	total   Count
	summary Summary

	separated int // names of files that become files of their own
}

func (r *run) do(ctx context.Context, jobs []*job) error {
	// The largest first, so that none of them is begun when all others are done.
	slices.SortStableFunc(jobs, func(a, b *job) int { return cmp.Compare(b.size, a.size) })
	err := batch.Each(ctx, len(jobs), r.opts.Jobs, func(i int) error {
		for _, part := range r.parts(jobs[i]) {
			start := time.Now()
			result := r.module(ctx, part)
			result.Duration = time.Since(start)
			// What an interrupt kept from being done did not fail.
			if result.Err == nil || ctx.Err() == nil {
				r.finish(part, result)
			}
		}
		return nil // a module that fails does not stop the others
	})
	r.queue.Close()
	return err
}

// parts are what is done for a job, one after the other: each of a file's names by
// itself where each has a signature of its own. To be worked on at once, they would
// take one another for somebody else who writes to the file.
func (r *run) parts(j *job) []*job {
	if len(j.names) == 1 || r.signer == nil || !r.signer.byName() {
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

// finish records the result of a job for each name of its file.
func (r *run) finish(j *job, result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done.Modules += len(j.names)
	r.done.Bytes += j.size
	if r.opts.Report.Progress != nil {
		r.opts.Report.Progress(r.done, r.total)
	}
	if result.Action == Signed || result.Action == Stripped {
		r.summary.Elsewhere += j.outside
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
		r.count(named)
		r.queue.Put(name.index, named)
	}
}

// writes reports whether an action leads to a file that is written.
func (r *run) writes(action Action) bool {
	switch {
	case r.opts.DryRun:
		return false
	case action == Skipped:
		return r.source.elsewhere() && !r.opts.Detached // a copy, so that the other tree lacks nothing
	}
	return action == Signed || action == Stripped
}

func (r *run) count(result Result) {
	s := &r.summary
	switch result.Action {
	case Signed:
		s.Signed++
	case Stripped:
		s.Stripped++
	case Digested:
		s.Digested++
	case Skipped:
		s.Skipped++
	case Failed:
		s.Failed++
	}
	if result.Action == Signed || result.Action == Stripped || result.Action == Digested {
		s.Bytes += result.Payload
	}
	if result.Debug != 0 {
		s.Debug++
		s.DebugBytes += result.Debug
	}
	if result.DebugFile != "" && result.LinkOf == "" {
		s.DebugFiles++
	}
	if result.ByProgram {
		s.ByProgram++
	}
	if result.Output != "" && module.BaseName(result.Output) == module.BaseName(result.Path) && result.Output != result.Path {
		s.Renamed++
	}
	if result.Removed > 0 {
		s.Replaced++
	}
	if result.Removed > 1 {
		s.Stacked++
	}
}

func (r *run) module(ctx context.Context, j *job) Result {
	var result Result
	var err error
	if _, digests := r.signer.(digester); digests {
		err = r.digest(ctx, j, &result)
	} else {
		err = j.names[0].from.in(func(dir *dirfd.Dir, name string) error {
			return r.work(ctx, source{dir, name}, j, &result)
		})
	}
	if err != nil {
		return Result{Path: j.names[0].path, Action: Failed, Format: result.Format, Err: err}
	}
	return result
}

// source is the module of a job: one open directory serves all that is done with it,
// so that nobody who exchanges directories meanwhile has another file replaced.
type source struct {
	dir  *dirfd.Dir
	name string
}

// work takes one module from the file that is there to the one that replaces
// it.
func (r *run) work(ctx context.Context, src source, j *job, result *Result) error {
	limits := r.limits
	limits.Encoder = r.encoderMemory(j)
	m, err := module.OpenIn(ctx, src.dir, src.name, limits)
	if err != nil {
		return err
	}
	defer m.Close()
	layers, err := r.look(m, j, result)
	if err != nil {
		return err
	}
	switch {
	case r.signer != nil && len(layers) > 0 && r.opts.Existing == Skip:
		result.Action = Skipped
		if !r.writes(Skipped) {
			return nil
		}
		return r.copy(ctx, src, m, j)
	case r.signer != nil && len(layers) > 0 && r.opts.Existing == Refuse:
		return ErrSigned
	}
	if !r.opts.Detached {
		result.Removed = len(layers)
	}
	content, err := r.body(ctx, m, j, result)
	if err != nil {
		return err
	}
	defer content.close()
	switch {
	case r.signer != nil:
		result.Action = Signed
	case result.Removed > 0 || !content.same:
		result.Action = Stripped
	default:
		result.Action = Skipped
		if !r.writes(Skipped) {
			return nil
		}
		return r.copy(ctx, src, m, j)
	}
	switch {
	case r.opts.DryRun:
		return nil
	case r.opts.Detached:
		return r.detach(src, m, content, j, result)
	}
	return r.replace(ctx, src, m, content, j, result)
}

// look reads what a module is: its signatures, and how long it is without them.
func (r *run) look(m *module.File, j *job, result *Result) ([]module.Layer, error) {
	result.Path, result.Format = j.names[0].path, m.Format
	layers, err := module.Layers(m, m.Size)
	if err != nil {
		return nil, err
	}
	result.Payload = module.PayloadSize(layers, m.Size)
	return layers, module.CheckELF(m, result.Payload)
}

// digest hashes one module, and writes nothing.
func (r *run) digest(ctx context.Context, j *job, result *Result) error {
	m, err := j.names[0].from.read(ctx, r.limits)
	if err != nil {
		return err
	}
	defer m.Close()
	if _, err := r.look(m, j, result); err != nil {
		return err
	}
	result.Action = Digested
	content, err := r.body(ctx, m, j, result)
	if err != nil {
		return err
	}
	defer content.close()
	if _, err := r.sign(io.Discard, content, j, result); err != nil {
		return err
	}
	return m.Untouched()
}

// encoderMemory is what the compressor holds for a module that is written, in bytes.
func (r *run) encoderMemory(j *job) int64 {
	if r.opts.DryRun || r.opts.Detached {
		return 0
	}
	return r.encoder.Memory(r.target(compress.FromName(j.names[0].path)))
}

// target is the format in which a module of a format is written.
func (r *run) target(format compress.Format) compress.Format {
	if format == compress.None || r.source.Recompress {
		return r.source.Compress
	}
	return format
}

// copy writes a module that is skipped to another tree.
func (r *run) copy(ctx context.Context, src source, m *module.File, j *job) error {
	return r.put(src, m, j, func(out io.Writer) error {
		_, err := copyBuffer(out, module.Reader(ctx, io.NewSectionReader(m.Descriptor(), 0, m.Info.Size())))
		return err
	})
}

// replace writes the new module in the place of the old one.
func (r *run) replace(ctx context.Context, src source, m *module.File, content *body, j *job, result *Result) error {
	format := r.target(m.Format)
	if m.Format == compress.None || r.source.Recompress {
		for i, name := range j.names {
			j.names[i].to = name.to.renamed(r.source.packedName)
		}
	}
	var trailer []byte // when it is made before the file
	onlyHere := int(m.Info.Sys().(*syscall.Stat_t).Nlink) == len(j.names)
	fresh := r.opts.Extend && r.opts.Mode == nil && r.opts.Sync != SyncFile && onlyHere && !r.source.elsewhere()
	if fresh && r.signer != nil && format == compress.None && m.Format == compress.None && content.same && result.Removed == 0 {
		sig, err := r.sign(io.Discard, content, j, result)
		if err != nil {
			return err
		}
		trailer = module.AppendSignature(nil, r.signer.kind(), sig)
		if extends(m, trailer) {
			return extend(src, m, trailer, r.opts.NewMTime)
		}
	}
	err := r.put(src, m, j, func(out io.Writer) error { return r.write(ctx, out, content, format, trailer, j, result) })
	if err != nil || r.source.elsewhere() {
		return err
	}
	for i, name := range j.names {
		if name.to == name.from {
			continue
		}
		r.links.follow(name.from.path(), name.to.path())
		if i == 0 {
			err = src.dir.Remove(src.name)
		} else {
			err = name.from.in((*dirfd.Dir).Remove)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// targets opens the directories of the names that a job's file gets, and makes them
// in another tree.
func (r *run) targets(src source, j *job) (dirs []*dirfd.Dir, done func(), err error) {
	var opened []*dirfd.Dir
	done = func() {
		for _, dir := range opened {
			dir.Close()
		}
	}
	for i, name := range j.names {
		if i == 0 && !r.source.elsewhere() {
			dirs = append(dirs, src.dir)
			continue
		}
		dir, err := name.to.make()
		if err != nil {
			done()
			return nil, nil, err
		}
		dirs, opened = append(dirs, dir), append(opened, dir)
	}
	return dirs, done, nil
}

// noteForms names what lies in an output beside a module that is the same in another
// form of compression, as of an earlier run: depmod would take one of the two.
func (r *run) noteForms(dir *dirfd.Dir, name string) {
	if !r.source.elsewhere() || !r.usedOutput {
		return
	}
	for f := compress.None; f <= compress.Zstd; f++ {
		if other := module.BaseName(name) + f.Suffix(); other != name && dir.Exists(other) {
			r.mu.Lock()
			r.summary.Notes = append(r.summary.Notes, fmt.Sprintf("warning: %s is there beside %s: remove the one that is outdated", dir.Path(other), name))
			r.mu.Unlock()
		}
	}
}

// put gives a file that is written anew all the names of an old one, and what else
// that has.
func (r *run) put(src source, m *module.File, j *job, write func(io.Writer) error) error {
	dirs, done, err := r.targets(src, j)
	if err != nil {
		return err
	}
	defer done()
	for i, name := range j.names {
		if name.to == name.from {
			continue
		}
		// The module's own place is its own; another name may be somebody's link.
		if err := dirs[i].CheckFile(name.to.name()); err != nil {
			return err
		}
		r.noteForms(dirs[i], name.to.name())
	}
	out, err := atomicfile.CreateIn(dirs[0], j.names[0].to.name(), 0o600)
	if err != nil {
		return err
	}
	defer out.Abort()
	if err := write(out); err != nil {
		return err
	}
	attested, err := out.Inherit(m.Descriptor(), m.Info, atomicfile.Inherit{
		Mode: r.opts.Mode, NewMTime: r.opts.NewMTime, Attest: r.opts.KeepXattrs, NewOwner: r.opts.NewOwner, BestEffort: r.source.elsewhere(),
	})
	if err != nil {
		return err
	}
	for i, name := range j.names[1:] {
		if err := out.AlsoIn(dirs[i+1], name.to.name()); err != nil {
			return err
		}
	}
	if err := m.Unchanged(src.dir, src.name); err != nil {
		return err
	}
	if err := out.Commit(r.opts.Sync == SyncFile); err != nil {
		return err
	}
	if attested {
		r.attested.Add(1)
	}
	return nil
}

// markerPage is what a write(2) into the page cache does in one step: a kill comes
// before or after it. Every page of every architecture is a multiple.
const markerPage = 4096

// extends reports whether the end of a trailer, by which it is found, lies in one
// page.
func extends(m *module.File, trailer []byte) bool {
	end := m.Size + int64(len(trailer))
	return (end-int64(module.TrailerSize))/markerPage == (end-1)/markerPage
}

// extend appends a trailer to the file itself, its end first: after a kill in
// between, what stands before it is a signature that is not right, and which the
// next run takes off.
func extend(src source, m *module.File, trailer []byte, newMTime bool) (err error) {
	f, err := src.dir.Open(src.name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := module.Unchanged(f, m.Info, src.dir, src.name); err != nil {
		return err
	}
	body := len(trailer) - module.TrailerSize
	_, err = f.WriteAt(trailer[body:], m.Size+int64(body))
	if err == nil {
		_, err = f.WriteAt(trailer[:body], m.Size)
	}
	if err != nil { // no space left, say
		return errors.Join(err, f.Truncate(m.Size))
	}
	if newMTime {
		return nil
	}
	return src.dir.SetMTime(src.name, unix.Timespec(m.Info.Sys().(*syscall.Stat_t).Mtim))
}

// write writes the module, signed or without its signatures, in a format. A trailer
// that is there already goes behind it.
func (r *run) write(ctx context.Context, out io.Writer, content *body, format compress.Format, trailer []byte, j *job, result *Result) error {
	if format == compress.None && trailer == nil && r.signer != nil {
		// Read once: the bytes that are hashed are the bytes that are written.
		sig, err := r.sign(out, content, j, result)
		if err != nil {
			return err
		}
		_, err = out.Write(module.AppendSignature(nil, r.signer.kind(), sig))
		return err
	}
	if trailer == nil && r.signer != nil {
		sig, err := r.sign(io.Discard, content, j, result)
		if err != nil {
			return err
		}
		trailer = module.AppendSignature(nil, r.signer.kind(), sig)
	}
	if format != compress.None {
		whole := io.MultiReader(content.reader(), bytes.NewReader(trailer))
		return r.encoder.Compress(ctx, format, out, whole, content.size+int64(len(trailer)))
	}
	if n, err := copyBuffer(out, content.reader()); err != nil || n < content.size {
		return orChanged(err)
	}
	_, err := out.Write(trailer)
	return err
}

// sign returns the signature of a module, which it copies to w.
func (r *run) sign(w io.Writer, content *body, j *job, result *Result) ([]byte, error) {
	h := r.signer.begin(j.names[0].name)
	if n, err := copyBuffer(io.MultiWriter(h, w), content.reader()); err != nil || n < content.size {
		return nil, orChanged(err)
	}
	result.Digest = h.Sum(nil)
	sig, err := r.signer.signature(j.names[0].name, result.Digest)
	result.Signature = len(sig)
	return sig, err
}

// orChanged explains a file that ended before its size: it has shrunk since.
func orChanged(err error) error {
	if err == nil {
		return module.ErrChanged
	}
	return err
}

// detach writes the signature beside the module, or where the module would go.
func (r *run) detach(src source, m *module.File, content *body, j *job, result *Result) error {
	sig, err := r.sign(io.Discard, content, j, result)
	if err != nil {
		return err
	}
	if err := m.Unchanged(src.dir, src.name); err != nil {
		return err
	}
	dirs, done, err := r.targets(src, j)
	if err != nil {
		return err
	}
	defer done()
	for i, name := range j.names {
		if err := write(dirs[i], name.to.name(), sig, r.opts.Mode, r.opts.Sync == SyncFile); err != nil {
			return err
		}
	}
	return nil
}

// copies holds the buffers through which modules are read and written.
var copies = sync.Pool{New: func() any { return new([256 << 10]byte) }}

func copyBuffer(dst io.Writer, src io.Reader) (int64, error) {
	buf := copies.Get().(*[256 << 10]byte)
	defer copies.Put(buf)
	// Plain values, so that neither side takes another way than through buf.
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
}
