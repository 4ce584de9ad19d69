// Command init is the first and only program of the kernels that package
// kerneltest boots. It loads the modules of /cases one after the other with
// finit_module(2), by itself: kmod and busybox would decompress them first, and
// the kernel's own decompressor would not be tried.
//
// /cases/list.json says what to load. For each entry a line goes to the console,
// "modsign-case: " and a [Verdict] in JSON, and at the end "modsign-end: " with
// their number. Then the machine is rebooted. Whatever goes wrong is a line
// "modsign-error: ".
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Case is one entry of /cases/list.json.
type Case struct {
	Name       string
	File       string // in /cases
	Compressed bool   // MODULE_INIT_COMPRESSED_FILE is set
	Keep       bool   // it stays loaded
}

// A Verdict is what the kernel said to a case.
type Verdict struct {
	Name  string
	Errno int      // of finit_module, 0 when the module was loaded
	Log   []string // what the kernel logged from before the call until after it
	Nanos int64    // how long the call took
}

func main() {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err == nil {
		if err = run(console); err != nil {
			fmt.Fprintln(console, "modsign-error:", err)
		}
		console.Close()
	}
	// QEMU is told not to reboot, and ends instead.
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run(console *os.File) error {
	for _, m := range []struct{ target, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// The kernel's own lines are not to get between ours: they come through
	// /dev/kmsg. A panic is printed all the same.
	const consoleLevel = 8 // SYSLOG_ACTION_CONSOLE_LEVEL
	if _, _, errno := unix.Syscall(unix.SYS_SYSLOG, consoleLevel, 0, 1); errno != 0 {
		return fmt.Errorf("syslog: %w", errno)
	}
	kmsg, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("/dev/kmsg: %w", err)
	}
	list, err := os.ReadFile("/cases/list.json")
	if err != nil {
		return err
	}
	var cases []Case
	if err := json.Unmarshal(list, &cases); err != nil {
		return err
	}
	for _, c := range cases {
		v, err := try(c, kmsg)
		if err != nil {
			return fmt.Errorf("case %q: %w", c.Name, err)
		}
		line, err := json.Marshal(v)
		if err != nil {
			return err
		}
		fmt.Fprintf(console, "modsign-case: %s\n", line)
	}
	fmt.Fprintf(console, "modsign-end: %d\n", len(cases))
	return nil
}

// try loads one module, and unloads it again unless it is to stay.
func try(c Case, kmsg int) (Verdict, error) {
	v := Verdict{Name: c.Name}
	before, err := loaded()
	if err != nil {
		return v, err
	}
	if _, err := read(kmsg); err != nil { // what came before
		return v, err
	}
	f, err := os.Open(filepath.Join("/cases", c.File))
	if err != nil {
		return v, err
	}
	defer f.Close()
	flags := 0
	if c.Compressed {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	begin := time.Now()
	err = unix.FinitModule(int(f.Fd()), "", flags)
	v.Nanos = time.Since(begin).Nanoseconds()
	errno, refused := errors.AsType[unix.Errno](err)
	if err != nil && !refused {
		return v, err
	}
	v.Errno = int(errno)
	if v.Log, err = read(kmsg); err != nil || errno != 0 || c.Keep {
		return v, err
	}
	after, err := loaded()
	if err != nil {
		return v, err
	}
	for _, name := range after {
		if !slices.Contains(before, name) {
			return v, unix.DeleteModule(name, 0)
		}
	}
	return v, errors.New("the kernel loaded it, and /proc/modules does not tell of it")
}

// loaded lists the modules that are loaded.
func loaded() ([]string, error) {
	list, err := os.ReadFile("/proc/modules")
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(list)) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	return names, nil
}

// read takes all lines that the kernel itself has logged since it was called last.
// A record is "level,number,time,flags;line", and perhaps lines that begin with a
// space, of a dictionary.
func read(kmsg int) ([]string, error) {
	var lines []string
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(kmsg, record)
		if err == unix.EAGAIN {
			return lines, nil
		}
		if err != nil {
			return nil, fmt.Errorf("/dev/kmsg: %w", err)
		}
		_, text, _ := bytes.Cut(record[:n], []byte(";"))
		line, _, _ := bytes.Cut(text, []byte("\n"))
		lines = append(lines, string(line))
	}
}
