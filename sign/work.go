package sign

import (
	"context"
	"io"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// stage is a step of the work on a module: open, prepare, make, place.
type stage uint8

const (
	// stagePrepare opens the module and prepares its new payload.
	stagePrepare stage = iota
	// stageMake makes the trailer too.
	stageMake
	// stagePlace writes the result too.
	stagePlace
)

// work is what is done with one module, which is the file of a job.
type work struct {
	*run
	job    *job
	result *Result
	// dir is the directory of the module. All that is done with it goes through this
	// descriptor, so that nobody who swaps directories has another file replaced. It is
	// nil if the module is only read.
	dir     *dirfd.Dir
	module  *module.File
	layers  int          // signatures of the module
	old     *cms.Message // the signature that gets another signer; nil if there is none
	content content      // what the new file begins with
	early   []byte       // the trailer, if it was made before the new file
}

// do takes the module along the line, as far as the run goes.
func (w *work) do(ctx context.Context) error {
	defer w.close()
	if err := w.open(ctx); err != nil {
		return err
	}
	switch {
	case w.layers == 0 || w.existing == Replace || w.existing == Add:
	case w.existing == Skip:
		return w.skip(ctx)
	default:
		return ErrSigned
	}
	if err := w.prepare(ctx); err != nil {
		return err
	}
	if w.result.Action = w.trailers.action(w.layers > 0 || !w.content.same); w.result.Action == Skipped {
		return w.skip(ctx)
	}
	if w.result.Action != Digested && !w.detached {
		w.result.Removed = w.layers
	}
	if err := w.tryAdd(); err != nil {
		return err
	}
	switch w.last {
	case stagePrepare:
		return w.allow(nil)
	case stageMake:
		if _, err := w.trailer(nil); err != nil {
			return err
		}
		return w.module.Untouched()
	}
	return w.place(ctx)
}

// open opens the module and looks at its signatures.
func (w *work) open(ctx context.Context) (err error) {
	from, limits := w.job.names[0].from, w.limits
	if w.last == stagePlace {
		limits.Encoder = w.encoderMemory()
	}
	if w.last < stagePlace || w.source.elsewhere() {
		w.module, err = from.read(ctx, limits)
	} else if w.dir, err = from.open(); err == nil {
		w.module, err = module.OpenIn(ctx, w.dir, from.name(), limits)
	}
	if err != nil {
		return err
	}
	w.result.Path, w.result.Format = w.job.names[0].path, w.module.Format
	layers, err := module.Layers(w.module, w.module.Size)
	if err != nil {
		return err
	}
	w.layers = len(layers)
	w.result.Payload = module.PayloadSize(layers, w.module.Size)
	if w.existing == Add && w.layers > 0 {
		if err := w.readOld(layers); err != nil {
			return err
		}
	}
	return module.CheckELF(w.module, w.result.Payload)
}

func (w *work) close() {
	if w.content.temp != nil {
		w.content.temp.Close()
	}
	if w.module != nil {
		w.module.Close()
	}
	if w.dir != nil {
		w.dir.Close()
	}
}

// encoderMemory is what the compressor of the new file holds, in bytes.
func (w *work) encoderMemory() int64 {
	if w.detached {
		return 0
	}
	return w.encoder.Memory(w.target(compress.FromName(w.job.names[0].path)))
}

// target is the format of the new file for a module of a format.
func (r *run) target(format compress.Format) compress.Format {
	if format == compress.None || r.source.Recompress {
		return r.source.Compress
	}
	return format
}

// skip leaves the module as it is. Another tree gets a copy of it.
func (w *work) skip(ctx context.Context) error {
	w.result.Action = Skipped
	if !w.writes(Skipped) {
		return nil
	}
	return w.create(func(out io.Writer) error {
		whole := io.NewSectionReader(w.module.Descriptor(), 0, w.module.Info.Size())
		_, err := module.Copy(out, module.Reader(ctx, whole))
		return err
	})
}
