package compress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/modsign/modsign/internal/childenv"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// xzDict is the dictionary, in bytes, of the streams that runXZ writes
// (--lzma2=dict=1MiB).
const xzDict = 1 << 20

// xzArgs returns the options of scripts/Makefile.modinst. The level comes before the
// dictionary, because a level's preset would override the dictionary.
func xzArgs(level int) []string {
	lzma2 := "--lzma2=dict=1MiB"
	if level != 0 {
		lzma2 = fmt.Sprintf("--lzma2=preset=%d,dict=1MiB", level)
	}
	return []string{"--check=crc32", lzma2}
}

// runXZ compresses src with the xz program, which reads XZ_DEFAULTS and XZ_OPT as in
// the kernel's build.
func runXZ(ctx context.Context, program string, level int, dst io.Writer, src io.Reader) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	out := &xzOutput{dst: dst}
	var words wordsOfError
	cmd := exec.CommandContext(ctx, program, xzArgs(level)...)
	cmd.Env = childenv.WithoutSecrets(cmd.Environ())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = src, out, &words
	// modsign handles an interrupt from the terminal itself: xz would die of it before
	// ctx ends, as if xz had failed. A process group also ends the children if xz is a
	// wrapper.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// The source or the destination may still block.
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case out.err.Load() != nil:
		return *out.err.Load()
	case err != nil:
		return fmt.Errorf("%s: %w%s", program, err, words.after(": "))
	case len(out.head) < len(xzKernelHead):
		return fmt.Errorf("%s: wrote no xz stream", program)
	}
	return nil
}

// xzKernelHead is the beginning of every xz stream that the kernel reads and modsign
// writes: the magic, and the flags for CRC32.
const xzKernelHead = "\xfd7zXZ\x00\x00\x01"

// xzOutput checks the head of what xz writes and passes everything on.
type xzOutput struct {
	dst  io.Writer
	head []byte
	err  atomic.Pointer[error] // why it stopped
}

func (w *xzOutput) Write(p []byte) (int, error) {
	if n := len(xzKernelHead) - len(w.head); n > 0 {
		w.head = append(w.head, p[:min(n, len(p))]...)
		if !strings.HasPrefix(xzKernelHead, string(w.head)) {
			err := errors.New("the xz program did not write an xz stream with CRC32: " +
				"check XZ_OPT and XZ_DEFAULTS in the environment")
			w.err.Store(&err)
			return 0, err
		}
	}
	n, err := w.dst.Write(p)
	if err != nil {
		w.err.Store(&err)
	}
	return n, err
}

// wordsOfError keeps the first lines of a program's error output.
type wordsOfError struct {
	mu   sync.Mutex
	said []byte
}

func (w *wordsOfError) Write(p []byte) (int, error) {
	const enough = 1024
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, p[:min(len(p), enough-len(w.said))]...)
	return len(p), nil
}

// after returns the error output after a separator, or "" if there is none.
func (w *wordsOfError) after(separator string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if words := strings.TrimSpace(string(w.said)); words != "" {
		return separator + words
	}
	return ""
}

// fallbackXZ compresses src without the xz program. The library has no levels and
// cannot be reused: each stream leaves 10 MB of garbage.
func (e *Encoder) fallbackXZ(dst io.Writer, src io.Reader) error {
	out := bufio.NewWriterSize(dst, copyBuffer)
	// The library's BinaryTree matcher takes minutes and compresses worse.
	w, err := xz.WriterConfig{CheckSum: xz.CRC32, DictCap: xzDict, Matcher: lzma.HashTable4}.NewWriter(out)
	if err != nil {
		return err
	}
	if err := e.copy(w, src); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Flush()
}
