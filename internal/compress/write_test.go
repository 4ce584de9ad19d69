package compress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/modsign/modsign/internal/testmod"
)

// fakeXZ puts a shell script in the place of the xz program.
func fakeXZ(t *testing.T, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "xz"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	return dir
}

func TestFallbackXZ(t *testing.T) {
	xz := testmod.Program(t, "xz", "xz-utils")
	t.Setenv("PATH", t.TempDir())
	e := newEncoder(t, 0)
	if p := e.xzProgram; p != "" {
		t.Fatalf("found %s", p)
	}
	compressed(t, e, Gzip, []byte("nothing of xz"))
	if notes := e.Notes(); notes != nil {
		t.Errorf("notes before any xz: %q", notes)
	}
	for _, size := range []int{0, 1, 65536, 1<<20 + 1} {
		data := machineCode(t, size)
		stream := compressed(t, e, XZ, data)
		if string(stream[:8]) != xzKernelHead {
			t.Errorf("%d bytes: head % x", size, stream[:8])
		}
		if size > 0 {
			if h, err := parseXZBlockHeader(stream[12:24]); err != nil || h.dict != 1<<20 {
				t.Errorf("%d bytes: block header %v, %v", size, h, err)
			}
		}
		if err := KernelError(XZ, bytes.NewReader(stream), int64(len(stream))); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if got, err := decompress(XZ, bytes.NewReader(stream), int64(size)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: %v", size, err)
		}
		name := testmod.WriteFile(t, "m.ko.xz", stream)
		if got := testmod.Run(t, xz, "-dc", name); !bytes.Equal(got, data) {
			t.Errorf("%d bytes: xz -dc returns other bytes", size)
		}
	}
	if notes := e.Notes(); len(notes) != 1 || !strings.Contains(notes[0], "install xz-utils") {
		t.Errorf("notes: %q", notes)
	}
	e = newEncoder(t, 9)
	compressed(t, e, XZ, nil)
	if notes := e.Notes(); len(notes) != 1 || !strings.Contains(notes[0], "level 9") {
		t.Errorf("notes: %q", notes)
	}
}

// endless is a source that never ends. It signals when some of it has been read.
type endless struct {
	n    int
	busy chan struct{}
}

func (r *endless) Read(p []byte) (int, error) {
	if r.n += len(p); r.n > 1<<20 && r.busy != nil {
		close(r.busy)
		r.busy = nil
	}
	return len(p), nil
}

func TestCancel(t *testing.T) {
	real := testmod.Program(t, "xz", "xz-utils")
	// The program is a wrapper that records its own process ID and that of xz.
	dir := fakeXZ(t, "exec 3<&0\necho $$ > ${0%/*}/pids\n"+real+" \"$@\" <&3 &\necho $! >> ${0%/*}/pids\nwait\n")
	withProgram := newEncoder(t, 0)
	t.Setenv("PATH", t.TempDir())
	without := newEncoder(t, 0)
	because := errors.New("that is enough")
	for name, c := range map[string]struct {
		e *Encoder
		f Format
	}{"xz": {withProgram, XZ}, "xz library": {without, XZ}, "gzip": {without, Gzip}, "zstd": {without, Zstd},
		"none": {without, None}} {
		ctx, cancel := context.WithCancelCause(t.Context())
		busy := make(chan struct{})
		go func() {
			if name == "xz" { // sh has to have started it
				for {
					pids, _ := os.ReadFile(filepath.Join(dir, "pids"))
					if bytes.Count(pids, []byte("\n")) == 2 {
						break
					}
					time.Sleep(time.Millisecond)
				}
			} else {
				<-busy
			}
			cancel(because)
		}()
		err := c.e.Compress(ctx, c.f, io.Discard, &endless{busy: busy}, 1<<62)
		if !errors.Is(err, because) {
			t.Errorf("%s: error %v", name, err)
		}
		if err := c.e.Compress(ctx, c.f, io.Discard, strings.NewReader(""), 0); !errors.Is(err, because) {
			t.Errorf("%s, after the end: error %v", name, err)
		}
	}
	pids, err := os.ReadFile(filepath.Join(dir, "pids"))
	if err != nil || len(strings.Fields(string(pids))) != 2 {
		t.Fatalf("pids: %q, %v", pids, err)
	}
	for i, field := range strings.Fields(string(pids)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		// Compress has waited for the process that it started; init may not yet have
		// waited for that one's child.
		if !gone(pid, i == 1) {
			t.Errorf("process %d still runs", pid)
		}
	}
}

