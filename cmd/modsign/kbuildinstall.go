package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
)

func newKbuildInstallCommand(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "install [ARGUMENT OF MAKE...]",
		Short: "Run make modules_install as with the hook, without the hook",
		Long: `Install calls make modules_install with these arguments, as the hook does: Kbuild
installs its own files, modsign installs the modules, stripped, signed and compressed,
and depmod is called once. It writes no GNUmakefile, and so suits scripts.`,
		Example: `  modsign kbuild install -j8 INSTALL_MOD_PATH=/tmp/root
  modsign kbuild install -C /usr/src/linux M=$PWD`,
		DisableFlagParsing:    true,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
				return cmd.Help()
			}
			return kbuildInstall(cmd.Context(), u, args)
		},
	}
}

func kbuildInstall(ctx context.Context, u *ui, args []string) error {
	system := thisSystem(u)
	err := system.InstallOnce(ctx, args)
	if _, ok := errors.AsType[*kbuildrun.ExitError](err); ok {
		return exitStatus(exitError) // make's 2 has another meaning here
	}
	return err
}
