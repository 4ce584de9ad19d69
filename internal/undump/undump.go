// Package undump keeps the memory of a process from the other processes of its
// user, from the first instruction.
//
// PR_SET_DUMPABLE closes /proc/PID/mem, ptrace and their like to everybody without
// CAP_SYS_PTRACE, but a program can call it only when it runs. Who opened
// /proc/PID/mem before that keeps the access. The kernel closes a process from its
// start when the program's file cannot be read by who executes it. So [Exec] copies
// the program to a sealed memfd of mode 0111 and executes that.
//
// A process that traces this one from before Exec stays in control of it: it could
// have started another program just as well.
package undump

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// memfdPrefix is what the link /proc/self/exe of a program in a memfd begins with.
const memfdPrefix = "/memfd:"

// closed is found out before main, and so before anything in this process can have
// called Close.
var closed = start()

// start returns whether this process is closed already. It runs in the main thread,
// whose name is that of the process: the kernel takes it from the file, which
// in a descriptor has none but a number, and start restores the one that Exec had.
func start() bool {
	if strings.Trim(threadName(), "0123456789") == "" {
		if name, ok := strings.CutPrefix(executable(), memfdPrefix); ok {
			setThreadName(strings.TrimSuffix(name, " (deleted)"))
		}
	}
	return dumpable() != 1 && !traced()
}

// FromStart reports whether other processes of this user have been kept out of this
// process's memory since its first instruction.
func FromStart() bool { return closed }

// Close keeps them out from now on, and forbids core dumps. If one fails it does the other.
func Close() error {
	open, dumps := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0), unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	if open != nil {
		open = fmt.Errorf("cannot close the memory of this process to others: prctl: %w", open)
	}
	if dumps != nil {
		dumps = fmt.Errorf("cannot forbid core dumps of this process: setrlimit: %w", dumps)
	}
	return errors.Join(open, dumps)
}

// Exec starts this program again, in this process, closed from the start. It returns
// nil when the process is closed already. The error says why the
// system does not have it; the process goes on as it was, and is closed from then on.
// Descriptors stay open as for any exec, and what was read from them is lost:
// the place of Exec is before a command has done anything.
func Exec(args, env []string) error {
	if closed {
		return nil
	}
	// From here on nobody who has not done so yet can open the memfd by
	// /proc/PID/fd, to give it another mode.
	if err := Close(); err != nil {
		return err
	}
	if strings.HasPrefix(executable(), memfdPrefix) {
		return errors.New(
			"the kernel leaves a process open whose program cannot be read (fs.suid_dumpable is 1, or it is traced)")
	}
	program, err := copyProgram()
	if err != nil {
		return err
	}
	defer unix.Close(program)
	return execUnreadable(program, args, env)
}

// copyProgram returns a sealed memfd of this program, which may be executed alone.
func copyProgram() (fd int, err error) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	defer exe.Close()
	size, err := loadedSize(exe)
	if err != nil {
		return -1, err
	}
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err = unix.MemfdCreate(threadName(), flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3, which has no other kind
		fd, err = unix.MemfdCreate(threadName(), flags)
	}
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	err = fill(fd, int(exe.Fd()), size)
	if err == nil {
		err = os.NewSyscallError("fchmod", unix.Fchmod(fd, 0o111))
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
		err = os.NewSyscallError("fcntl", err)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// loadedSize is how much of a program its execution needs. What follows, the
// sections of a debugger, is almost half of it.
func loadedSize(exe *os.File) (size int64, err error) {
	f, err := elf.NewFile(exe)
	if err != nil {
		return 0, err
	}
	for _, p := range f.Progs {
		size = max(size, int64(p.Off+p.Filesz))
	}
	return size, nil
}

func fill(to, from int, size int64) error {
	for size > 0 {
		n, err := unix.Sendfile(to, from, nil, int(min(size, 1<<30)))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("sendfile", err)
		case n == 0:
			return errors.New("the program became shorter while it was read")
		}
		size -= int64(n)
	}
	return nil
}

// execUnreadable executes a file for the length of whose opening this thread gives
// up the capabilities by which root reads what it has no permission to read.
// The new program has them again, as any that root executes.
func execUnreadable(fd int, args, env []string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	without := before
	without[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&header, &without[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	err := syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), args, env)
	return errors.Join(os.NewSyscallError("execve", err), os.NewSyscallError("capset", unix.Capset(&header, &before[0])))
}

// dumpable is 1 when the user's other processes may look into this one.
func dumpable() int {
	value, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return 1
	}
	return value
}

// traced reports whether another process traces this one, or may.
func traced() bool {
	status, err := os.ReadFile("/proc/self/status")
	return err != nil || !bytes.Contains(status, []byte("\nTracerPid:\t0\n"))
}

func executable() string {
	path, _ := os.Readlink("/proc/self/exe")
	return path
}
