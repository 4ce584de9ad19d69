package sign

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/verify"
)

// Many modules at once that want the largest windows there are, and fill them.
func TestWindowMemory(t *testing.T) {
	const (
		limit  = 256 << 20
		copies = 2 // of each form
	)
	if base := child(); base != "" {
		signer := loadSigner(t, base)
		root := filepath.Join(base, "tree")
		if s := mustSign(
			t, signer, Source{Roots: []string{root}, Output: filepath.Join(base, "out")},
			Options{WriteOptions: WriteOptions{Jobs: 16, Sync: SyncNone}},
		); s.Signed != 2*copies {
			t.Errorf("%+v", s)
		}
		t.Logf("signing: %d MiB at the peak", peakMemory(t)>>20)
		if peak := peakMemory(t); peak > limit && !testmod.WithRace() {
			t.Errorf("signing took %d bytes of memory", peak)
		}
		resetPeak(t)
		// Those that were signed have small windows.
		_, err := verify.Tree(
			t.Context(),
			new(verify.Keyring),
			[]string{root},
			verify.Options{Jobs: 16, Result: func(r verify.Result) {
				if r.Verdict != verify.NotSigned {
					t.Errorf("%s: %s: %v", r.Path, r.Verdict, r.Err)
				}
			}},
		)
		if !errors.Is(err, verify.ErrRefused) {
			t.Fatal(err)
		}
		t.Logf("verifying: %d MiB at the peak", peakMemory(t)>>20)
		if peak := peakMemory(t); peak > limit && !testmod.WithRace() {
			t.Errorf("verifying took %d bytes of memory", peak)
		}
		return
	}
	testmod.Slow(t, "compresses and signs modules of 140 MB")
	t.Parallel()
	base := directory(t)
	saveSigner(t, base)
	large := filepath.Join(base, "large.ko")
	put(t, large, testmod.ELF())
	if err := os.Truncate(large, 140<<20); err != nil {
		t.Fatal(err)
	}
	parallel(t, []string{
		testmod.Program(t, "xz", "xz-utils") + " --check=crc32 --lzma2=preset=0,dict=128MiB <$1 >$1.xz",
		testmod.Program(t, "zstd", "zstd") + " -q1 --long=27 <$1 >$1.zst",
	}, func(command string) error {
		return execute("/bin/sh", "-c", command, "sh", large)
	})
	for _, suffix := range []string{".xz", ".zst"} {
		for i := range copies {
			put(t, filepath.Join(base, "tree", fmt.Sprintf("%d.ko%s", i, suffix)), read(t, large+suffix))
		}
	}
	cmd := again(t, base)
	cmd.Env = append(cmd.Env, "TMPDIR="+base)
	for line := range strings.Lines(finish(t, cmd)) {
		if strings.Contains(line, " at the peak") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
