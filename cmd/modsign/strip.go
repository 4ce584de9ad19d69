package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/sign"
)

func newStripCommand(u *ui) *cobra.Command {
	var o treeOptions
	var signature bool
	cmd := &cobra.Command{
		Use:   "strip --signature PATH...",
		Short: "Take the signatures off modules",
		Long: `Strip takes all appended signatures off modules and leaves each as it was before
anybody signed it, in place or into another folder. A module without a signature
is skipped.`,
		Example: `  modsign strip --signature --output unsigned /lib/modules/6.12.0-1-amd64`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !signature {
				return usagef("say what to strip: --signature")
			}
			if len(args) == 0 {
				return usagef("nothing to strip: name modules or folders")
			}
			options, err := o.options()
			if err != nil {
				return err
			}
			return strip(cmd.Context(), u, args, o.output, options)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&signature, "signature", false, "take off the signatures")
	o.addFlags(flags, u)
	return cmd
}

func strip(ctx context.Context, u *ui, roots []string, output string, options sign.Options) error {
	tree, err := sign.Open(sign.Source{Roots: roots, Output: output, DryRun: options.DryRun})
	if err != nil {
		return err
	}
	defer tree.Close()
	w := work{ui: u, verb: "stripping", options: options}
	return w.do(ctx, func(options sign.Options) (sign.Summary, error) { return tree.Strip(ctx, options) })
}
