package main

import "github.com/spf13/cobra"

func newKernelCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kernel",
		Short: "Change a built kernel image",
		Long: `Kernel changes kernel images after their build. It does not sign them for Secure Boot:
sbsign does.`,
		Example: `  modsign kernel add-cert vmlinuz --cert signing_key.x509 --output vmlinuz.new`,
		Args:    noSuchCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKernelAddCertCommand(u))
	return cmd
}
