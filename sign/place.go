package sign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// place writes the result: a detached signature, a file in the output directory, a
// longer old file, or a new file in the place of the old one.
func (w *work) place(ctx context.Context) error {
	if w.detached {
		return w.detach()
	}
	if w.module.Format == compress.None || w.source.Recompress {
		for i, name := range w.job.names {
			w.job.names[i].to = name.to.renamed(w.source.packedName)
		}
	}
	if w.extendable() {
		if done, err := w.extend(); done || err != nil {
			return err
		}
	}
	if err := w.create(func(out io.Writer) error { return w.write(ctx, out) }); err != nil || w.source.elsewhere() {
		return err
	}
	return w.removeOldNames()
}

// write writes the new module.
func (w *work) write(ctx context.Context, out io.Writer) error {
	format := w.target(w.module.Format)
	trailer := w.early
	if trailer == nil {
		dst := out // what is not compressed is read once
		if format != compress.None {
			dst = nil
		}
		made, err := w.trailer(dst)
		if err != nil {
			return err
		}
		trailer = made.bytes()
	} else if format == compress.None {
		if err := w.content.copyTo(out); err != nil {
			return err
		}
	}
	if format != compress.None {
		whole := io.MultiReader(w.content.reader(), bytes.NewReader(trailer))
		return w.encoder.Compress(ctx, format, out, whole, w.content.size+int64(len(trailer)))
	}
	_, err := out.Write(trailer)
	return err
}

// create writes a new file with all names of the job, and with the mode, owner, times
// and extended attributes of the old one.
func (w *work) create(write func(io.Writer) error) error {
	dirs, done, err := w.targets()
	if err != nil {
		return err
	}
	defer done()
	names := w.job.names
	for i, name := range names {
		if name.to == name.from {
			continue
		}
		// The module's own name is its own; another name may be somebody's link.
		if err := dirs[i].CheckFile(name.to.name()); err != nil {
			return err
		}
		if !w.source.Copy || w.source.KeepForms {
			w.noteForms(dirs[i], name.to.name())
		}
	}
	perm := fs.FileMode(0o600)
	switch {
	case w.signsCopy():
		perm = 0o666
	case w.source.Copy:
		perm = w.module.Info.Mode().Perm()
	}
	out, err := atomicfile.CreateIn(dirs[0], names[0].to.name(), perm)
	if err != nil {
		return err
	}
	defer out.Abort()
	if err := write(out); err != nil {
		return err
	}
	dropped, err := w.inherit(out, dirs[0])
	if err != nil {
		return err
	}
	for i, name := range names[1:] {
		if err := out.AlsoIn(dirs[i+1], name.to.name()); err != nil {
			return err
		}
	}
	if err := w.unchanged(); err != nil {
		return err
	}
	if err := out.Commit(w.Sync == SyncFile); err != nil {
		return err
	}
	if dropped {
		w.droppedXattrs.Add(1)
	}
	if w.source.Copy && w.usedOutput && !w.source.KeepForms {
		return w.removeForms(dirs[0], names[0].to.name())
	}
	return nil
}

// inherit gives a new file what it takes over: from the module, or as a copy from the file
// that it replaces.
func (w *work) inherit(out *atomicfile.File, dir *dirfd.Dir) (dropped bool, err error) {
	if !w.source.Copy {
		return out.Inherit(w.module.Descriptor(), w.module.Info, atomicfile.Inherit{
			Mode: w.Mode, NewMTime: w.NewMTime, Attest: w.KeepXattrs, NewOwner: w.NewOwner, BestEffort: w.source.elsewhere(),
		})
	}
	name := w.job.names[0].to.name()
	if w.signsCopy() || !w.usedOutput || compress.FromName(name) != compress.None {
		return false, nil // sign-file makes a new file, and so do xz and its kind
	}
	old, err := dir.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return false, nil // there is none, or none of this user's
	}
	defer old.Close()
	info, err := old.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return false, err
	}
	return out.Inherit(old, info, atomicfile.Inherit{NewMTime: true, BestEffort: true})
}

// signsCopy reports whether the new file is a copy with a signature. Kbuild has sign-file
// write it, which makes a new file and ignores the mode of the module.
func (w *work) signsCopy() bool {
	return w.source.Copy && w.result.Action == Signed && w.trailers.isNewFile()
}

