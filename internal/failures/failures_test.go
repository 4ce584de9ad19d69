package failures

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestErr(t *testing.T) {
	sentinel, odd := errors.New("sentinel"), errors.New("odd")
	var l List
	if err := l.Err(sentinel, "0 failed"); err != nil || l.Len() != 0 {
		t.Errorf("an empty list: %v", err)
	}
	l.Add("a.ko", &fs.PathError{Op: "open", Path: "a.ko", Err: syscall.EACCES})
	l.Add("b.ko", fmt.Errorf("b.ko: %w", odd))
	l.Add("c.ko", odd)
	l.Add("d.ko", nil)
	err := l.Err(sentinel, "4 of 5 modules failed")
	const want = "4 of 5 modules failed: open a.ko: permission denied; b.ko: odd; c.ko: odd; d.ko: failed"
	if err.Error() != want {
		t.Errorf("got  %q\nwant %q", err, want)
	}
	if path, ok := errors.AsType[*fs.PathError](err); !errors.Is(err, sentinel) || !errors.Is(err, odd) ||
		!errors.Is(err, fs.ErrPermission) || !ok || path.Path != "a.ko" {
		t.Errorf("errors.Is and As do not find what %q wraps", err)
	}
}

func TestErrIsBounded(t *testing.T) {
	sentinel, last := errors.New("sentinel"), errors.New("last")
	var l List
	for i := range 5000 {
		l.Add(fmt.Sprintf("%d.ko", i), errors.New("bad"))
	}
	l.Add("last.ko", last)
	err := l.Err(sentinel, "all failed")
	const want = "all failed: 0.ko: bad; 1.ko: bad; 2.ko: bad; 3.ko: bad; 4.ko: bad; " +
		"5.ko: bad; 6.ko: bad; 7.ko: bad; 8.ko: bad; 9.ko: bad; and 4991 more"
	if err.Error() != want || errors.Is(err, last) || l.Len() != 5001 {
		t.Errorf("got  %q\nwant %q", err, want)
	}
}
