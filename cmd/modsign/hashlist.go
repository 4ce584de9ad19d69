package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
)

func newHashlistCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hashlist",
		Short: "Trust modules by built-in hashes instead of signatures",
		Long: `Hashlist serves kernels with CONFIG_MODULE_HASHES, which modsign kbuild patch adds.
Such a kernel loads the modules that it was built with, and needs no key. It has
the SHA-256 hashes of all modules built in (format list), or the root of a Merkle
tree of hashes, for which every module carries a proof (format merkle).

After modsign kbuild enable, make runs build and embed itself.`,
		Example: `  modsign hashlist build --objtree . > hashes
  modsign hashlist embed --objtree .
  modsign hashlist verify --kernel /boot/vmlinuz-6.12.0 /lib/modules/6.12.0
  modsign hashlist diff hashes-1 hashes-2`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newHashlistBuildCommand(u), newHashlistEmbedCommand(u), newHashlistVerifyCommand(u),
		newHashlistDiffCommand(u), newHashlistSignCommand(u), newHashlistCheckCommand(u))
	return cmd
}

// listOf describes a list in a sentence.
func listOf(l *hashlist.List) string {
	return fmt.Sprintf("the hash list of %s (%s)", l.Release, plural(len(l.Modules), "module"))
}

// noHashes adds a hint to the error about a kernel without hashes.
func noHashes(err error) error {
	if errors.Is(err, hashlist.ErrNoSection) {
		return withHint(err, "modsign kbuild patch adds CONFIG_MODULE_HASHES to a kernel's source")
	}
	return err
}

// readLimited reads a whole file of bounded size: a hash list (1 MB for ten thousand
// modules), a signature, or a keyring (30 MB for all of Debian's).
func readLimited(path string) ([]byte, error) {
	return readAtMost(path, 64<<20)
}

func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: larger than %s, which is too large for such a file", path, megabytes(limit))
	}
	return data, err
}