// unchanged returns an error if the module is not the one that was opened any more.
func (w *work) unchanged() error {
	if w.dir == nil {
		return w.module.Untouched()
	}
	return w.module.Unchanged(w.dir, w.job.names[0].from.name())
}

// targets opens the directories of the names that the new file gets. In the output
// directory it makes them.
func (w *work) targets() (dirs []*dirfd.Dir, done func(), err error) {
	var opened []*dirfd.Dir
	done = func() {
		for _, dir := range opened {
			dir.Close()
		}
	}
	for i, name := range w.job.names {
		if i == 0 && !w.source.elsewhere() {
			dirs = append(dirs, w.dir)
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

// noteForms names other forms of a module that an earlier run has left in the output
// directory: depmod would take one of the two.
func (w *work) noteForms(dir *dirfd.Dir, name string) {
	if !w.source.elsewhere() || !w.usedOutput {
		return
	}
	for f := compress.None; f <= compress.Zstd; f++ {
		if other := module.BaseName(name) + f.Suffix(); other != name && dir.Exists(other) {
			w.note(fmt.Sprintf("warning: %s exists beside %s: remove the outdated one", dir.Path(other), name))
		}
	}
}

// removeForms removes other forms of a module that has been copied: depmod would take one
// of the two.
func (w *work) removeForms(dir *dirfd.Dir, name string) error {
	for f := compress.None; f <= compress.Zstd; f++ {
		other := module.BaseName(name) + f.Suffix()
		if other == name {
			continue
		}
		switch err := dir.Remove(other); {
		case err == nil:
			w.note(fmt.Sprintf("removed %s, of which %s is the new form", dir.Path(other), name))
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EISDIR):
			return err
		}
	}
	return nil
}

// removeOldNames removes the names of the old file that the new one does not have.
func (w *work) removeOldNames() (err error) {
	for i, name := range w.job.names {
		if name.to == name.from {
			continue
		}
		w.links.follow(name.from.path(), name.to.path())
		if i == 0 {
			err = w.dir.Remove(name.from.name())
		} else {
			err = name.from.in((*dirfd.Dir).Remove)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// detach writes the signature beside the module, or where the module would go.
func (w *work) detach() error {
	made, err := w.trailer(nil)
	if err != nil {
		return err
	}
	if err := w.unchanged(); err != nil {
		return err
	}
	dirs, done, err := w.targets()
	if err != nil {
		return err
	}
	defer done()
	for i, name := range w.job.names {
		if err := write(dirs[i], name.to.name(), made.message, w.Mode, w.Sync == SyncFile); err != nil {
			return err
		}
	}
	return nil
}

// extendable reports whether the trailer may be appended to the old file itself: see
// WriteOptions.Extend.
func (w *work) extendable() bool {
	if !w.Extend || w.Mode != nil || w.Sync == SyncFile || w.source.elsewhere() {
		return false
	}
	plain := w.module.Format == compress.None && w.target(compress.None) == compress.None
	onlyHere := int(w.module.Info.Sys().(*syscall.Stat_t).Nlink) == len(w.job.names)
	return plain && onlyHere && w.content.same && w.layers == 0
}

// markerPage is what a write(2) into the page cache does in one step: a kill comes
// before or after it. Every page of every architecture is a multiple.
const markerPage = 4096

// extend appends the trailer to the old file, its end first: after a kill in between,
// the bytes before it are a signature that is not right, which the next run removes. It
// does nothing unless the end of the trailer, by which it is found, lies in one page.
func (w *work) extend() (done bool, err error) {
	made, err := w.trailer(nil)
	if err != nil {
		return false, err
	}
	w.early = made.bytes()
	size := w.module.Size
	end := size + int64(len(w.early))
	if (end-int64(module.TrailerSize))/markerPage != (end-1)/markerPage {
		return false, nil
	}
	name := w.job.names[0].from.name()
	f, err := w.dir.Open(name, os.O_WRONLY, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := module.Unchanged(f, w.module.Info, w.dir, name); err != nil {
		return false, err
	}
	message := len(w.early) - module.TrailerSize
	_, err = f.WriteAt(w.early[message:], size+int64(message))
	if err == nil {
		_, err = f.WriteAt(w.early[:message], size)
	}
	if err != nil { // no space left, say
		return false, errors.Join(err, f.Truncate(size))
	}
	if w.NewMTime {
		return true, nil
	}
	return true, w.dir.SetMTime(name, unix.Timespec(w.module.Info.Sys().(*syscall.Stat_t).Mtim))
}
