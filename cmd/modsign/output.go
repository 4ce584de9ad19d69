package main

import (
	"cmp"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/keygen"
)

// checkOutput refuses a file for a result if writing it would destroy what the command
// reads or writes besides, a module, or a private key. The flag, or what else names the
// file, is for the error.
func checkOutput(flag, path string, others ...string) error {
	if path == "" {
		return nil
	}
	target := whereTo(path)
	for _, other := range others {
		if other != "" && (isSameFile(path, other) || target == whereTo(other)) {
			return usagef("%s: %s is also read or written by this command as %s: name another file", flag, path, other)
		}
	}
	for _, name := range []string{path, target} {
		if belongsToModules(name) {
			return usagef("%s: %s has the name of a file of modules, which would be lost: name another file", flag, name)
		}
	}
	if holdsPrivateKey(path) {
		return usagef("%s: %s holds a private key, which would be lost: name another file, or remove it first", flag, path)
	}
	return nil
}

// belongsToModules reports whether a file is by its name a module, a signature or a proof
// of one, or their list.
func belongsToModules(path string) bool {
	name := filepath.Base(path)
	module := strings.TrimSuffix(name, compress.FromName(name).Suffix())
	return strings.HasSuffix(module, ".ko") || strings.HasSuffix(name, ".ko.p7s") || name == "modules.order"
}

// whereTo returns where a path leads, over links that lead to nothing too.
func whereTo(path string) string {
	for range 40 { // links that the kernel follows
		// Not filepath.Split of a clean path: in link/../name the dots count from where the
		// link leads.
		dir, name := filepath.Split(path)
		if real, err := filepath.EvalSymlinks(cmp.Or(dir, ".")); err == nil {
			dir = real
		}
		path = filepath.Join(dir, name)
		link, err := os.Readlink(path)
		switch {
		case err != nil:
			if abs, err := filepath.Abs(path); err == nil {
				path = abs
			}
			return path
		case filepath.IsAbs(link):
			path = link
		default:
			path = dir + "/" + link
		}
	}
	return path
}

func isSameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// holdsPrivateKey reports whether a path leads to a file with a private key.
func holdsPrivateKey(path string) bool {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false // as writing will say
	}
	defer f.Close()
	head, _ := io.ReadAll(io.LimitReader(f, 1<<20)) // keys are smaller
	return keygen.IsPrivateKey(head)
}

// mayBeEmpty are the flags for which nothing is a value: the variant without a name, and an
// INSTALL_MOD_STRIP that strips nothing.
var mayBeEmpty = map[string]bool{"variant": true, "strip": true}

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
