package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
)

func newKbuildCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kbuild",
		Short: "Sign from make modules_install of a kernel's build",
		Long: `Kbuild makes modsign a part of a kernel's build. Once it is enabled, plain make
keeps the one-time key of the build in the memory of a small process (modsign
agent), make modules_install signs and compresses all modules in one parallel
run, and make clean destroys the key. No private key is ever on a disk. The kernel
needs a patch only to trust its modules for their hashes (modsign hashlist).`,
		Example: `  modsign kbuild enable
  make -j8 && sudo make modules_install install
  make clean`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKbuildEnableCommand(u), newKbuildDisableCommand(u), newKbuildShowCommand(u), newKbuildInstallCommand(u), newKbuildPatchCommand(u), newKbuildMakeCommand(u))
	return cmd
}

// addAgentEnd adds what says when the one-time key is to be destroyed.
func addAgentEnd(flags *pflag.FlagSet, keep *string, lifetime *time.Duration) {
	flags.StringVar(keep, "keep", "", "destroy the one-time key after N installs: installs=`N` (default: any number)")
	flags.DurationVar(lifetime, "lifetime", 24*time.Hour, "destroy the one-time key after this `TIME`")
}

type kbuildTree struct {
	objtree string
	srctree string
}

func (o *kbuildTree) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.objtree, "objtree", ".", "the object tree, where the kernel is built: `DIR`")
	flags.StringVar(&o.srctree, "srctree", "", "the kernel's source, `DIR` (default: what the object tree was made from, or here)")
}

// hook is the tree's.
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

