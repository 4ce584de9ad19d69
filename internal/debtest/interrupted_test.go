package debtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// An interrupted scripts/package leaves no files with the names of packages.
func TestPackageInterrupted(t *testing.T) {
	testmod.Slow(t, "builds the packages of modsign")
	t.Parallel()
	for _, test := range []struct{ program, from, signal string }{
		{"dpkg-deb", "dpkg", "TERM"},
		{"sync", "coreutils", "KILL"}, // while packages are moved to OUTDIR
	} {
		t.Run(test.program+" "+test.signal, func(t *testing.T) {
			t.Parallel()
			// The program does half of its work, and then the script is killed.
			path, out := t.TempDir(), t.TempDir()
			real := testmod.Program(t, test.program, test.from)
			wrapper := "#!/bin/sh\n" + real +
				" \"$@\"\nfor file; do :; done\n[ ! -f \"$file\" ] || truncate --size=100 \"$file\"\nkill -" + test.signal +
				" $PPID\nsleep 1\n"
			write(t, filepath.Join(path, test.program), 0o755, wrapper)
			cmd := exec.Command(filepath.Join(scripts, "package"), "--version", packageVersion, out)
			cmd.Env = environment("SOURCE_DATE_EPOCH=1700000000", "PATH="+path+":"+os.Getenv("PATH"), "TMPDIR="+t.TempDir())
			if text, err := cmd.CombinedOutput(); err == nil {
				t.Fatalf("the script was not interrupted:\n%s", text)
			}
			entries, err := os.ReadDir(out)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if !strings.HasPrefix(e.Name(), ".package.") || test.signal == "TERM" {
					t.Errorf("%s is left", e.Name())
				}
			}
			if test.program != "sync" {
				return
			}
			if len(entries) == 0 {
				t.Error("nothing was on its way")
			}
			cmd = exec.Command(filepath.Join(scripts, "package"), "--version", packageVersion, out)
			cmd.Env = environment("SOURCE_DATE_EPOCH=1700000000")
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v:\n%s", err, text)
			}
			if entries, err = os.ReadDir(out); err != nil || len(entries) != 3 {
				t.Errorf("the next run leaves %v (%v), want three packages", entries, err)
			}
		})
	}
}
