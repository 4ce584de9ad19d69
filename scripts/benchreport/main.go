// Benchreport makes docs/performance.md and its charts from what scripts/bench has
// measured:
//
//	go run . RESULTS DIR
//
// writes performance.md, performance.svg and scale.svg to DIR. With - as DIR it prints the
// tables alone. It is a module of its own, so that the library for the charts is no
// dependency of modsign.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: benchreport RESULTS DIR")
		os.Exit(2)
	}
	if err := report(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "benchreport:", err)
		os.Exit(1)
	}
}

func report(from, dir string) error {
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer file.Close()
	all, err := readResults(file)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	var text bytes.Buffer
	writeReport(&text, all)
	if dir == "-" {
		for line := range strings.Lines(text.String()) {
			if strings.HasPrefix(line, "|") {
				fmt.Print(line)
			}
		}
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, "performance.md"), text.Bytes(), 0o644); err != nil {
		return err
	}
	if err := drawInstalls(all, dir); err != nil {
		return err
	}
	return drawScale(all, dir)
}
