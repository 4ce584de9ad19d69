package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/sign"
)

// debugOptions are what a distribution does with modules besides signing them.
type debugOptions struct {
	stripDebug    bool
	splitDebug    string
	refuseUnsplit string
	compress      string
}

func (o *debugOptions) addFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&o.stripDebug, "strip-debug", false, "take debug information out first, as strip --strip-debug does")
	addSplitDebug(flags, &o.splitDebug)
	flags.StringVar(&o.refuseUnsplit, "refuse-unsplit", "", "do nothing if a module has debug information of which `DIR` holds no debug file: find-debuginfo has yet to run")
	flags.StringVar(&o.compress, "compress", "", "leave all modules in this `FORMAT`, as a kernel can load it: none, gz, xz or zst (default: each in its own)")
}

func addSplitDebug(flags *pflag.FlagSet, dir *string) {
	flags.StringVar(dir, "split-debug", "", "take it out into `DIR`/lib/modules/KVER/.../NAME.ko.debug, where debuggers find it by DIR/.build-id; DIR is usr/lib/debug of what is installed")
}

// apply completes what the package sign is given.
func (o *debugOptions) apply(source *sign.Source, options *sign.Options) error {
	if o.compress != "" {
		format, err := sign.ParseFormat(o.compress)
		if err != nil {
			return usagef("--compress: %v", err)
		}
		source.Compress, source.Recompress = format, true
	}
	if o.splitDebug != "" {
		dir, err := filepath.Abs(o.splitDebug)
		if err != nil {
			return err
		}
		options.SplitDebug = dir
	}
	options.StripDebug = o.stripDebug || o.splitDebug != ""
	if path, err := exec.LookPath(cmp.Or(os.Getenv("STRIP"), "strip")); err == nil {
		options.StripProgram = path // for the few that need it
	}
	return nil
}

// refuse looks for modules that are not to be signed yet.
func (o *debugOptions) refuse(ctx context.Context, tree *sign.Tree, options sign.Options) error {
	if o.refuseUnsplit == "" || o.splitDebug != "" {
		return nil
	}
	unsplit, err := tree.Unsplit(ctx, o.refuseUnsplit, options)
	if err != nil || len(unsplit) == 0 {
		return err
	}
	more := ""
	if len(unsplit) > 1 {
		more = fmt.Sprintf(", nor of %d others", len(unsplit)-1)
	}
	return withHint(fmt.Errorf("%s has debug information, and %s has no debug file of it%s: what takes it out after signing takes the signature off", unsplit[0], o.refuseUnsplit, more),
		"sign after find-debuginfo (%%modsign_spec_install_post has the order), let modsign split it off with --split-debug %s, or build without a debuginfo package (%%debug_package %%{nil})", quote(o.refuseUnsplit))
}
