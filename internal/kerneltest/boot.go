package kerneltest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
)

// A Case is a module to load.
type Case struct {
	Name       string
	File       string // path, or
	Data       []byte // content, if File is empty
	Compressed bool   // the kernel decompresses it: MODULE_INIT_COMPRESSED_FILE
	Keep       bool   // it stays loaded, for modules that need it
	Keyring    string // the content is a certificate, which root adds to the keyring of this name
}

// A Verdict is the kernel's result for a Case.
type Verdict struct {
	Name  string
	Errno syscall.Errno // of finit_module(2) or add_key(2), 0 if the kernel took the file
	Log   []string      // lines that the kernel logged meanwhile, without level and time
	Nanos int64         // duration of the call in the emulated machine
}

// bootLimit is the time limit of a kernel for the boot and all cases. Under emulation
// the boot takes some seconds and a case some hundredths of a second.
const bootLimit = 10 * time.Minute

// Boot boots a kernel image, loads the modules of the cases in order and returns the
// verdicts in the same order. It emulates the machine even if there is a /dev/kvm,
// which is unreliable inside a virtual machine and saves little time.
func Boot(t testing.TB, image string, cases []Case) []Verdict {
	t.Helper()
	verdicts, _ := bootCases(t, image, cases)
	return verdicts
}

// bootCases is Boot with more parameters of the kernel, and returns what the console showed too.
func bootCases(t testing.TB, image string, cases []Case, parameters ...string) ([]Verdict, []byte) {
	t.Helper()
	begin := time.Now()
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initrd")
	writeInitramfs(t, initrd, loader(t, dir), cases)
	console := bootWith(t, image, initrd, parameters)
	verdicts, err := parseConsole(console, cases)
	if err != nil {
		t.Fatalf("%s: %v\n%s", image, err, tail(console))
	}
	t.Logf("boot with %d cases: %s", len(cases), time.Since(begin).Round(time.Second/10))
	return verdicts, console
}

// boot boots an image and returns what the console shows until the machine ends.
func boot(t testing.TB, image, initrd string, devices ...string) []byte {
	t.Helper()
	return bootWith(t, image, initrd, nil, devices...)
}

// bootWith is boot with more parameters of the kernel.
func bootWith(t testing.TB, image, initrd string, parameters []string, devices ...string) []byte {
	t.Helper()
	cmdline := strings.Join(append([]string{"console=ttyS0 panic=-1 tsc=unstable"}, parameters...), " ")
	return machineOf(t, append([]string{"-kernel", image, "-initrd", initrd, "-append", cmdline}, devices...)...)
}

// machineOf runs a machine, and returns what the console shows until the machine ends.
func machineOf(t testing.TB, devices ...string) []byte {
	t.Helper()
	qemu := testmod.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, append([]string{
		"-accel", "tcg", "-cpu", "max", "-m", "512", "-display", "none", "-monitor",
		"none", "-nic", "none", "-serial", "stdio",
		"-no-reboot",
	}, devices...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	console, err := cmd.Output()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done within %s", bootLimit)
	}
	if err != nil {
		t.Fatalf("%q: %v\n%s%s", devices, err, stderr.Bytes(), tail(console))
	}
	return console
}

// parseConsole parses the loader's lines of the console.
func parseConsole(console []byte, cases []Case) ([]Verdict, error) {
	verdicts, ended, err := fromLoader[Verdict](console, "modsign-case")
	if err != nil {
		return nil, err
	}
	for i, c := range cases {
		if i >= len(verdicts) || verdicts[i].Name != c.Name {
			return nil, fmt.Errorf("no verdict on case %d, %q; the kernel may have panicked", i, c.Name)
		}
	}
	if !ended || len(verdicts) != len(cases) {
		return nil, fmt.Errorf("%d verdicts on %d cases, and the loader came to its end: %v", len(verdicts), len(cases),
			ended)
	}
	return verdicts, nil
}

