package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/sign"
)

type stripOptions struct {
	treeOptions
	debug     debugFlags
	signature bool
}

func newStripCommand(u *ui) *cobra.Command {
	var o stripOptions
	cmd := &cobra.Command{
		Use:   "strip {--signature | --debug | --split-debug DIR} PATH...",
		Short: "Remove signatures or debug information from modules",
		Long: `Strip removes all appended signatures from modules, in place or into another
directory, and leaves each module as it was before it was signed. It skips modules
without a signature.

With --debug it removes debug information and signatures, because a signature does not
match the stripped module. It skips modules that have neither. modsign sign
--strip-debug strips and signs in one pass.

With --split-debug DIR the debug information of NAME.ko goes to
DIR/lib/modules/KVER/.../NAME.ko.debug, with a link from DIR/.build-id: debuggers find
it if DIR is usr/lib/debug of the installed system.`,
		Example: `  modsign strip --signature --output unsigned /lib/modules/6.12.0-1-amd64
  modsign strip --split-debug root/usr/lib/debug root/lib/modules/6.12.0`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&o.signature, "signature", false, "remove signatures")
	flags.BoolVar(&o.debug.strip, "debug", false, "remove debug information too, as strip --strip-debug does")
	o.debug.addSplit(flags)
	o.treeOptions.addFlags(flags, u)
	return cmd
}

func (o *stripOptions) run(ctx context.Context, u *ui, roots []string) error {
	if !o.signature && !o.debug.removes() {
		return usagef("nothing to remove: give --signature, --debug or --split-debug DIR")
	}
	if len(roots) == 0 {
		return usagef("nothing to strip: name modules or directories")
	}
	write, err := o.options()
	if err != nil {
		return err
	}
	debug, err := o.debug.options()
	if err != nil {
		return err
	}
	tree, err := openTree(ctx, u, sign.Source{Roots: roots, Output: o.output, DryRun: o.dryRun}, o.wait)
	if err != nil {
		return err
	}
	defer tree.Close()
	w := work{
		ui: u, verb: "stripping", options: sign.Options{WriteOptions: write, DebugOptions: debug}, xattr: true,
		inPlace: o.output == "",
	}
	return w.do(ctx, func(options sign.Options) (sign.Summary, error) {
		return tree.StripDebug(ctx, sign.StripOptions{WriteOptions: options.WriteOptions, DebugOptions: options.DebugOptions})
	})
}
