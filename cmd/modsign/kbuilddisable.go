package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
)

func newKbuildDisableCommand(u *ui) *cobra.Command {
	var tree kbuildTree
	cmd := &cobra.Command{
		Use:   "disable",
		Short: "Undo enable, and destroy the one-time key",
		Long: `Disable removes what enable wrote, and destroys the one-time key of the object tree.
Nobody can then sign modules for the kernel that was built with it: if its modules are
not installed yet, build it again. Receipts stay. If a file was changed since enable,
disable names it and removes nothing. A tree without modsign is no error.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			hook, err := tree.hook()
			if err != nil {
				return err
			}
			ending, err := hook.End()
			if err != nil {
				return err
			}
			if ending.Enabled {
				u.Say("disabled in %s", hook.Objtree)
			} else {
				u.Say("modsign is not enabled in %s", hook.Objtree)
			}
			if ending.Key {
				u.Say("the one-time key of %s is destroyed: nothing more can be signed for the kernel that was built with it; "+
					"its receipt is in %s", hook.Objtree, filepath.Join(hook.Objtree, kbuildrun.Dir))
			}
			return nil
		},
	}
	tree.addFlags(cmd.Flags())
	return cmd
}
