package sign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/modsign/modsign/internal/elfstrip"
	"github.com/modsign/modsign/internal/module"
)

// content is a module without its signatures, and without debug information if that is
// removed.
type content struct {
	size   int64
	same   bool             // as the old file begins
	reader func() io.Reader // each reader begins anew
	// The section .modinfo is read here: in the old file, or in what a program has made.
	at     io.ReaderAt
	atSize int64
	temp   *os.File // holds the payload, if the program strip has made it
}

// copyTo writes the payload to out.
func (c *content) copyTo(out io.Writer) error {
	return module.CopyAll(out, c.reader(), c.size)
}

// prepare plans the payload of the new file. It writes nothing but the debug file.
func (w *work) prepare(ctx context.Context) error {
	size := w.result.Payload
	w.content = content{size: size, same: true, at: w.module, atSize: size, reader: func() io.Reader {
		return module.Reader(ctx, w.module.Payload(size))
	}}
	if !w.StripDebug && w.SplitDebug == "" {
		return nil
	}
	file, err := elfstrip.Parse(w.module.Payload(size), size)
	if errors.Is(err, elfstrip.ErrShape) && w.SplitDebug == "" {
		return w.stripByProgram(ctx, nil, err)
	}
	if err != nil {
		return err
	}
	var link *elfstrip.Link
	if w.SplitDebug != "" && file.HasDebugInfo() {
		if link, err = w.split(ctx, file); err != nil {
			return fmt.Errorf("cannot split off debug information: %w", err)
		}
	}
	image, err := file.Strip(link)
	switch {
	case file.LeftToProgram(err):
		return w.stripByProgram(ctx, link, err)
	case err != nil:
		return err
	case image.Same():
		return nil
	}
	if file.HasDebugInfo() { // else only names of source files, say, are gone
		w.result.Debug = size - image.Size()
	}
	w.replacePayload(image.Size(), func() io.Reader { return module.Reader(ctx, image.Reader()) })
	return nil
}

// replacePayload has other bytes stand for the module.
func (w *work) replacePayload(size int64, reader func() io.Reader) {
	w.content.size, w.content.same, w.content.reader = size, false, reader
	w.result.Payload = size
}

// stripByProgram has the program strip do what elfstrip cannot, for the reason why. A
// link to the debug file, if there is one, is added to the program's output.
func (w *work) stripByProgram(ctx context.Context, link *elfstrip.Link, why error) error {
	if w.StripProgram == "" {
		return why
	}
	w.result.ByProgram = true
	if w.last == stagePrepare {
		w.content.same = false
		return nil
	}
	old := w.result.Payload
	out, size, err := elfstrip.StripWith(ctx, w.StripProgram, why, w.content.reader(), old, module.CheckELF)
	if err != nil {
		return err
	}
	w.content.temp, w.content.at, w.content.atSize = out, out, size
	reader := func() io.Reader { return io.NewSectionReader(out, 0, size) }
	if link != nil {
		image, err := withLink(out, size, link)
		if err != nil {
			return fmt.Errorf("output of %s: %w", w.StripProgram, err)
		}
		size, reader = image.Size(), image.Reader
	}
	w.replacePayload(size, func() io.Reader { return module.Reader(ctx, reader()) })
	w.result.Debug = old - size
	return nil
}

// withLink adds a link to the debug file to a stripped module.
func withLink(stripped io.ReaderAt, size int64, link *elfstrip.Link) (*elfstrip.Image, error) {
	file, err := elfstrip.Parse(stripped, size)
	if err != nil {
		return nil, err
	}
	return file.AddLink(link)
}
