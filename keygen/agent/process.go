package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/undump"
)

// hideMemory keeps the memory of this process from core dumps and from other
// processes of its user, and out of swap where that is permitted; warning says
// that it is not, and that there is swap.
func hideMemory() (locked bool, warning string, err error) {
	if err := undump.Close(); err != nil {
		return false, "", err
	}
	if lockMemory() {
		return true, "", nil
	}
	data, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return false, "memory is not locked, and whether there is swap cannot be known", nil
	}
	var swaps []string
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n")[1:] { // the first is the header
		name, _, _ := strings.Cut(line, " ")
		swaps = append(swaps, strings.TrimSpace(name))
	}
	if len(swaps) > 0 {
		warning = "memory is not locked, and the key may be written to swap: " + strings.Join(swaps, ", ")
	}
	return false, warning, nil
}

// lockMemory locks all memory, that to come too. It does so only without a limit:
// one that the process came to later would be the end of Go's runtime, which
// maps its memory as it goes along.
func lockMemory() bool {
	unlimited := &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if unix.Setrlimit(unix.RLIMIT_MEMLOCK, unlimited) != nil {
		return false
	}
	return unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT) == nil
}

// maxRuntimeDir is what a socket's 108 bytes leave to the folder.
const maxRuntimeDir = 80

// runtimeFolder returns a directory for the socket that is this user's alone. Anybody
// can make or keep any name in /tmp that they can foresee: then it is one with a random
// name, which goes with the socket. Clients find either by agent.sock.
func runtimeFolder(dir string) (path string, random bool, err error) {
	if dir = filepath.Clean(dir); filepath.IsAbs(dir) && len(dir) <= maxRuntimeDir && checkPrivate(dir) == nil {
		return dir, false, nil
	}
	dir = sharedRuntimeDir()
	err = os.Mkdir(dir, 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = checkPrivate(dir)
	}
	if err == nil {
		return dir, false, nil
	}
	dir, err = os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+"-")
	if err != nil {
		return "", false, fmt.Errorf("no private directory for the key agent's socket (XDG_RUNTIME_DIR names one): %w", err)
	}
	return dir, true, nil
}

func sharedRuntimeDir() string { return fmt.Sprintf("/tmp/modsign-%d", os.Geteuid()) }

// removeDead removes the socket of an agent that was killed, and the directory that
// was its own. agent.sock lies in a tree that others may write: nothing is removed
// that an agent of this user would not have made.
func removeDead(socket, runtimeDir string) {
	dir := filepath.Dir(socket)
	random := strings.HasPrefix(dir, sharedRuntimeDir()+"-") && filepath.Dir(dir) == filepath.Dir(sharedRuntimeDir())
	if name, _ := filepath.Match("modsign-*.sock", filepath.Base(socket)); !name || dir != runtimeDir && !random || checkPrivate(dir) != nil {
		return
	}
	os.Remove(socket)
	if random {
		os.Remove(dir)
	}
}

func checkPrivate(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is no folder", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to uid %d", dir, st.Uid)
	case st.Mode&0o077 != 0:
		return fmt.Errorf("%s is open to others: its mode is %04o", dir, st.Mode&0o7777)
	}
	return nil
}

// lockFolder waits for the lock of a folder, which ends with the process. Where
// the file system has no locks there is none.
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for unix.Flock(int(f.Fd()), unix.LOCK_EX) == unix.EINTR {
	}
	return func() { f.Close() }, nil
}

// sinceBoot is a clock that nobody sets, and that goes on while the machine
// sleeps.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime: " + err.Error()) // every kernel since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

// Hide starts this program again, in this process, so that other processes of its user
// are kept out of its memory from its first instruction. It returns when they
// are already, or with the reason why this system does not have it: then they
// are kept out from now on. A program that calls [Serve] calls it first of
// all, with its own arguments and the environment that it wants to have.
func Hide(args, env []string) error { return undump.Exec(args, env) }
