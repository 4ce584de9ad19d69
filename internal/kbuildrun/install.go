package kbuildrun

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/modsign/modsign/internal/atomicfile"
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

func (d *Driver) installSigned(ctx context.Context, tree *kbuild.Tree, step Step) (err error) {
	config, installs := tree.Config, step.Work == Install
	if !signs(config, installs) {
		return d.installUnsigned(ctx, config, step)
	}
	modlib, err := tree.ModLib()
	if err != nil {
		return err
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

	key, err := d.signingKey(ctx, tree)
	if err != nil {
		if d.ExtMod == "" || !installs {
			return err
		}
		d.Front.Unsigned(d.ExtMod, err)
		return d.make(ctx, step.Goals, "CONFIG_MODULE_SIG_ALL=")
	}
	defer func() {
		if closing := key.pair.Close(); err == nil {
			err = closing
		}
	}()
	do := func(modules *sign.Tree, l *lines, o sign.Options) error {
		return d.Front.Sign(ctx, key.pair, key.signer.Hash(), o, l.through(func(o sign.Options) (sign.Summary, error) {
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

// modules are those of a tree, and where they are installed.
type modules struct {
	names       []string
	modlib      string // absolute
	destination string // the same
	below       string // the destination below modlib
	format      sign.Format
}

// modulesOf lists the modules of a tree. It refuses to install what it cannot: Kbuild finds
// that out after it has removed the old modules.
func (d *Driver) modulesOf(tree *kbuild.Tree, installs bool) (m modules, err error) {
	if m.modlib, err = tree.ModLib(); err != nil {
		return m, err
	}
	if m.destination, err = tree.Destination(); err != nil {
		return m, err
	}
	if m.below, err = filepath.Rel(m.modlib, m.destination); err != nil {
		return m, err
	}
	if m.format, err = sign.ParseFormat(cmp.Or(tree.Config.Compression(), "none")); err != nil {
		return m, err
	}
	m.names, err = tree.Modules()
	if tree.ExtMod != "" && errors.Is(err, fs.ErrNotExist) {
		return m, nil // Kbuild takes this for no modules
	}
	if err != nil {
		return m, err
	}
	if !installs {
		if len(m.names) > 0 && !exists(m.destination) {
			err := fmt.Errorf("no modules are installed in %s", m.destination)
			return m, &HintError{err, "run make modules_install first, or set INSTALL_MOD_PATH as for that"}
		}
		return m, nil
	}
	if d.Flags.KeepGoing {
		return m, nil
	}
	return m, d.checkBuilt(tree, m)
}

// checkBuilt returns an error if a module is missing in the build.
func (d *Driver) checkBuilt(tree *kbuild.Tree, m modules) error {
	for _, name := range m.names {
		path := filepath.Join(tree.ModulesDir(), name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			//lint:ignore ST1005 These are the words of make, which people look for.
			err := fmt.Errorf("No rule to make target '%s', needed by '%s': nothing is installed",
				path, filepath.Join(m.destination, name))
			return &HintError{err, "run make first, or make -k modules_install for the other modules"}
		}
	}
	return nil
}

// finish has Kbuild install its own files, and does the rest to all modules at once: it
// installs them from the build or, if they are left to Kbuild, works on those installed.
func (d *Driver) finish(ctx context.Context, tree *kbuild.Tree, step Step, s installStep) error {
	installs := step.Work == Install
	m, err := d.modulesOf(tree, installs)
	if err != nil {
		return err
	}
	if !installs && len(m.names) == 0 {
		return d.reportInstall()
	}
	lock, err := d.lockInstalls(ctx, m.modlib)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	mark := Mark{m.destination, tree.ExtMod}
	marked, err := d.markStarted(ctx, mark)
	if err != nil {
		return err
	}
	if installs {
		err = d.installModules(ctx, tree, step, s, m)
	} else {
		err = d.finishModules(ctx, tree, s, m, sign.WriteOptions{})
	}
	if err != nil {
		return err
	}
	if installs {
		if err := d.depmod(ctx, tree); err != nil {
			return err
		}
	}
	if marked {
		if err := MarkInstallDone(ctx, d.Objtree, mark); err != nil {
			return err
		}
	}
	return d.reportInstall()
}

// lockInstalls makes a MODLIB and keeps other installs to it away: Kbuild removes what is
// there. The name stands for no file, and the lock is none of those of package sign.
func (d *Driver) lockInstalls(ctx context.Context, modlib string) (*atomicfile.Lock, error) {
	lock := func() (*atomicfile.Lock, error) {
		if err := os.MkdirAll(modlib, 0o777); err != nil {
			return nil, err
		}
		return atomicfile.LockName(filepath.Join(modlib, "modules_install"))
	}
	return atomicfile.Wait(ctx, lock, func(e *atomicfile.LockedError) {
		d.Front.Note("waiting for another install to %s, by %s", modlib, e.Holder)
	})
}

// waiting says which run of package sign the driver waits for.
func (d *Driver) waiting(e *sign.LockedError) { d.Front.Note("waiting: %v", e) }

// markStarted marks that an install has started, where it may write to the object tree.
func (d *Driver) markStarted(ctx context.Context, mark Mark) (marked bool, err error) {
	err = MarkInstallStarted(ctx, d.Objtree, mark)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		// As of root, where the object tree lies on another machine.
		d.Front.Note("an interrupted install will leave no mark: %v", err)
		return false, nil
	}
	return err == nil, err
}

// installModules has Kbuild install its own files and, if it must, the modules.
func (d *Driver) installModules(ctx context.Context, tree *kbuild.Tree, step Step, s installStep, m modules) error {
	overrides := slices.Concat(s.overrides, leftToModsign)
	c := d.newCopying(ctx, tree, s, m)
	if c != nil {
		overrides = append(overrides, noModules)
	}
	failed := d.make(ctx, step.Goals, overrides...)
	if c != nil && c.overtaken() {
		d.Front.Note("this kernel's makefiles install the modules themselves: they are signed where they are now")
		c = nil
	}
	if c != nil {
		if ctx.Err() != nil {
			return c.interrupted(ctx)
		}
		if failed != nil && !d.Flags.KeepGoing {
			d.Front.Say("warning: the modules are not installed in %s: run make modules_install again", m.destination)
			return failed
		}
		return d.both(failed, d.copyModules(ctx, tree, s, c))
	}
	if failed != nil { // in the middle, where Kbuild alone would have signed what is there
		m.names = slices.DeleteFunc(m.names, func(name string) bool { return missing(filepath.Join(m.destination, name)) })
	}
	err := context.Cause(ctx)
	if err == nil {
		o := sign.WriteOptions{Extend: true}
		if s.signs {
			o.Mode = m.newMode()
		}
		err = d.finishModules(ctx, tree, s, m, o)
	}
	if err != nil && len(m.names) > 0 {
		d.Front.Say("warning: modules in %s may be unsigned: run make modules_install again", m.destination)
	}
	return d.both(failed, err)
}

// newMode is the mode that sign-file leaves, which writes new files, and nil if the modules
// that Kbuild has copied have that mode already.
func (m modules) newMode() *fs.FileMode {
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	mode := fs.FileMode(0o666 &^ umask)
	for _, name := range m.names {
		if info, err := os.Lstat(filepath.Join(m.destination, name)); err == nil && info.Mode() != mode {
			return &mode
		}
	}
	return nil
}

// both joins the error of make, which has said why it failed, and that of modsign.
func (d *Driver) both(failed, err error) error {
	if failed == nil || err == nil {
		return cmp.Or(failed, err)
	}
	if _, said := StatusOf(err); !said {
		d.Front.Say("%v", err)
	}
	return failed
}

// finishModules takes a step with the modules that are installed, and no others.
func (d *Driver) finishModules(
	ctx context.Context, tree *kbuild.Tree, s installStep, m modules, o sign.WriteOptions,
) error {
	if len(m.names) == 0 {
		return nil
	}
	modules, err := sign.Open(ctx, sign.Source{
		Roots: []string{m.destination}, Names: m.names, Compress: m.format, Wait: d.waiting,
	})
	if err != nil {
		return err
	}
	defer modules.Close()
	o.Jobs, o.Sync = d.jobs(), sign.SyncNone
	return s.do(modules, nil, sign.Options{
		WriteOptions: o,
		DebugOptions: sign.DebugOptions{StripDebug: s.strips, StripProgram: stripProgram(tree)},
	})
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
