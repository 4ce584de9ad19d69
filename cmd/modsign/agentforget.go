package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
)

func newAgentForgetCommand(u *ui) *cobra.Command {
	var objtree string
	kept := false
	cmd := &cobra.Command{
		Use:   "forget [DIR]",
		Short: "End an object tree's key agent",
		Long: `End the key agent of the object tree DIR, by default the current directory. Forget
returns when the process is gone, with a one-time key, and the receipt is written.
Without an agent, it says why and exits with 1.`,
		Args: treeArg(&objtree),
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := interruptible(cmd.Context(), func() error {
				client, err := dialAgent(objtree)
				if err != nil {
					return err
				}
				defer client.Close()
				kept = client.Kept()
				return client.Forget()
			})
			if err != nil {
				return err
			}
			if kept {
				u.Say("the key agent of %s has ended, and the key is closed", objtree)
				return nil
			}
			u.Say("the one-time key of %s is gone; its receipt is in %s", objtree, filepath.Join(objtree, kbuildrun.Dir))
			return nil
		},
	}
	addObjtree(cmd.Flags(), &objtree)
	return cmd
}
