package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/internal/shell"
)

type kbuildPatch struct {
	kbuildTree
	revert bool
	check  bool
	print  bool
}

func newKbuildPatchCommand(u *ui) *cobra.Command {
	var o kbuildPatch
	cmd := &cobra.Command{
		Use:   "patch",
		Short: "Patch a kernel's source for module hashes",
		Long: `Patch adds CONFIG_MODULE_HASHES to a kernel's source: a kernel with it trusts the
modules that it was built with by their hashes, without a key. Signing needs no patch.

There are patches for Linux ` + kbuildrun.PatchedKernels() + `. The version in the source's Makefile chooses
between them: a source of another version gets the one for the kernel before it, if that
applies. The first line of a patch tells which kernel it is for.

The program patch (GNU patch, in the package patch) applies it, without fuzz. If a dry
run says that a part of the patch does not apply, nothing is written. After an
interrupted run, the next one continues.

With --check the exit status is 0 if the whole patch is applied, and 4 if it is not
applied, or not as modsign has it.`,
		Example: `  modsign kbuild patch --srctree linux-6.12
  modsign kbuild patch --check || modsign kbuild patch
  modsign kbuild patch --print >debian/patches/module-hashes.patch`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return o.run(u) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.addFlags(flags)
	flags.BoolVar(&o.revert, "revert", false, "remove the patch")
	flags.BoolVar(&o.check, "check", false, "report whether the patch is applied, and write nothing")
	flags.BoolVar(&o.print, "print", false, "write the patch for this source to stdout, for patch -p1")
	return cmd
}

func (o *kbuildPatch) run(u *ui) error {
	if o.revert && o.check || o.revert && o.print || o.check && o.print {
		return usagef("--revert, --check and --print exclude each other")
	}
	hook, err := o.hook()
	if err != nil {
		return withHint(err, "--srctree DIR names the kernel's source")
	}
	p, err := kbuildrun.OpenPatch(hook.Srctree)
	if err != nil {
		return err
	}
	switch {
	case o.print:
		_, err := u.Stdout.Write(p.Text())
		return err
	case o.check:
		return checkPatch(u, p)
	case o.revert:
		before, err := p.Revert()
		if err != nil {
			return err
		}
		if len(before.With) == 0 {
			u.Say("%s does not have the patch", p.Srctree)
		} else {
			u.Say("removed the patch from %s", p.Srctree)
		}
		return nil
	}
	before, err := p.Apply()
	switch {
	case err != nil && before != nil && len(before.Other) > 0 && len(before.With) == 0:
		return withHint(err, "modsign kbuild patch --print --srctree %s | patch -p1 -d %[1]s applies what it can, "+
			"and leaves .rej files to apply by hand", shell.Quote(p.Srctree))
	case err != nil:
		return err
	case before.Applied():
		u.Say("%s has the patch for Linux %s already", p.Srctree, p.For)
	case before.Absent():
		u.Say("patched %s, which is Linux %s, with the patch for Linux %s", p.Srctree, p.Version, p.For)
		u.Hint("make menuconfig now has MODULE_HASHES, below \"Enable loadable module support\"")
	default:
		u.Say("patched %s of %s: the others had the patch already, from an interrupted run",
			plural(len(before.Without), "file"), p.Srctree)
	}
	return nil
}

// checkPatch ends with an exit code of its own if the patch is not applied.
func checkPatch(u *ui, p *kbuildrun.Patch) error {
	state, err := p.State()
	if err != nil {
		return err
	}
	if state.Applied() {
		u.Say("%s has the patch for Linux %s", p.Srctree, p.For)
		return nil
	}
	f := &failure{code: exitRefused}
	switch {
	case state.Absent():
		f.err = fmt.Errorf("%s does not have the patch for Linux %s, which applies", p.Srctree, p.For)
		f.hint = "modsign kbuild patch applies it"
	case len(state.Other) == 0:
		f.err = fmt.Errorf("%s has the patch in part: it is %v", p.Srctree, state)
		f.hint = "modsign kbuild patch applies the rest, and modsign kbuild patch --revert removes it"
	case len(state.With) == 0:
		f.err = fmt.Errorf("%s, which is Linux %s, does not have the patch, and the one for Linux %s does not apply: %v",
			p.Srctree, p.Version, p.For, state)
	default:
		f.err = errors.New(p.Srctree + " does not have the patch as modsign has it: " + state.String())
	}
	return f
}
