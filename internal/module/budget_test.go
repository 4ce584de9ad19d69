package module

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
)

// The budget counts content and the memory of a future compressor until a module is
// closed, and windows while they exist.
func TestBudget(t *testing.T) {
	content := append(testmod.ELF(), make([]byte, 100_000)...)
	plain := testmod.WriteFile(t, "m.ko", content)
	zstd, xz := testmod.Program(t, "zstd", "zstd"), testmod.Program(t, "xz", "xz-utils")
	dir := filepath.Dir(plain)
	for name, command := range map[string]string{
		"long.ko.zst": zstd + " -q --long=27 < $1", // a window of 128 MiB, no content size
		"file.ko.zst": zstd + " -qc $1",
		"dict.ko.xz":  xz + " --check=crc32 --lzma2=dict=96MiB,mf=hc3 -c $1",
		"m.ko.gz":     testmod.Program(t, "gzip", "gzip") + " -nc $1",
		"plain.ko":    "cat $1",
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, testmod.Run(t, "/bin/sh", "-c", command, "sh", plain), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, encoder := range []int64{0, 10 << 20, memoryBudget, memoryBudget + 1} {
			for _, memory := range []int64{0, 64 << 10} { // the second is too little
				limits := SharedLimits(0)
				limits.Encoder, limits.Memory = encoder, memory
				m, err := Open(t.Context(), path, limits)
				if err != nil {
					t.Fatal(err)
				}
				held := encoder
				switch {
				case m.Format == compress.None || memory > 0:
				case name == "long.ko.zst":
					held += 64 << 10 // held if the size is unknown; the rest is in a file
					if encoder < memoryBudget {
						held = encoder
					}
				default:
					held += int64(len(content))
				}
				held = min(held, memoryBudget)
				if free := memoryBudget - held; !limits.Budget.TryAcquire(free) || limits.Budget.TryAcquire(1) {
					t.Errorf("%s, compressor %d, memory %d: not %d bytes are charged", name, encoder, memory, held)
				} else {
					limits.Budget.Release(free)
				}
				m.Close()
				if !limits.Budget.TryAcquire(memoryBudget) {
					t.Errorf("%s, compressor %d: bytes are charged when it is closed", name, encoder)
				}
			}
		}
	}

	// A module that needs the whole budget waits until all of it is free.
	for _, name := range []string{"long.ko.zst", "dict.ko.xz"} {
		limits := SharedLimits(0)
		if !limits.Budget.TryAcquire(1) {
			t.Fatal("the budget is empty")
		}
		opened := make(chan error)
		go func() {
			m, err := Open(t.Context(), filepath.Join(dir, name), limits)
			if err == nil {
				err = m.Close()
			}
			opened <- err
		}()
		for limits.Budget.TryAcquire(1) { // fails as soon as another caller waits
			limits.Budget.Release(1)
		}
		select {
		case err := <-opened:
			t.Errorf("%s: was opened beside others: %v", name, err)
		default:
			limits.Budget.Release(1)
			if err := <-opened; err != nil {
				t.Error(err)
			}
		}
	}
}
