package testmod

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// Chroot is a small system of Debian, as scripts/chroots makes them, with an overlay that
// takes what its commands write. Nothing of it is mounted while no command runs.
type Chroot struct {
	Lower string // the system in the cache, which stays as it is
	// Upper holds what the commands have written, as the upper directory of an overlay: a
	// file that was removed is a character device 0:0 there.
	Upper string

	dir   string // of the overlay: upper, work and root
	binds []string
}

// NewChroot returns the system of a suite, bookworm or trixie.
func NewChroot(t testing.TB, suite string) *Chroot {
	t.Helper()
	Slow(t, "runs in a system of its own")
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user cannot mount and chroot")
	}
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "chroots")
	c := &Chroot{Lower: filepath.Join(cache, suite)}
	if !exists(filepath.Join(c.Lower, ".packages")) {
		Missing(t, "a system of "+suite, "run scripts/chroots "+suite)
	}
	// Not in t.TempDir: the file system there may itself be an overlay, in a container.
	if c.dir, err = os.MkdirTemp(cache, ".upper-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(c.dir) })
	c.Upper = filepath.Join(c.dir, "upper")
	for _, name := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(c.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Bind shows a file or directory of this machine at a path in the system, read-only. That
// path is made if it does not exist, and is in Upper then.
func (c *Chroot) Bind(from, to string) { c.binds = append(c.binds, from, to) }

// Path returns where a file lies that a command has written.
func (c *Chroot) Path(name string) string { return filepath.Join(c.Upper, name) }

// Command returns a command in the system, with a small environment of its own, as root and
// in the directory /. Two commands must not run at the same time.
func (c *Chroot) Command(name string, args ...string) *exec.Cmd {
	const inside = `
		dir=$1 lower=$2 binds=$3
		shift 3
		mount -t overlay overlay -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
		mount -t proc proc "$dir/root/proc"
		mount --rbind /dev "$dir/root/dev"
		while [ "$binds" != 0 ]; do
			to=$dir/root/$2
			if [ -d "$1" ]; then
				mkdir -p "$to"
			else
				mkdir -p "${to%/*}"
				[ -e "$to" ] || : >"$to"
			fi
			mount --bind "$1" "$to"
			mount -o remount,bind,ro "$to"
			shift 2
			binds=$((binds - 1))
		done
		exec chroot "$dir/root" "$@"`
	words := []string{"--mount", "--propagation", "private", "sh", "-euc", inside, "sh", c.dir, c.Lower,
		strconv.Itoa(len(c.binds) / 2)}
	words = append(append(append(words, c.binds...), name), args...)
	cmd := exec.Command("unshare", words...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive"}
	return cmd
}
