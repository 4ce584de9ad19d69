//go:build ignore

// Sha256all hashes the files below a directory, one for each processor at a time, and
// writes nothing. For scripts/bench: the least time that hashing modules can take.
package main

import (
	"crypto/sha256"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

func main() {
	paths := make(chan string, 1024)
	var group sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		group.Go(func() {
			buf := make([]byte, 256<<10)
			h := sha256.New()
			for path := range paths {
				f, err := os.Open(path)
				if err != nil {
					log.Fatal(err)
				}
				h.Reset()
				if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf); err != nil {
					log.Fatal(err)
				}
				h.Sum(nil)
				f.Close()
			}
		})
	}
	err := filepath.WalkDir(os.Args[1], func(path string, d fs.DirEntry, err error) error {
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