func newKbuildEnableCommand(u *ui) *cobra.Command {
	var tree kbuildTree
	var keep string
	var lifetime time.Duration
	cmd := &cobra.Command{
		Use:   "enable",
		Short: "Let make of this kernel sign with modsign",
		Long: `Enable writes a GNUmakefile, which GNU make reads before Makefile, into the
object tree, and into the source tree for make O=DIR, where it acts for enabled
object trees alone. It also puts modsign at scripts/sign-file in the object tree,
for the package goals (bindeb-pkg and the like). After it,

  make                  makes a one-time key, if the configuration names none,
                        and leaves it in the memory of modsign agent
  make modules_install  signs, compresses and calls depmod, each once
  make modules_sign     signs what is installed
  make clean            destroys the key

A key that the configuration names (CONFIG_MODULE_SIG_KEY) is used as it is. The
program must stay where it is: enable again after it has moved.`,
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
	u.say("enabled in %s", hook.Objtree)
	if old := filepath.Join(hook.Objtree, kbuild.DefaultKey); exists(old) {
		u.say("%s holds the private key of an earlier build, which will be used no more once the kernel is built anew: remove it then (shred -u %[1]s)", old)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func newKbuildDisableCommand(u *ui) *cobra.Command {
	var tree kbuildTree
	cmd := &cobra.Command{
		Use:   "disable",
		Short: "Undo enable",
		Long: `Disable removes what enable wrote, and destroys the one-time key of the object tree:
nobody can sign modules for the kernel that was built with it any more, and a kernel
whose modules are yet to be installed has to be built again. Receipts stay. A file
that was changed since enable is refused before anything is removed. Where modsign is
not enabled, disable says so, and it is no error.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			hook, err := tree.hook()
			if err != nil {
				return err
			}
			return kbuildDisable(u, hook)
		},
	}
	tree.addFlags(cmd.Flags())
	return cmd
}

func kbuildDisable(u *ui, hook *kbuildrun.Hook) error {
	enabled, err := hook.Left()
	if err != nil {
		return err
	}
	if enabled {
		// The key last: a refusal leaves all as it was.
		if err := hook.Disable(); err != nil {
			return err
		}
	}
	m := kbuildMake{objtree: hook.Objtree}
	if !enabled {
		u.say("modsign is not enabled in %s", hook.Objtree)
		// An earlier disable may have been interrupted before it came to the key.
		if client, err := agent.Dial(m.path(kbuildrun.Dir)); err == nil {
			client.Close()
		} else if _, none := errors.AsType[*agent.UnavailableError](err); none {
			return nil
		}
	}
	had, err := m.forget()
	if err != nil {
		return err
	}
	_ = kbuildrun.Remove(m.objtree, kbuildrun.Dir) // fails while receipts are in it
	if enabled {
		u.say("disabled in %s", hook.Objtree)
	}
	if had {
		u.say("the one-time key of %s is destroyed: nothing more can be signed for the kernel that was built with it; its receipt is in %s", hook.Objtree, m.path(kbuildrun.Dir))
	}
	return nil
}

func newKbuildShowCommand(u *ui) *cobra.Command {
	var tree kbuildTree
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show what modsign understands of a kernel's build",
		Long: `Show prints what modsign reads in an object tree: the configuration of signing
and compression, the key that modules_install would sign with, where it would
install, and the files of the hook.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return kbuildShow(u, &tree) },
	}
	tree.addFlags(cmd.Flags())
	return cmd
}

func kbuildShow(u *ui, o *kbuildTree) error {
	hook, err := o.hook()
	if err != nil {
		return err
	}
	tree, err := kbuild.OpenTree(hook.Objtree, "", kbuild.Vars{LookupEnv: os.LookupEnv})
	if err != nil {
		return err
	}
	line := func(name, value string) { u.result("%-14s %s", name+":", value) }
	line("object tree", hook.Objtree)
	line("source tree", hook.Srctree)
	if tree.Config == nil {
		line("configuration", "none yet: make defconfig, for one")
	} else {
		line("release", cmp.Or(tree.Release, "not built yet"))
		line("signing", showSigning(tree.Config))
		line("hash", cmp.Or(tree.Config.SigHash(), "none"))
		line("key", showKey(hook.Objtree, tree))
		if format := tree.Config.HashFormat(); format != "" {
			line("hashes", showHashes(hook.Objtree, format))
		}
		line("trusted keys", cmp.Or(tree.Config.TrustedKeys(), "none besides"))
		line("compression", cmp.Or(tree.Config.Compression(), "none"))
		if modlib, err := tree.ModLib(); err == nil {
			line("installs to", modlib)
		}
		if names, err := tree.Modules(); err == nil {
			line("modules", fmt.Sprint(len(names)))
		}
	}
	states, err := hook.States()
	if err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(states)) {
		line("hook", fmt.Sprintf("%s: %s", path, states[path]))
	}
	if kbuildrun.Enabled(hook.Objtree) && states[filepath.Join(hook.Objtree, "scripts/sign-file")] == kbuildrun.Foreign {
		u.hint("Kbuild has built scripts/sign-file over modsign's; the next make or modsign kbuild enable puts it back")
	}
	dirs, err := kbuildrun.Unfinished(hook.Objtree)
	for _, dir := range dirs {
		line("unfinished", dir)
	}
	return err
}

// showSigning says when modules are signed.
func showSigning(config kbuild.Config) string {
	switch {
	case !config.Bool("MODULE_SIG"):
		return "off (CONFIG_MODULE_SIG)"
	case !config.SigAll():
		return "by modules_sign alone (CONFIG_MODULE_SIG_ALL is off)"
	case config.Bool("MODULE_SIG_FORCE"):
		return "by modules_install; the kernel refuses what is not signed"
	}
	return "by modules_install"
}

// showHashes says what the kernel has of the hashes of its modules.
func showHashes(objtree, format string) string {
	kernel, err := hashlist.OpenKernel(filepath.Join(objtree, "vmlinux"))
	if err != nil {
		return format + ", not built yet"
	}
	return kernel.Embedded.String()
}

// showKey says in a line what modules would be signed with.
func showKey(objtree string, tree *kbuild.Tree) string {
	key := tree.Config.SigKey()
	switch {
	case key == "":
		return "none"
	case strings.HasPrefix(key, "pkcs11:"):
		return "in a token (PKCS #11): Kbuild signs itself" // the URI may hold a PIN
	case key != kbuild.DefaultKey:
		return key
	}
	client, err := agent.Dial(filepath.Join(objtree, kbuildrun.Dir))
	if gone, ok := errors.AsType[*agent.UnavailableError](err); ok {
		if exists(filepath.Join(objtree, kbuild.DefaultKey)) && !exists(filepath.Join(objtree, kbuildrun.Certificate)) {
			return kbuild.DefaultKey + ", made by Kbuild"
		}
		return "a one-time key: " + gone.Error()
	}
	if err != nil {
		return "a one-time key: " + err.Error()
	}
	defer client.Close()
	return fmt.Sprintf("a one-time key, %s, held by modsign agent", keygen.KeyName(client.Certificate().PublicKey))
}

func newKbuildInstallCommand(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "install [ARGUMENT OF MAKE...]",
		Short: "Do as make modules_install with the hook, without the hook",
		Long: `Install calls make modules_install with these arguments, in the same way as the
hook does: Kbuild installs and strips, modsign signs and compresses, and depmod
is called once. It writes no GNUmakefile, and so suits scripts.`,
		Example: `  modsign kbuild install -j8 INSTALL_MOD_PATH=/tmp/root
  modsign kbuild install -C /usr/src/linux M=$PWD`,
		DisableFlagParsing:    true,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
				return cmd.Help()
			}
			return kbuildInstall(cmd.Context(), args)
		},
	}
}

func kbuildInstall(ctx context.Context, args []string) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	// A file, as make reads its makefile again when it begins anew.
	f, err := os.CreateTemp("", "modsign-*.mk")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(kbuildrun.HookText(program))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	err = runMake(ctx, "make", os.Environ(), slices.Concat([]string{"-f", f.Name()}, args, []string{"modules_install"}))
	if _, ok := errors.AsType[exitStatus](err); ok {
		return exitStatus(exitError) // of make's 2 modsign has another meaning
	}
	return err
}
