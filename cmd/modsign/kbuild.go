package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/kbuildrun"
)

func newKbuildCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kbuild",
		Short: "Sign modules as part of make modules_install",
		Long: `Kbuild makes modsign a part of a kernel's build. After modsign kbuild enable, make
keeps the one-time key of the build in the memory of a small process (modsign agent),
make modules_install strips, signs and compresses all modules in one parallel run, and
make clean destroys the key. No private key is ever on a disk. Signing needs no patch to the
kernel. Hash-based module integrity needs one: see modsign hashlist and kbuild patch.`,
		Example: `  modsign kbuild enable
  make -j8 && sudo make modules_install install
  make clean`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKbuildEnableCommand(u), newKbuildDisableCommand(u), newKbuildShowCommand(u),
		newKbuildInstallCommand(u), newKbuildPatchCommand(u), newKbuildMakeCommand(u))
	return cmd
}

// addAgentEnd adds the flags that say when to destroy the one-time key.
func addAgentEnd(flags *pflag.FlagSet, keep *string, lifetime *time.Duration) {
	flags.Var((*keepFlag)(keep), "keep", "destroy the one-time key after N installs (default: any number)")
	flags.DurationVar(lifetime, "lifetime", 24*time.Hour, "destroy the one-time key after `DURATION`")
}

// keepFlag is --keep, whose help shows installs=N.
type keepFlag string

func (k *keepFlag) Set(value string) error { *k = keepFlag(value); return nil }
func (k *keepFlag) String() string         { return string(*k) }
func (k *keepFlag) Type() string           { return "installs=N" }

// kbuildTree says which build a command is about.
type kbuildTree struct {
	objtree string
	srctree string
}

func (o *kbuildTree) addFlags(flags *pflag.FlagSet) {
	addObjtree(flags, &o.objtree)
	flags.StringVar(&o.srctree, "srctree", "", "source tree `DIR` (default: that of the object tree, or here)")
}

// hook returns the hook of the tree.
func (o *kbuildTree) hook() (*kbuildrun.Hook, error) {
	program, err := exec.LookPath(os.Args[0])
	if err == nil {
		program, err = filepath.Abs(program)
	}
	if err != nil {
		return nil, err
	}
	return kbuildrun.NewHook(o.objtree, o.srctree, program)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
