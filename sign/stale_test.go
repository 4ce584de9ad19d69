package sign

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// A modules.dep above modules that get new names is out of date, and no other.
func TestStaleIndexes(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	indexed, plain := filepath.Join(root, "lib/modules/6.12"), filepath.Join(root, "stage")
	for _, path := range []string{filepath.Join(indexed, "kernel/fs/a.ko"), filepath.Join(plain, "b.ko")} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, path, testmod.ELF())
	}
	put(t, filepath.Join(indexed, "modules.dep"), []byte("kernel/fs/a.ko:\n"))
	for _, test := range []struct {
		format Format
		want   []string
	}{{None, nil}, {XZ, []string{indexed}}} {
		tree, err := Open(t.Context(), Source{Roots: []string{root}, Compress: test.format, Recompress: true})
		if err != nil {
			t.Fatal(err)
		}
		summary, err := tree.Prove(t.Context(), named{}, ProveOptions{})
		tree.Close()
		if err != nil || !slices.Equal(summary.StaleIndexes, test.want) {
			t.Errorf("%v: %q, %v; want %q", test.format, summary.StaleIndexes, err, test.want)
		}
	}
}
