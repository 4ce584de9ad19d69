package sign

import (
	"crypto"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/testmod"
)

// gathering is a key that makes batches. No call returns before want calls wait at once.
type gathering struct {
	crypto.Signer
	size, want int

	mu      sync.Mutex
	waiting int
	full    chan struct{}
}

func (g *gathering) BatchSize() int { return g.size }

func (g *gathering) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	g.mu.Lock()
	if g.waiting++; g.waiting == g.want {
		close(g.full)
	}
	g.mu.Unlock()
	<-g.full
	return g.Signer.Sign(rand, digest, opts)
}

// TestBatches checks that as many signatures are under way as a key that makes batches
// can use: a batch for each processor, and two more. It hangs if there are fewer.
func TestBatches(t *testing.T) {
	key := testmod.NewKey(t, "rsa:2048")
	g := &gathering{Signer: key.Private, size: 8, want: 8 * (runtime.GOMAXPROCS(0) + 2), full: make(chan struct{})}
	signer, err := NewSigner(g, key.Certificate, SignerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for i := range g.want {
		put(t, filepath.Join(dir, fmt.Sprintf("%d.ko", i)), testmod.ELF())
	}
	if summary := mustSign(t, signer, Source{Roots: []string{dir}}, Options{}); summary.Signed != g.want {
		t.Errorf("%d of %d modules signed", summary.Signed, g.want)
	}
}

// TestJobsFitDescriptors signs more modules at once, on many processors, than there are
// descriptors for.
func TestJobsFitDescriptors(t *testing.T) {
	const descriptors, modules = 256, 400
	if base := child(); base != "" {
		runtime.GOMAXPROCS(24)
		limit := unix.Rlimit{Cur: descriptors, Max: descriptors}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		signer := loadSigner(t, base)
		signer.batch = 8
		for _, jobs := range []int{0, modules} {
			if s := mustSign(t, signer, Source{Roots: []string{filepath.Join(base, "tree")}}, Options{
				WriteOptions: WriteOptions{Jobs: jobs},
			}); s.Signed != modules {
				t.Errorf("%d jobs: %d of %d modules signed", jobs, s.Signed, modules)
			}
		}
		return
	}
	base := t.TempDir()
	saveSigner(t, base)
	for i := range modules {
		put(t, filepath.Join(base, "tree", fmt.Sprintf("%d.ko", i)), testmod.ELF())
	}
	finish(t, again(t, base))
}

func TestFitting(t *testing.T) {
	for _, c := range []struct{ n, descriptors, want int }{
		{4, 1 << 20, 4}, {1296, 1 << 20, 1296}, {256, 1024, 64}, {256, 256, 16}, {4, 40, 2}, {4, 3, 1},
	} {
		if got := fitting(c.n, c.descriptors); got != c.want {
			t.Errorf("%d jobs, %d descriptors: %d, want %d", c.n, c.descriptors, got, c.want)
		}
	}
}

func TestSignerJobs(t *testing.T) {
	procs := runtime.GOMAXPROCS(0)
	for _, c := range []struct{ batch, asked, want int }{
		{0, 0, 2 * procs}, {1, 0, 2 * procs}, {8, 3, 3}, {8, 0, 2*procs + 8*(procs+2)},
	} {
		if got := (&Signer{batch: c.batch}).jobs(c.asked); got != c.want {
			t.Errorf("batches of %d, %d asked for: %d, want %d", c.batch, c.asked, got, c.want)
		}
	}
}
