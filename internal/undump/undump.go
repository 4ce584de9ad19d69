// Package undump hides the memory of a process from the user's other processes, from
// its first instruction.
//
// Call [Exec] at the beginning of main. PR_SET_DUMPABLE closes /proc/PID/mem, ptrace
// and the like to processes without CAP_SYS_PTRACE, but a program can set it only once
// it runs, and whoever opened /proc/PID/mem before keeps the access. The kernel closes
// a process from its start if the user cannot read the program's file. So Exec copies
// the program to a sealed memfd of mode 0111 and executes that.
//
// A process that traces this one before Exec keeps control of it: it could also have
// started another program.
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

// memfdPrefix is the beginning of the target of /proc/self/exe for a program in a
// memfd.
const memfdPrefix = "/memfd:"

// closed is initialized before main, so before anything in this process can have called
// [Close].
var closed = start()

// start reports whether this process is already closed, and restores its name. It runs
// in the main thread, whose name is the process name. The kernel names a process after
// its file, and a memfd has only the number of its descriptor.
func start() bool {
	if strings.Trim(threadName(), "0123456789") == "" {
		if name, ok := strings.CutPrefix(executable(), memfdPrefix); ok {
			setThreadName(strings.TrimSuffix(name, " (deleted)"))
		}
	}
	return dumpable() != 1 && !traced()
}

// FromStart reports whether other processes of this user have had no access to this
// process's memory since its first instruction.
func FromStart() bool { return closed }

// Close closes the memory of this process to other processes of the user from now on,
// and forbids core dumps. If one of the two fails, it still does the other.
func Close() error {
	memory := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if memory != nil {
		memory = fmt.Errorf("cannot protect the memory of this process: prctl: %w", memory)
	}
	dumps := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	if dumps != nil {
		dumps = fmt.Errorf("cannot disable core dumps: setrlimit: %w", dumps)
	}
	return errors.Join(memory, dumps)
}

// Exec restarts this program in this process, closed from its first instruction. It
// returns nil if the process already is. Otherwise the error says why the system does
// not allow it, and the process continues, closed from then on. Descriptors stay open
// as for any exec, but data already read from them is lost: call Exec before a command
// does anything.
func Exec(args, env []string) error {
	if closed {
		return nil
	}
	// From here on, no other process can open the memfd by /proc/PID/fd to change its
	// mode.
	if err := Close(); err != nil {
		return err
	}
	if strings.HasPrefix(executable(), memfdPrefix) {
		return errors.New(
			"the kernel does not protect processes of unreadable programs (fs.suid_dumpable is 1, or the process is traced)")
	}
	program, err := copyProgram()
	if err != nil {
		return err
	}
	defer unix.Close(program)
	return execUnreadable(program, args, env)
}

// copyProgram returns a sealed memfd that contains this program and allows only its
// execution.
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
	if err == unix.EINVAL { // before Linux 6.3, where every memfd is executable
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

// loadedSize returns the size of the part of a program that its execution needs. The
// debug sections after it are almost half of the file.
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
			return errors.New("the program was truncated while modsign read it")
		}
		size -= int64(n)
	}
	return nil
}

// execUnreadable executes a file that this user may not read. Root may read every file,
// so this thread drops the capabilities for that while the kernel opens the file. The
// new program has them again, like any program that root executes.
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

// dumpable returns 1 if the user's other processes may access this one.
func dumpable() int {
	value, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return 1
	}
	return value
}

// traced reports whether another process traces this one, or whether that is unknown.
func traced() bool {
	status, err := os.ReadFile("/proc/self/status")
	return err != nil || !bytes.Contains(status, []byte("\nTracerPid:\t0\n"))
}

func executable() string {
	path, _ := os.Readlink("/proc/self/exe")
	return path
}
