package hashlist

import (
	"context"
	"errors"
	"io"

	"github.com/modsign/modsign/internal/elfstrip"
	"github.com/modsign/modsign/internal/module"
)

// content is what is hashed of a module.
type content struct {
	size   int64
	reader io.Reader
	close  func()
}

// content takes the debug information off a module without signatures, if that is
// wanted.
func (b *builder) content(ctx context.Context, m *module.File, size int64) (*content, error) {
	whole := &content{size, m.Payload(size), func() {}}
	if !b.Strip {
		return whole, nil
	}
	file, err := elfstrip.Parse(m.Payload(size), size)
	if errors.Is(err, elfstrip.ErrShape) {
		return b.stripWith(ctx, m, size, err)
	}
	if err != nil {
		return nil, err
	}
	image, err := file.Strip(nil)
	switch {
	case file.LeftToProgram(err):
		return b.stripWith(ctx, m, size, err)
	case err != nil:
		return nil, err
	case image.Same():
		return whole, nil
	}
	return &content{image.Size(), image.Reader(), func() {}}, nil
}

// stripWith runs the program strip on a module whose shape elfstrip does not know.
func (b *builder) stripWith(ctx context.Context, m *module.File, size int64, shape error) (*content, error) {
	if b.StripProgram == "" {
		return nil, shape
	}
	payload := module.Reader(ctx, m.Payload(size))
	out, size, err := elfstrip.StripWith(ctx, b.StripProgram, shape, payload, size, module.CheckELF)
	if err != nil {
		return nil, err
	}
	return &content{size, out, func() { out.Close() }}, nil
}
