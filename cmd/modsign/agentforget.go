package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
)

func newAgentForgetCommand(u *ui) *cobra.Command {
	var objtree string
	cmd := &cobra.Command{
		Use:   "forget [DIR]",
		Short: "Destroy an object tree's one-time key",
		Long: `End the key agent of the object tree DIR, by default the current directory. Forget
returns when the key is gone and the receipt is written. Without an agent, it says
why and exits with 1.`,
		Args: treeArg(&objtree),
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := interruptible(cmd.Context(), func() error {
				client, err := dialAgent(objtree)
				if err != nil {
					return err
				}
				defer client.Close()
				return client.Forget()
			})
			if err != nil {
				return err
			}
			u.Say("the one-time key of %s is gone; its receipt is in %s", objtree, filepath.Join(objtree, kbuildrun.Dir))
			return nil
		},
	}
	addObjtree(cmd.Flags(), &objtree)
	return cmd
}
