package kbuildrun

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

func TestUnfinished(t *testing.T) {
	h := newTrees(t)
	modlib := filepath.Join(h.Srctree, "root/lib/modules/6.12.0")
	kernel, updates := Mark{Dir: modlib + "/kernel"}, modlib+"/updates"
	one, other := Mark{updates, "/a module"}, Mark{updates, "/another"}
	start := func(m Mark) {
		t.Helper()
		if err := MarkInstallStarted(t.Context(), h.Objtree, m); err != nil {
			t.Fatal(err)
		}
	}
	done := func(m Mark) {
		t.Helper()
		if err := MarkInstallDone(t.Context(), h.Objtree, m); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...Mark) {
		t.Helper()
		if got, err := Unfinished(h.Objtree); err != nil || !slices.Equal(got, want) {
			t.Errorf("unfinished are %v, %v, want %v", got, err, want)
		}
	}
	if err := os.MkdirAll(updates, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, m := range []Mark{kernel, one, other, kernel} {
		start(m)
	}
	check(one, other, kernel) // Kbuild removes the directory kernel itself
	done(other)
	check(one, kernel)
	if err := os.RemoveAll(filepath.Join(h.Srctree, "root")); err != nil {
		t.Fatal(err)
	}
	check()
	done(kernel)
	if got := list(t, h.Objtree); got != "" {
		t.Errorf("left over: %s", got)
	}
}

// TestUnfinishedAtOnce has installs to several directories begin and end at once: none
// loses the mark of another.
func TestUnfinishedAtOnce(t *testing.T) {
	h := newTrees(t)
	var group sync.WaitGroup
	var want []string
	for i := range 8 {
		stays := Mark{Dir: filepath.Join(h.Srctree, fmt.Sprint("stays", i))}
		goes := Mark{Dir: filepath.Join(h.Srctree, fmt.Sprint("goes", i))}
		want = append(want, stays.Dir)
		group.Go(func() {
			for _, err := range []error{
				MarkInstallStarted(t.Context(), h.Objtree, stays),
				MarkInstallStarted(t.Context(), h.Objtree, goes),
				MarkInstallDone(t.Context(), h.Objtree, goes),
			} {
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	marks, err := Unfinished(h.Objtree)
	var got []string
	for _, m := range marks {
		got = append(got, m.Dir)
	}
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("unfinished are %q, %v, want %q", got, err, want)
	}
}
