package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/keygen/agent"
)

func newAgentCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Manage the process that holds a build's key",
		Long: `Start the key agent of an object tree, show its status, end it, or check the receipt
that it left.

The key agent is a process that signs for its user and for root. make starts one after
modsign kbuild enable, with a one-time key that it makes in its memory. modsign agent
start starts one that holds a key from elsewhere, such as a token. An agent ends when
it is told to, at the end of its lifetime, or when the object tree is gone; one with a
one-time key also after make clean and after the allowed number of installs. The
one-time key is gone then.`,
		Example: `  modsign agent start --key 'pkcs11:token=kernel;object=modules' build
  modsign agent status
  modsign agent forget build
  modsign agent receipt build/.modsign/receipt-0123456789abcdef.json`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAgentStartCommand(u), newAgentStatusCommand(u), newAgentForgetCommand(u), newReceiptCommand(u),
		newAgentServeCommand(u))
	return cmd
}

// memoryOpen is the warning where memory_hidden is false.
const memoryOpen = "other processes of the agent's user could open its memory while the agent started"

// treeArg has a command take the object tree as its argument, as it does with
// --objtree.
func treeArg(objtree *string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) > 1:
			return usagef("unexpected argument %q", args[1])
		case len(args) == 1 && cmd.Flags().Changed("objtree"):
			return usagef("%q and --objtree both name the object tree: give one", args[0])
		case len(args) == 1:
			*objtree = args[0]
		}
		return nil
	}
}

// interruptible runs what may wait for another process, and stops waiting when ctx ends.
func interruptible(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// field writes a line about a key agent.
func field(u *ui, name, format string, args ...any) {
	u.Result("%-16s%s", name+":", fmt.Sprintf(format, args...))
}

func dialAgent(objtree string) (*agent.Client, error) {
	return agent.Dial(filepath.Join(objtree, kbuildrun.Dir))
}
