package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/sign"
)

type stripOptions struct {
	treeOptions
	debugOptions
	signature bool
}

func newStripCommand(u *ui) *cobra.Command {
	var o stripOptions
	cmd := &cobra.Command{
		Use:   "strip {--signature | --debug | --split-debug DIR} PATH...",
		Short: "Take signatures or debug information off modules",
		Long: `Strip takes all appended signatures off modules and leaves each as it was before
anybody signed it, in place or into another folder. A module without a signature
is skipped.

With --debug it takes debug information out, and the signatures of all modules
with it: they would be those of other bytes. A module that has neither is
skipped. modsign sign does this, and signs, in one pass.`,
		Example: `  modsign strip --signature --output unsigned /lib/modules/6.12.0-1-amd64
  modsign strip --split-debug root/usr/lib/debug root/lib/modules/6.12.0`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&o.signature, "signature", false, "take off the signatures")
	flags.BoolVar(&o.stripDebug, "debug", false, "take out debug information too, as strip --strip-debug does")
	addSplitDebug(flags, &o.splitDebug)
	o.treeOptions.addFlags(flags, u)
	return cmd
}

func (o *stripOptions) run(ctx context.Context, u *ui, roots []string) error {
	if !o.signature && !o.stripDebug && o.splitDebug == "" {
		return usagef("say what to strip: --signature, --debug or --split-debug DIR")
	}
	if len(roots) == 0 {
		return usagef("nothing to strip: name modules or folders")
	}
	options, err := o.options()
	if err != nil {
		return err
	}
	source := sign.Source{Roots: roots, Output: o.output, DryRun: o.dryRun}
	if err := o.apply(&source, &options); err != nil {
		return err
	}
	tree, err := o.open(ctx, u, source)
	if err != nil {
		return err
	}
	defer tree.Close()
	w := work{ui: u, verb: "stripping", options: options}
	return w.do(ctx, func(options sign.Options) (sign.Summary, error) { return tree.Strip(ctx, options) })
}