// gone reports whether a process has ended. With wait it has to have ended after a
// while.
func gone(pid int, wait bool) bool {
	for range 500 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || syscall.Kill(pid, 0) == syscall.ESRCH {
			return true
		}
		if wait && strings.Contains(string(stat), ") Z ") {
			return true
		}
		if !wait {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func TestXZProgramFails(t *testing.T) {
	for _, c := range []struct{ what, script, err string }{
		{"its words", "cat >/dev/null; echo no memory left >&2; exit 1", "exit status 1: no memory left"},
		{"without words", "exit 3", "exit status 3"},
		{"many words", "cat >/dev/null; for i in 1 2 3 4 5 6 7 8 9; do echo ${i}" + strings.Repeat("x", 200) +
			" >&2; done; exit 1", "1xxx"},
		{"no output", "cat >/dev/null", "wrote no xz stream"},
		{"input not read", "printf '\\3757zXZ\\0\\0\\1'", "did not read its input"},
		{"other output", "exec cat", "XZ_OPT"},
	} {
		path := os.Getenv("PATH")
		fakeXZ(t, "PATH="+path+"\n"+c.script)
		data := bytes.Repeat([]byte("data"), 1<<18)
		err := newEncoder(t, 0).Compress(t.Context(), XZ, io.Discard, bytes.NewReader(data), int64(len(data)))
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", c.what, err, c.err)
		} else if len(err.Error()) > 1200 {
			t.Errorf("%s: an error of %d bytes", c.what, len(err.Error()))
		}
		t.Setenv("PATH", path)
	}
}

// TestXZHasNoSecrets checks that xz does not get the secrets of keys.
func TestXZHasNoSecrets(t *testing.T) {
	xz := testmod.Program(t, "xz", "xz-utils")
	t.Setenv("KBUILD_SIGN_PIN", "secret")
	t.Setenv("VAULT_TOKEN", "secret")
	path := os.Getenv("PATH")
	dir := fakeXZ(t, "PATH="+path+"\nenv >\"${0%/*}/environ\"\nexec "+xz+" \"$@\"")
	compressed(t, newEncoder(t, 0), XZ, []byte("data"))
	environ, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil || !bytes.Contains(environ, []byte("PATH=")) || bytes.Contains(environ, []byte("secret")) {
		t.Errorf("the environment of xz: %v, %q", err, environ)
	}
}

// The environment changes what xz does, as in the kernel's build, but never such that
// the kernel cannot read the result.
func TestXZEnvironment(t *testing.T) {
	testmod.Program(t, "xz", "xz-utils")
	data := machineCode(t, 100_000)
	e := newEncoder(t, 0)
	t.Setenv("XZ_OPT", "--check=sha256 -9 -T2")
	stream := compressed(t, e, XZ, data)
	if err := KernelError(XZ, bytes.NewReader(stream), int64(len(stream))); err != nil {
		t.Error(err)
	}
	t.Setenv("XZ_OPT", "--decompress")
	if err := e.Compress(t.Context(), XZ, io.Discard, bytes.NewReader(data), int64(len(data))); err == nil {
		t.Error("xz was told to decompress, and Compress did not fail")
	}
}

// limitedWriter fails after n bytes.
type limitedWriter struct{ n int }

var errNoSpace = errors.New("no space left on device")

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		return 0, errNoSpace
	}
	return len(p), nil
}

func TestCompressFails(t *testing.T) {
	withProgram := newEncoder(t, 0)
	t.Setenv("PATH", t.TempDir())
	without := newEncoder(t, 0)
	data := machineCode(t, 200_000)
	size := int64(len(data))
	broken := errors.New("input/output error")
	for name, c := range map[string]struct {
		e *Encoder
		f Format
	}{"xz": {withProgram, XZ}, "xz library": {without, XZ}, "gzip": {without, Gzip}, "zstd": {without, Zstd},
		"none": {without, None}} {
		for _, n := range []int{0, 1, 10_000} {
			if err := c.e.Compress(t.Context(), c.f, &limitedWriter{n}, bytes.NewReader(data), size); !errors.Is(err,
				errNoSpace) {
				t.Errorf("%s, no space after %d bytes: error %v", name, n, err)
			}
			src := io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(broken))
			if err := c.e.Compress(t.Context(), c.f, io.Discard, src, size); !errors.Is(err, broken) {
				t.Errorf("%s, source broken after %d bytes: error %v", name, n, err)
			}
		}
		for _, n := range []int64{0, 1, size - 1} {
			err := c.e.Compress(t.Context(), c.f, io.Discard, bytes.NewReader(data), n)
			if err == nil || !strings.Contains(err.Error(), "longer than the expected") {
				t.Errorf("%s, %d bytes said to be %d: error %v", name, size, n, err)
			}
		}
		for _, n := range []int64{size + 1, 1 << 40} {
			err := c.e.Compress(t.Context(), c.f, io.Discard, bytes.NewReader(data), n)
			if err == nil || !strings.Contains(err.Error(), "ends after 200000 of") {
				t.Errorf("%s, %d bytes said to be %d: error %v", name, size, n, err)
			}
		}
		// A failure does not affect later calls.
		var out bytes.Buffer
		if err := c.e.Compress(t.Context(), c.f, &out, bytes.NewReader(data), size); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := decompress(c.f, &out, size); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s, after failures: %v", name, err)
		}
	}
}
