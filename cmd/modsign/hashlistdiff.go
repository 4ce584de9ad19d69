package main

import (
	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
)

func newHashlistDiffCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff LIST LIST",
		Short: "Show in which modules two builds differ",
		Long: `Diff compares two lists, and names the modules that were added, removed or changed.
It also says whether their order differs. Two lists of a reproducible build do not
differ. Diff exits with 0 if the lists are the same, and with 4 if they differ.`,
		Example: `  modsign hashlist diff hashes-monday hashes-tuesday`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("diff compares two lists, but the command line has %d", len(args))
			}
			return hashlistDiff(u, args[0], args[1])
		},
	}
	addQuiet(cmd.Flags(), u)
	return cmd
}

func hashlistDiff(u *ui, pathA, pathB string) error {
	a, err := hashlist.ReadFile(pathA)
	if err != nil {
		return err
	}
	b, err := hashlist.ReadFile(pathB)
	if err != nil {
		return err
	}
	changes, reordered := hashlist.Diff(a, b)
	var added, removed, changed int
	for _, c := range changes {
		switch {
		case c.Old == nil:
			added++
			u.Result("%s: added", c.Path)
		case c.New == nil:
			removed++
			u.Result("%s: removed", c.Path)
		default:
			changed++
			u.Result("%s: changed, from %d to %d bytes", c.Path, c.Old.Size, c.New.Size)
		}
	}
	if reordered {
		u.Result("the order of the modules differs")
	}
	if a.Release != b.Release {
		u.Result("the releases are %s and %s", a.Release, b.Release)
	}
	if len(changes) == 0 && !reordered && a.Release == b.Release {
		u.Note("the lists are the same: %s of %s", plural(len(a.Modules), "module"), a.Release)
		return nil
	}
	u.Note("of %d and %s: %d added, %d removed, %d changed",
		len(a.Modules), plural(len(b.Modules), "module"), added, removed, changed)
	return exitStatus(exitRefused)
}
