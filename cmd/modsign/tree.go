package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/sign"
)

// treeOptions are those of the commands that write modules.
type treeOptions struct {
	output  string
	jobs    jobsFlag
	mode    string
	mtime   string
	xattr   string
	sync    string
	level   int
	maxSize size
	dryRun  bool
	owner   string
	wait    bool
}

func (o *treeOptions) addFlags(flags *pflag.FlagSet, u *ui) {
	flags.StringVarP(&o.output, "output", "o", "", "write results to `DIR` and leave the modules alone")
	flags.BoolVarP(&o.dryRun, "dry-run", "n", false, "read everything, write nothing")
	addJSON(flags, u)
	addQuiet(flags, u)
	o.jobs.addFlag(flags)
	flags.StringVar(&o.mode, "mode", "", "octal `MODE` of written files (default: the old file's)")
	addChoice(flags, &o.owner, "owner", "keep", "`OWNER` of written files: keep (default) or runner, your user")
	addChoice(flags, &o.mtime, "mtime", "keep", "modification `TIME` of written files: keep (default) or now")
	addChoice(flags, &o.xattr, "xattr", "safe", "extended attributes `POLICY`: safe (default) or keep")
	addChoice(flags, &o.sync, "sync", "tree", "flush to disk `SCOPE`: tree (default), file or none")
	flags.IntVar(&o.level, "level", 0, "compression level `N` (default: the kernel's)")
	addWait(flags, &o.wait)
	addMaxSize(flags, &o.maxSize)
}

func (o *treeOptions) options() (options sign.WriteOptions, err error) {
	options = sign.WriteOptions{Jobs: int(o.jobs), Level: o.level, MaxSize: int64(o.maxSize), DryRun: o.dryRun}
	if err := o.jobs.check(); err != nil {
		return options, err
	}
	if err := (compress.Options{Level: o.level}).Check(compress.Zstd); err != nil { // which has the most
		return options, usagef("--level: %v", err)
	}
	if options.Mode, err = parseMode(o.mode); err != nil {
		return options, err
	}
	if options.NewMTime, err = choice("mtime", o.mtime, "keep", "now"); err != nil {
		return options, err
	}
	if options.NewOwner, err = choice("owner", o.owner, "keep", "runner"); err != nil {
		return options, err
	}
	if options.KeepXattrs, err = choice("xattr", o.xattr, "safe", "keep"); err != nil {
		return options, err
	}
	if options.Sync, err = sign.ParseSync(o.sync); err != nil {
		return options, usagef("--sync: %v", err)
	}
	return options, nil
}

// signingOptions are those of the commands that put signatures on modules.
type signingOptions struct {
	installedOptions
	treeOptions
	existing existingFlag
	compress compressFlag
}

// signPlan is what these options say, and the kernel.
type signPlan struct {
	source  sign.Source
	options sign.Options
	kernel  *kernel // nil without --installed
}

func (o *signingOptions) plan(args []string) (p signPlan, err error) {
	if p.options.WriteOptions, err = o.options(); err != nil {
		return p, err
	}
	if p.options.Existing, err = o.existing.existing(); err != nil {
		return p, err
	}
	if err := o.compress.apply(&p.source); err != nil {
		return p, err
	}
	p.source.Output, p.source.DryRun = o.output, o.dryRun
	p.kernel, err = o.kernel(args)
	p.source.Roots, p.source.Root = p.kernel.roots(args), p.kernel.rootDir()
	return p, err
}

// openTree finds and locks modules, and may wait for another run.
func openTree(ctx context.Context, u *ui, source sign.Source, wait bool) (*sign.Tree, error) {
	if err := refusePackages(source.Roots); err != nil {
		return nil, err
	}
	if wait {
		source.Wait = func(l *sign.LockedError) { u.Note("waiting for %s, which has locked %s", l.Holder, l.Path) }
	}
	tree, err := sign.Open(ctx, source)
	if _, locked := errors.AsType[*sign.LockedError](err); locked {
		return nil, withHint(err, "run again with --wait to wait for it")
	}
	return tree, err
}
