package compress

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/modsign/modsign/internal/testmod"
)

// TestFile reads files of one stream and of two, with padding and with other data behind.
func TestFile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pkg, command string
		zeros        bool
	}{
		{"gzip", "gzip -nc", true}, {"xz-utils", "xz -c", true}, {"zstd", "zstd -qc", false}, {"bzip2", "bzip2 -c", false},
		{"xz-utils", "xz --format=lzma -c", true}, {"lzop", "lzop -c", true},
		{"lz4", "lz4 -qlc", true}, {"lz4", "lz4 -qc", false},
	} {
		args := strings.Fields(test.command)
		cmd := exec.Command(testmod.Program(t, args[0], test.pkg), args[1:]...)
		cmd.Stdin = strings.NewReader("content")
		stream, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		read := func(parts ...[]byte) (string, error) {
			f, err := NewFile(iotest.HalfReader(bytes.NewReader(bytes.Join(parts, nil))))
			if err != nil {
				return "", err
			}
			defer f.Close()
			b, err := io.ReadAll(f)
			return string(b), err
		}
		if got, err := read(stream); got != "content" || err != nil {
			t.Errorf("%s: %q, %v", test.command, got, err)
		}
		if got, err := read(stream, stream, stream); got != "contentcontentcontent" || err != nil {
			t.Errorf("%s, three streams: %q, %v", test.command, got, err)
		}
		if got, err := read(stream, make([]byte, 510)); got != "content" || (err == nil) != test.zeros {
			t.Errorf("%s, zeros behind: %q, %v", test.command, got, err)
		}
		if got, err := read(stream, []byte("\xffother data")); got != "content" || !errors.Is(err, ErrTrailing) {
			t.Errorf("%s, data behind: %q, %v", test.command, got, err)
		}
		if got, err := read(stream[:len(stream)-2]); err == nil && test.command != "lz4 -qlc" && args[0] != "xz" {
			t.Errorf("%s, cut off: %q", test.command, got)
		}
	}
	zstd, err := exec.Command("sh", "-c", "printf content | zstd -qc").Output()
	if err == nil {
		skip := []byte("\x53\x2a\x4d\x18\x03\x00\x00\x00abc")
		f, err := NewFile(bytes.NewReader(bytes.Join([][]byte{zstd, skip, zstd}, nil)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if b, err := io.ReadAll(f); string(b) != "contentcontent" || err != nil {
			t.Errorf("a frame to be skipped: %q, %v", b, err)
		}
	}
	if _, err := NewFile(strings.NewReader("text")); !errors.Is(err, ErrNoStream) {
		t.Errorf("text: %v", err)
	}
}
