//go:build ignore

// Hashall hashes the files below a directory with sha256 or shake256, two for each
// processor at a time, and writes nothing:
//
//	hashall HASH DIR
//
// For scripts/bench: the least time that hashing modules can take.
package main

import (
	"crypto/sha256"
	"crypto/sha3"
	"hash"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// hashes begin a hash. What has one reads what it makes of the bytes.
var hashes = map[string]func() hasher{
	"sha256":   func() hasher { return sum{sha256.New()} },
	"shake256": func() hasher { return sha3.NewSHAKE256() },
}

type hasher interface {
	io.ReadWriter
	Reset()
}

type sum struct{ hash.Hash }

func (s sum) Read(p []byte) (int, error) { return copy(p, s.Sum(nil)), nil }

func main() {
	if len(os.Args) != 3 || hashes[os.Args[1]] == nil {
		log.Fatal("usage: hashall {sha256|shake256} DIR")
	}
	paths := make(chan string, 1024)
	var group sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		group.Go(func() {
			buf := make([]byte, 256<<10)
			h, digest := hashes[os.Args[1]](), make([]byte, 32)
			for path := range paths {
				f, err := os.Open(path)
				if err != nil {
					log.Fatal(err)
				}
				h.Reset()
				if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf); err != nil {
					log.Fatal(err)
				}
				h.Read(digest)
				f.Close()
			}
		})
	}
	err := filepath.WalkDir(os.Args[2], func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			paths <- path
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	close(paths)
	group.Wait()
}
