package keyfile

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

// Passphrase returns the first line of a file, which may be a pipe. Its errors name the
// file, and hold no byte of it.
func Passphrase(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const limit = 4096
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	line, _, _ := bytes.Cut(TrimBOM(b), []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case len(line) == 0:
		return nil, fmt.Errorf("%s: the first line is empty; it must be the passphrase", path)
	case len(line) >= limit:
		return nil, fmt.Errorf("%s: the first line has %d bytes or more; it must be the passphrase", path, limit)
	case bytes.HasPrefix(line, []byte("-----BEGIN ")):
		return nil, fmt.Errorf("%s: file is PEM; its first line must be the passphrase", path)
	}
	return line, nil
}
