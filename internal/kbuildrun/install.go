package kbuildrun

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
)

// install is modules_install and modules_sign.
func (d *Driver) install(ctx context.Context, step Step) error {
	tree, err := d.tree()
	if err != nil {
		return err
	}
	if hasHashes(tree) && d.ExtMod == "" {
		return d.installHashed(ctx, tree, step)
	}
	return d.installSigned(ctx, tree, step)
}

func (d *Driver) installSigned(ctx context.Context, tree *kbuild.Tree, step Step) error {
	config, installs := tree.Config, step.Work == Install
	if !signs(config, installs) {
		return d.installUnsigned(ctx, config, step)
	}
	modlib, err := tree.ModLib()
	if err != nil {
		return err
	}
	if strings.HasPrefix(config.SigKey(), "pkcs11:") {
		d.Front.Note("modsign has no support for keys in a token (PKCS #11): Kbuild signs and compresses the modules itself")
		if d.idle() && installs {
			return nil
		}
		return d.make(ctx, step.Goals)
	}
	if d.idle() {
		// Kbuild removes the installed modules even when make -n asks what it would do.
		if installs {
			d.Front.Say("would run %s -f Makefile modules_install without modules and depmod", d.Make)
			d.Front.Say("would install and sign the modules in %s", modlib)
		} else {
			d.Front.Say("would sign the modules in %s", modlib)
		}
		return nil
	}

	key, err := d.signingKey(tree)
	if err != nil {
		if d.ExtMod == "" || !installs {
			return err
		}
		d.Front.Unsigned(d.ExtMod, err)
		return d.make(ctx, step.Goals, "CONFIG_MODULE_SIG_ALL=")
	}
	do := func(modules *sign.Tree, l *lines, o sign.Options) error {
		return d.Front.Sign(ctx, key.pair, key.hash, o, l.through(func(o sign.Options) (sign.Summary, error) {
			return modules.Sign(ctx, key.signer, o)
		}))
	}
	return d.finish(ctx, tree, step, installStep{signs: true, do: do})
}

// signs reports whether modules_install, or modules_sign, signs.
func signs(config kbuild.Config, installs bool) bool {
	return config.Bool("MODULES") && config.Bool("MODULE_SIG") && config.SigKey() != "" && (config.SigAll() || !installs)
}

// installUnsigned leaves to Kbuild what is not to be signed.
func (d *Driver) installUnsigned(ctx context.Context, config kbuild.Config, step Step) error {
	switch {
	case step.Work != Install && config.SigKey() == "" && config.Bool("MODULE_SIG"):
		err := errors.New("CONFIG_MODULE_SIG_KEY is empty: there is no key to sign modules with")
		return &HintError{err, "sign them with modsign sign --key FILE"}
	case step.Work != Install:
		return d.make(ctx, step.Goals) // which says why not
	case d.idle():
		d.Front.Say("would run %s -f Makefile modules_install", d.Make)
		return nil
	}
	// Kbuild would try to sign with an empty key too.
	return d.make(ctx, step.Goals, "CONFIG_MODULE_SIG_ALL=")
}

// An installStep is what modsign does to modules before it compresses them.
type installStep struct {
	signs     bool
	strips    bool     // Kbuild does not strip
	overrides []string // more variables for Kbuild
	do        func(*sign.Tree, *lines, sign.Options) error
}

// leftToModsign keep Kbuild from what modsign does to all modules at once.
var leftToModsign = []string{
	"CONFIG_MODULE_SIG_ALL=", "CONFIG_MODULE_COMPRESS_ALL=", "CONFIG_MODULE_COMPRESS_GZIP=",
	"CONFIG_MODULE_COMPRESS_XZ=", "CONFIG_MODULE_COMPRESS_ZSTD=", "DEPMOD=true",
}

