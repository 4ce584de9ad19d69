package module

import (
	"context"
	"io"
)

// Join returns the first size bytes of r with b behind them.
func Join(r io.ReaderAt, size int64, b []byte) io.ReaderAt { return &joined{r, size, b} }

type joined struct {
	first io.ReaderAt
	size  int64
	rest  []byte
}

func (j *joined) ReadAt(b []byte, off int64) (n int, err error) {
	if off < j.size {
		part := b[:min(int64(len(b)), j.size-off)]
		if n, err = j.first.ReadAt(part, off); n < len(part) {
			return n, err
		}
	}
	if at := off + int64(n) - j.size; at >= 0 && at <= int64(len(j.rest)) {
		n += copy(b[n:], j.rest[at:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// At returns a reader of r that fails with the context's error once ctx has ended.
func At(ctx context.Context, r io.ReaderAt) io.ReaderAt { return &readerAt{ctx, r} }

type readerAt struct {
	ctx context.Context
	r   io.ReaderAt
}

func (r *readerAt) ReadAt(b []byte, off int64) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.ReadAt(b, off)
}
