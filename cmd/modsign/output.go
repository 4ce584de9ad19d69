package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/compress"
)

// checkOutput refuses a file for a result if writing it would destroy what the command
// reads, a module, or a private key. The flag, or what else names the file, is for the
// error.
func checkOutput(flag, path string, inputs ...string) error {
	if path == "" {
		return nil
	}
	for _, input := range inputs {
		if input != "" && isSameFile(path, input) {
			return usagef("%s: %s is also read or written by this command as %s: name another file", flag, path, input)
		}
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil // nothing to destroy, or writing says what is wrong
	}
	if strings.HasSuffix(strings.TrimSuffix(path, compress.FromName(path).Suffix()), ".ko") {
		return usagef("%s: %s is a module, which would be lost: name another file", flag, path)
	}
	if holdsPrivateKey(path) {
		return usagef("%s: %s holds a private key, which would be lost: name another file, or remove it first", flag, path)
	}
	return nil
}

// isSameFile reports whether two paths lead to one file, or will once they are written.
func isSameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	if errA == nil && errB == nil {
		return os.SameFile(infoA, infoB)
	}
	if errA == nil || errB == nil || filepath.Base(a) != filepath.Base(b) {
		return false
	}
	dirA, errA := os.Stat(filepath.Dir(a))
	dirB, errB := os.Stat(filepath.Dir(b))
	return errA == nil && errB == nil && os.SameFile(dirA, dirB)
}

// holdsPrivateKey reports whether a file has a private key in PEM or in OpenPGP's armour.
func holdsPrivateKey(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	head, _ := io.ReadAll(io.LimitReader(f, 1<<20)) // keys are smaller
	return bytes.Contains(head, []byte("-----BEGIN")) && bytes.Contains(head, []byte("PRIVATE KEY"))
}

// mayBeEmpty are the flags for which nothing is a value: the variant without a name.
var mayBeEmpty = map[string]bool{"variant": true}

// checkEmpty refuses flags and arguments that are empty, as those of a script are whose
// variable is not set: without them the command may do another thing than the script says.
func checkEmpty(cmd *cobra.Command, args []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		list, isList := f.Value.(pflag.SliceValue)
		switch {
		case err != nil:
		case isList:
			for _, value := range list.GetSlice() {
				if value == "" {
					err = usagef("--%s: its value is empty", f.Name)
				}
			}
		case f.Value.String() == "" && !mayBeEmpty[f.Name]:
			err = usagef("--%s: its value is empty", f.Name)
		}
	})
	for i, arg := range args {
		if arg == "" && err == nil {
			err = usagef("argument %d is empty", i+1)
		}
	}
	return err
}
