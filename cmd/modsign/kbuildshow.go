package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/keygen/keystore"
)

func newKbuildShowCommand(u *ui) *cobra.Command {
	var tree kbuildTree
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show what modsign reads in a kernel's build tree",
		Long: `Show prints what modsign reads in an object tree: the configuration of signing and
compression, the key that modules_install signs with, the directory that it installs to,
and the files of the hook.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return kbuildShow(u, &tree) },
	}
	tree.addFlags(cmd.Flags())
	return cmd
}

// treeField writes a line of modsign kbuild show.
func treeField(u *ui, name, value string) { u.Result("%-14s %s", name+":", value) }

func kbuildShow(u *ui, o *kbuildTree) error {
	hook, err := o.hook()
	if err != nil {
		return err
	}
	tree, err := kbuild.OpenTree(hook.Objtree, "", kbuild.Vars{LookupEnv: os.LookupEnv})
	if err != nil {
		return err
	}
	treeField(u, "object tree", hook.Objtree)
	treeField(u, "source tree", hook.Srctree)
	if tree.Config == nil {
		treeField(u, "configuration", "none yet: make defconfig, for one")
	} else {
		showConfig(u, tree)
	}
	if err := showHook(u, hook); err != nil {
		return err
	}
	marks, err := kbuildrun.Unfinished(hook.Objtree)
	for _, mark := range marks {
		treeField(u, "unfinished", mark.String())
	}
	return err
}

// showConfig shows what the configuration of a tree says of its modules.
func showConfig(u *ui, tree *kbuild.Tree) {
	treeField(u, "release", cmp.Or(tree.Release, "not built yet"))
	treeField(u, "signing", showSigning(tree.Config))
	treeField(u, "hash", cmp.Or(tree.Config.SigHash(), "none"))
	treeField(u, "key", showKey(tree))
	if format := tree.Config.HashFormat(); format != "" {
		treeField(u, "hashes", showHashes(tree.Objtree, format))
	}
	treeField(u, "trusted keys", cmp.Or(tree.Config.TrustedKeys(), "none besides"))
	treeField(u, "compression", cmp.Or(tree.Config.Compression(), "none"))
	if modlib, err := tree.ModLib(); err == nil {
		treeField(u, "installs to", modlib)
	}
	if names, err := tree.Modules(); err == nil {
		treeField(u, "modules", fmt.Sprint(len(names)))
	}
}

func showHook(u *ui, hook *kbuildrun.Hook) error {
	states, err := hook.States()
	if err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(states)) {
		treeField(u, "hook", fmt.Sprintf("%s: %s", path, states[path]))
	}
	if kbuildrun.Enabled(hook.Objtree) && states[filepath.Join(hook.Objtree, "scripts/sign-file")] == kbuildrun.Foreign {
		u.Hint("Kbuild has built scripts/sign-file over modsign's; the next make or modsign kbuild enable puts it back")
	}
	return nil
}

// showSigning says when modules are signed.
func showSigning(config kbuild.Config) string {
	switch {
	case !config.Bool("MODULE_SIG"):
		return "off (CONFIG_MODULE_SIG)"
	case !config.SigAll():
		return "by modules_sign alone (CONFIG_MODULE_SIG_ALL is off)"
	case config.Bool("MODULE_SIG_FORCE"):
		return "by modules_install; the kernel rejects unsigned modules"
	}
	return "by modules_install"
}

// showHashes says which hashes of its modules the kernel has.
func showHashes(objtree, format string) string {
	kernel, err := hashlist.OpenKernel(filepath.Join(objtree, "vmlinux"))
	if err != nil {
		return format + ", not built yet"
	}
	return kernel.Embedded.String()
}

// showKey says in a line which key would sign the modules.
func showKey(tree *kbuild.Tree) string {
	key := tree.Config.SigKey()
	switch {
	case key == "":
		return "none"
	case keystore.IsURI(key):
		held := kbuildrun.HeldFor(tree.Objtree, filepath.Join(tree.Objtree, kbuildrun.LinkedCertificate))
		if held != nil {
			return keystore.Redact(key) + ", held by modsign agent"
		}
		return keystore.Redact(key)
	case key != kbuild.DefaultKey:
		return key
	}
	client, err := agent.Dial(filepath.Join(tree.Objtree, kbuildrun.Dir))
	if gone, ok := errors.AsType[*agent.UnavailableError](err); ok {
		in := func(name string) string { return filepath.Join(tree.Objtree, name) }
		if exists(in(kbuild.DefaultKey)) && !exists(in(kbuildrun.Certificate)) {
			return kbuild.DefaultKey + ", made by Kbuild"
		}
		return "a one-time key: " + gone.Error()
	}
	if err != nil {
		return "a one-time key: " + err.Error()
	}
	defer client.Close()
	if client.Kept() {
		return "a one-time key, but the key agent holds a key from elsewhere"
	}
	return fmt.Sprintf("a one-time key, %s, held by modsign agent", keygen.KeyName(client.Certificate().PublicKey))
}
