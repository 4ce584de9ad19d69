package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/sign"
)

func TestPace(t *testing.T) {
	for _, test := range []struct {
		took        time.Duration
		done, total int64
		want        string
	}{
		{10 * time.Second, 50e6, 200e6, ", 5 MB a second, 30.0 s left"},
		{2 * time.Second, 4e9, 5e9, ", 2.00 GB a second, 0.5 s left"},
		{time.Second, 200e6, 200e6, ", 200 MB a second, 0.0 s left"},
		{time.Second, 500e3, 500e6, ", 500 KB a second, 16 min 39 s left"},
		{time.Second, 0, 200e6, ""}, // nothing to go by
		{0, 10, 200e6, ""},
		{time.Hour, 1, math.MaxInt64, ", 0 KB a second, 277777 h 46 min left"},
	} {
		if got := pace(test.took, test.done, test.total); got != test.want {
			t.Errorf("%v for %d of %d bytes: %q, want %q", test.took, test.done, test.total, got, test.want)
		}
	}
}

// A note names --xattr only where the command has it: hashlist build has not.
func TestDroppedXattrs(t *testing.T) {
	t.Parallel()
	for _, has := range []bool{false, true} {
		w := work{xattr: has}
		notes := w.notes(sign.Summary{DroppedXattrs: 2})
		if len(notes) != 1 || !strings.Contains(notes[0], " of 2 modules") ||
			strings.Contains(notes[0], "--xattr") != has {
			t.Errorf("with --xattr %v: %q", has, notes)
		}
	}
}
