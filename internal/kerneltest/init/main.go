// Command init is the first and only program of the kernels that package kerneltest
// boots. It loads the modules of /cases one after the other with finit_module(2). It
// does not use kmod or busybox, because they decompress modules first, and the kernel's
// own decompressor would not be tested.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/keyctl"
)

// A Case is one entry of /cases/list.json.
type Case struct {
	Name       string
	File       string // in /cases
	Compressed bool   // MODULE_INIT_COMPRESSED_FILE is set
	Keep       bool   // it stays loaded
	Keyring    string // the file is a certificate to add to the keyring of this name
}

// A Verdict is the kernel's result for a case.
type Verdict struct {
	Name  string
	Errno int      // of finit_module or add_key, 0 if the kernel took the file
	Log   []string // lines that the kernel logged during the call
	Nanos int64    // duration of the call
}

func main() {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err == nil {
		if err = run(console); err != nil {
			fmt.Fprintln(console, "modsign-error:", err)
		}
		console.Close()
	}
	// QEMU runs with -no-reboot, and ends instead.
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run(console *os.File) error {
	for _, m := range []struct{ target, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// Keep the kernel's own lines, which come through /dev/kmsg, away from those of
	// this program. A panic is still printed.
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
	// A case may have loaded the module of efivarfs. Without EFI there is neither.
	for target, kind := range map[string]string{
		"/sys/firmware/efi/efivars": "efivarfs", "/sys/kernel/security": "securityfs",
	} {
		_ = unix.Mount(kind, target, kind, unix.MS_RDONLY, "")
	}
	if err := runCommands(console); err != nil {
		return err
	}
	fmt.Fprintf(console, "modsign-end: %d\n", len(cases))
	return nil
}

// A Result is what a command wrote, and how it ended.
type Result struct {
	Code   int
	Output string
}

// runCommands runs the commands of /commands.json, if there is one, one after the other.
// What is before a command's path is of the form NAME=VALUE, and its environment.
func runCommands(console *os.File) error {
	list, err := os.ReadFile("/commands.json")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var commands [][]string
	if err == nil {
		err = json.Unmarshal(list, &commands)
	}
	if err != nil {
		return err
	}
	for _, words := range commands {
		program := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "/") })
		cmd := exec.Command(words[program], words[program+1:]...)
		cmd.Env = words[:program]
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			return fmt.Errorf("%q: %w", words, err)
		}
		line, err := json.Marshal(Result{cmd.ProcessState.ExitCode(), string(out)})
		if err != nil {
			return err
		}
		fmt.Fprintf(console, "modsign-result: %s\n", line)
	}
	return nil
}

// try loads one module, and unloads it unless it must stay.
func try(c Case, kmsg int) (Verdict, error) {
	v := Verdict{Name: c.Name}
	before, err := loaded()
	if err != nil {
		return v, err
	}
	if _, err := read(kmsg); err != nil { // skip earlier lines
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
	if c.Keyring != "" {
		err = addKey(c.Keyring, f)
	} else {
		err = unix.FinitModule(int(f.Fd()), "", flags)
	}
	v.Nanos = time.Since(begin).Nanoseconds()
	errno, refused := errors.AsType[unix.Errno](err)
	if err != nil && !refused {
		return v, err
	}
	v.Errno = int(errno)
	if v.Log, err = read(kmsg); err != nil || errno != 0 || c.Keep || c.Keyring != "" {
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
	return v, errors.New("the kernel loaded the module, but /proc/modules does not list the module")
}

// addKey adds a certificate to a keyring, as "keyctl padd asymmetric ”" does.
func addKey(keyring string, certificate io.Reader) error {
	list, err := os.Open("/proc/keys")
	if err != nil {
		return err
	}
	defer list.Close()
	rings, err := keyctl.Keyrings(list)
	if err != nil {
		return err
	}
	ring, ok := rings[keyring]
	if !ok {
		return fmt.Errorf("/proc/keys has no %s", keyring)
	}
	der, err := io.ReadAll(certificate)
	if err == nil {
		_, err = unix.AddKey("asymmetric", "", der, ring)
	}
	return err
}

// loaded lists the loaded modules.
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

// read returns all lines that the kernel itself has logged since the last call. A
// record is "level,number,time,flags;line", and perhaps lines of a dictionary, which
// begin with a space.
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