// loadedCertificates returns the built-in certificates that the kernel says it trusts, in
// its order and words.
func loadedCertificates(console []byte) []string {
	var loaded []string
	trusted := false
	for line := range strings.Lines(string(console)) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, "Loading compiled-in ") { // certificates, or revocation certificates
			trusted = strings.HasSuffix(line, "] Loading compiled-in X.509 certificates")
		}
		if _, name, ok := strings.Cut(line, "] Loaded X.509 cert '"); ok && trusted {
			loaded = append(loaded, strings.TrimSuffix(name, "'"))
		}
	}
	return loaded
}

// fromLoader returns what the loader's lines of one kind say, and whether the loader came to
// its end.
func fromLoader[T any](console []byte, wanted string) (all []T, ended bool, err error) {
	for line := range strings.Lines(string(console)) {
		kind, text, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch kind {
		case wanted:
			var one T
			if err := json.Unmarshal([]byte(text), &one); err != nil {
				return nil, false, fmt.Errorf("line of the loader %q: %w", text, err)
			}
			all = append(all, one)
		case "modsign-error":
			return nil, false, fmt.Errorf("the loader: %s", text)
		case "modsign-end":
			ended = true
		}
	}
	return all, ended, nil
}

// loader builds the static program that is /init.
func loader(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "init")
	cmd := exec.Command(testmod.Program(t, "go", "golang-go"), "build", "-trimpath", "-ldflags=-s -w", "-o", path,
		"github.com/modsign/modsign/internal/kerneltest/init")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return path
}

// writeInitramfs writes the archive that the kernel unpacks: the loader, the modules,
// and the list that the loader reads.
func writeInitramfs(t testing.TB, path, loader string, cases []Case) {
	t.Helper()
	// listed is a case in the loader's list.
	type listed struct {
		Name, File       string
		Compressed, Keep bool
		Keyring          string `json:",omitempty"`
	}
	list := make([]listed, len(cases))
	a := newInitramfs(t, path, loader)
	packed := make(map[string]string) // by path, as many cases may use one file
	for i, c := range cases {
		list[i] = listed{c.Name, fmt.Sprintf("%d.ko", i), c.Compressed, c.Keep, c.Keyring}
		data := c.Data
		if c.File != "" {
			if name := packed[c.File]; name != "" {
				list[i].File = name
				continue
			}
			packed[c.File] = list[i].File
			data = read(t, c.File)
		}
		a.add("cases/"+list[i].File, syscall.S_IFREG|0o644, data)
	}
	a.addJSON(t, "cases/list.json", list)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
}

// newInitramfs begins an archive with the loader and the directories that it needs.
func newInitramfs(t testing.TB, path, loader string) *archive {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	a := &archive{w: bufio.NewWriter(f), file: f}
	for _, dir := range []string{"proc", "sys", "dev", "cases"} {
		a.add(dir, syscall.S_IFDIR|0o755, nil)
	}
	a.add("init", syscall.S_IFREG|0o755, read(t, loader))
	return a
}

// read returns the content of a file.
func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// archive writes a cpio archive in the format "newc", which the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w     *bufio.Writer
	file  io.Closer
	inode int
}

// add writes one file: a header of hexadecimal numbers, the name with a terminating
// zero, and the content. Name and content are padded to four bytes.
func (a *archive) add(name string, mode int, data []byte) {
	a.inode++
	fields := [13]int{a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0}
	header := "070701"
	for _, field := range fields {
		header += fmt.Sprintf("%08x", field)
	}
	header += name + "\x00"
	for _, part := range []string{header, string(data)} {
		io.WriteString(a.w, part+"\x00\x00\x00"[:-len(part)&3]) // Flush returns an error
	}
}

// addJSON writes a value as a file.
func (a *archive) addJSON(t testing.TB, name string, value any) {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	a.add(name, syscall.S_IFREG|0o644, data)
}

// close ends the archive, and returns the first error.
func (a *archive) close() error {
	a.add("TRAILER!!!", 0, nil)
	return errors.Join(a.w.Flush(), a.file.Close())
}
