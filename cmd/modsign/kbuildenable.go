package main

import (
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/kbuild"
)

func newKbuildEnableCommand(u *ui) *cobra.Command {
	var tree kbuildTree
	var keep string
	var lifetime time.Duration
	cmd := &cobra.Command{
		Use:   "enable",
		Short: "Let make of a kernel sign with modsign",
		Long: `Enable writes a GNUmakefile, which GNU make reads before Makefile, into the object
tree. For make O=DIR it writes one into the source tree too, which acts only for
enabled object trees. It also puts modsign at scripts/sign-file in the object tree, for
goals such as bindeb-pkg that make packages. After it,

  make                  makes a one-time key in the memory of modsign agent, if
                        the configuration names no key
  make modules_install  strips, signs and compresses in one pass, then calls depmod
  make modules_sign     signs the installed modules
  make clean            destroys the key

If the configuration names a key (CONFIG_MODULE_SIG_KEY), modsign signs with that key.
The program modsign must stay where it is: run enable again after you move it.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return kbuildEnable(u, &tree, keep, lifetime) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	tree.addFlags(flags)
	addAgentEnd(flags, &keep, &lifetime)
	return cmd
}

func kbuildEnable(u *ui, tree *kbuildTree, keep string, lifetime time.Duration) error {
	hook, err := tree.hook()
	if err != nil {
		return err
	}
	if _, err := parseKeep(keep); err != nil {
		return err
	}
	if keep != "" {
		hook.Options = append(hook.Options, "--keep="+keep)
	}
	hook.Options = append(hook.Options, "--lifetime="+lifetime.String())
	if err := hook.Enable(); err != nil {
		return err
	}
	u.Say("enabled in %s", hook.Objtree)
	if old := filepath.Join(hook.Objtree, kbuild.DefaultKey); exists(old) {
		u.Say("%s holds the private key of an earlier build, which has no use once the kernel is built again: "+
			"remove it then (shred -u %[1]s)", old)
	}
	return nil
}