// finish has Kbuild install its own files, and does the rest to all modules at once: it
// installs them from the build or, if they are left to Kbuild, works on those installed.
func (d *Driver) finish(ctx context.Context, tree *kbuild.Tree, step Step, s installStep) error {
	installs := step.Work == Install
	modlib, err := tree.ModLib()
	if err != nil {
		return err
	}
	marked, err := d.markStarted(modlib)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(modlib, 0o777); err != nil {
		return err
	}
	var failed error
	var c *copying
	if installs {
		overrides := slices.Concat(s.overrides, leftToModsign)
		if c = d.newCopying(ctx, tree, s); c != nil {
			overrides = append(overrides, noModules)
		}
		failed = d.make(ctx, step.Goals, overrides...)
		if failed != nil && (!d.Flags.KeepGoing || ctx.Err() != nil) {
			return failed
		}
		if c != nil && c.overtaken() {
			d.Front.Note("this kernel's makefiles install the modules themselves: they are signed where they are now")
			c = nil
		}
	}
	if c != nil {
		err = d.copyModules(ctx, tree, s, c)
	} else {
		err = d.finishModules(ctx, tree, s, installs, failed != nil)
	}
	if err != nil {
		return errors.Join(failed, err)
	}
	if failed != nil {
		return failed
	}
	if installs {
		if err := d.depmod(ctx, tree); err != nil {
			return err
		}
	}
	if marked {
		if err := MarkInstallDone(d.Objtree, modlib); err != nil {
			return err
		}
	}
	return d.reportInstall()
}

// markStarted marks that an install has started, where it may write to the object tree.
func (d *Driver) markStarted(modlib string) (marked bool, err error) {
	err = MarkInstallStarted(d.Objtree, modlib)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		// As of root, where the object tree lies on another machine.
		d.Front.Note("an interrupted install will leave no mark: %v", err)
		return false, nil
	}
	return err == nil, err
}

// finishModules takes a step with the modules that this tree installs, and no others. With
// some, make -k may have left out a few.
func (d *Driver) finishModules(ctx context.Context, tree *kbuild.Tree, s installStep, installs, some bool) error {
	names, err := tree.Modules()
	if err != nil {
		return err
	}
	destination, err := tree.Destination()
	if err != nil {
		return err
	}
	if some {
		names = slices.DeleteFunc(names, func(name string) bool { return !exists(filepath.Join(destination, name)) })
	}
	if len(names) == 0 {
		return nil
	}
	format, err := compression(tree)
	if err != nil {
		return err
	}
	modules, err := sign.Open(ctx, sign.Source{Roots: []string{destination}, Names: names, Compress: format})
	if err != nil {
		return err
	}
	defer modules.Close()
	return s.do(modules, nil, sign.Options{
		WriteOptions: sign.WriteOptions{Jobs: d.jobs(), Sync: sign.SyncNone, Extend: installs},
		DebugOptions: sign.DebugOptions{StripDebug: s.strips, StripProgram: stripProgram(tree)},
	})
}

// compression is the format of installed modules.
func compression(tree *kbuild.Tree) (sign.Format, error) {
	return sign.ParseFormat(cmp.Or(tree.Config.Compression(), "none"))
}

// jobs is how many modules are worked on at once: twice make's -j, as at any time half of
// them wait for the agent or the disk. 0 stands for the default.
func (d *Driver) jobs() int { return 2 * max(d.Flags.Jobs, 0) }

// stripProgram is the program strip of a build, Kbuild's $(STRIP).
func stripProgram(tree *kbuild.Tree) string {
	if program, ok := tree.Vars.Command("STRIP"); ok {
		return program
	}
	prefix, _ := tree.Vars.Lookup("CROSS_COMPILE")
	if llvm, _ := tree.Vars.Lookup("LLVM"); llvm != "" {
		switch {
		case strings.HasSuffix(llvm, "/"):
			return llvm + "llvm-strip"
		case strings.HasPrefix(llvm, "-"):
			return "llvm-strip" + llvm
		}
		return "llvm-strip"
	}
	return prefix + "strip"
}
