package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersionCommand(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Long:  "Version shows the version of modsign, or the commit that it was built from, the Go release\nand the platform.",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			u.Result("modsign %s", version())
			return nil
		},
	}
}

// noArgs is for commands that take no arguments.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q", args[0])
	}
	return nil
}

// release is the version of a package of modsign, which its linker sets.
var release string

// version is what the linker knows: the release, or the module's version, or the
// commit.
func version() string {
	text := cmp.Or(release, "(unknown)")
	if info, ok := debug.ReadBuildInfo(); ok && release == "" {
		text = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && text == "(devel)" {
				text = s.Value
			}
		}
	}
	return fmt.Sprintf("%s (%s, %s/%s)", text, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
