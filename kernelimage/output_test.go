package kernelimage

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/testmod"
)

// TestOutput writes into a FIFO, over a symbolic link, and never in the place of what is
// no regular file.
func TestOutput(t *testing.T) {
	t.Parallel()
	cert := testmod.NewKey(t, "ecdsa:p256").Certificate
	dir := t.TempDir()
	want := filepath.Join(dir, "want")
	if _, err := AddCertificate(t.Context(), small, cert, Options{Output: want}); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}

	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	// Opened for both, so that neither side waits for the other one if there is an error.
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := make(chan []byte, 1)
	go func() {
		data := make([]byte, len(made))
		n, _ := io.ReadFull(f, data)
		read <- data[:n]
	}()
	if _, err := AddCertificate(t.Context(), small, cert, Options{Output: fifo}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(fifo); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Fatalf("the FIFO was replaced: %v, %v", info, err)
	}
	if !bytes.Equal(<-read, made) {
		t.Error("the FIFO got something else")
	}

	link, target := filepath.Join(dir, "link"), testmod.WriteFile(t, "target", []byte("old"))
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if _, err := AddCertificate(t.Context(), small, cert, Options{Output: link}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link was replaced: %v, %v", info, err)
	}
	if data, err := os.ReadFile(target); err != nil || !bytes.Equal(data, made) {
		t.Errorf("%d bytes behind the link: %v", len(data), err)
	}
	if _, err := AddCertificate(t.Context(), small, cert, Options{Output: dir}); err == nil {
		t.Error("a directory was written")
	}
}

// TestHardLink counts the names that keep the old image.
func TestHardLink(t *testing.T) {
	t.Parallel()
	cert := testmod.NewKey(t, "ecdsa:p256").Certificate
	kernel, err := os.ReadFile(small)
	if err != nil {
		t.Fatal(err)
	}
	path := testmod.WriteFile(t, "vmlinux", kernel)
	other := filepath.Join(t.TempDir(), "other")
	if err := os.Link(path, other); err != nil {
		t.Fatal(err)
	}
	added, err := AddCertificate(t.Context(), path, cert, Options{})
	if err != nil || added.Links != 1 {
		t.Fatalf("%+v, %v", added, err)
	}
	if data, err := os.ReadFile(other); err != nil || !bytes.Equal(data, kernel) {
		t.Errorf("the other name has another image: %v", err)
	}
}
