package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/sign"
)

// debugFlags say what happens to debug information.
type debugFlags struct {
	strip bool
	split string
}

func (f *debugFlags) addSplit(flags *pflag.FlagSet) {
	flags.StringVar(&f.split, "split-debug", "", "move debug information to files below `DIR`")
}

// removes reports whether debug information is removed.
func (f *debugFlags) removes() bool { return f.strip || f.split != "" }

func (f *debugFlags) options() (sign.DebugOptions, error) {
	options := sign.DebugOptions{StripDebug: f.removes()}
	if f.split != "" {
		dir, err := filepath.Abs(f.split)
		if err != nil {
			return options, err
		}
		options.SplitDebug = dir
	}
	if path, err := exec.LookPath(cmp.Or(os.Getenv("STRIP"), "strip")); err == nil {
		options.StripProgram = path // for the few that need it
	}
	return options, nil
}

// refuseUnsplit refuses to sign modules from which find-debuginfo has yet to take debug
// information into dir.
func refuseUnsplit(ctx context.Context, tree *sign.Tree, dir string, options sign.ReadOptions) error {
	missing, err := tree.MissingDebugFiles(ctx, dir, options)
	if err != nil || len(missing) == 0 {
		return err
	}
	more := ""
	if len(missing) > 1 {
		more = fmt.Sprintf(", nor of %d others", len(missing)-1)
	}
	err = fmt.Errorf("%s has debug information, and %s has no debug file of it%s: stripping it later removes signatures",
		missing[0], dir, more)
	return withHint(err, "sign after find-debuginfo (see %%modsign_spec_install_post), "+
		"split it off with --split-debug %s, or build without a debuginfo package (%%debug_package %%{nil})", shell.Quote(dir))
}
