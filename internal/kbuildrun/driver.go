// Package kbuildrun makes modsign a part of a kernel's build. [NewHook] gives the files that
// let make call modsign. A [Driver] does what they call it for: it passes the goals on to
// the kernel's Makefile and takes care of the key, the signatures and the hashes.
//
// Only the command modsign uses it. The words and the terminal are the command's: the
// driver reaches them through [Front] and [System].
package kbuildrun

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/modsign/modsign/kbuild"
)

// A Driver takes the place of one call of make in a tree where modsign is enabled. It calls
// make in the current directory, as the hook was.
type Driver struct {
	Objtree  string
	ExtMod   string        // directory of an external module; empty for the kernel's own modules
	Make     string        // the program make
	Program  string        // where modsign is, as Enable wrote it down
	Keep     string        // end of the one-time key, as modsign agent serve --keep
	Lifetime time.Duration // of the one-time key

	Flags  MakeFlags
	System System
	Front  Front
}

// Run reaches the goals, step by step. With make -k it goes on after a step that failed.
func (d *Driver) Run(ctx context.Context, goals []string) error {
	if err := d.warnUnfinished(goals); err != nil {
		return err
	}
	var failed error
	for _, step := range Plan(goals) {
		err := d.step(ctx, step)
		if err != nil && (!d.Flags.KeepGoing || ctx.Err() != nil) {
			return err
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// warnUnfinished warns of modules that an interrupted install may have left unsigned,
// unless they are about to be installed again.
func (d *Driver) warnUnfinished(goals []string) error {
	marks, err := Unfinished(d.Objtree)
	if err != nil || len(marks) == 0 {
		return err
	}
	var next Mark
	if tree, err := d.tree(); err == nil && slices.Contains(goals, "modules_install") {
		next, _ = markOf(tree)
	}
	for _, m := range marks {
		if m != next {
			d.Front.Say("warning: an earlier %s did not finish, and modules in %s may be unsigned or missing: "+
				"run it again", m.command(), m.Dir)
		}
	}
	return nil
}

func (d *Driver) step(ctx context.Context, step Step) error {
	if d.ExtMod != "" && step.Work != Install && step.Work != Sign {
		return d.make(ctx, step.Goals)
	}
	switch step.Work {
	case Build:
		return d.build(ctx, step.Goals)
	case Package:
		return d.pack(ctx, step.Goals)
	case Install, Sign:
		return d.install(ctx, step)
	case Clean, Purge:
		return d.clean(ctx, step)
	}
	return d.make(ctx, step.Goals)
}

// idle reports whether make is not to do its work: -n, -t and -q.
func (d *Driver) idle() bool { return d.Flags.DryRun || d.Flags.Touch || d.Flags.Question }

// make calls the kernel's Makefile. It is the outermost make that people see.
func (d *Driver) make(ctx context.Context, goals []string, overrides ...string) error {
	args := append([]string{"-f", "Makefile"}, overrides...)
	return d.System.runMake(ctx, d.Make, append(args, goals...), "MAKELEVEL=0")
}

func (d *Driver) tree() (*kbuild.Tree, error) {
	return kbuild.OpenTree(d.Objtree, d.ExtMod, kbuild.Vars{Line: d.Flags.Vars, LookupEnv: d.System.LookupEnv})
}

func (d *Driver) hook() *Hook { return &Hook{Objtree: d.Objtree, Program: d.Program} }

func (d *Driver) path(elem ...string) string {
	return filepath.Join(append([]string{d.Objtree}, elem...)...)
}

// exists reports whether a path leads to anything.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// build reaches goals that may link a kernel.
func (d *Driver) build(ctx context.Context, goals []string) error {
	overrides, err := d.certificate(ctx)
	if err != nil {
		return err
	}
	hashed := false
	if !allCertificates(goals) {
		// Most calls of make have nothing to do: one make finds that out, and not two.
		if d.hasRightHashes() {
			if err := d.make(ctx, goals, overrides...); err != nil {
				return err
			}
			if d.hasRightHashes() {
				return d.placeSignFile()
			}
		}
		if hashed, err = d.hashes(ctx, overrides); err != nil {
			return err
		}
	}
	if err := d.make(ctx, goals, overrides...); err != nil {
		return err
	}
	if hashed {
		if err := d.stillHashed(); err != nil {
			return err
		}
	}
	return d.placeSignFile()
}

func allCertificates(goals []string) bool {
	return len(goals) > 0 && !slices.ContainsFunc(goals, func(goal string) bool {
		return !strings.HasPrefix(goal, "certs/")
	})
}

// pack makes a package. Its own make installs modules past the hook, and calls the
// sign-file of the tree: modsign must be in its place before.
func (d *Driver) pack(ctx context.Context, goals []string) (err error) {
	overrides, err := d.certificate(ctx)
	if err != nil {
		return err
	}
	release, err := d.holdKey(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if released := release(); err == nil {
			err = released
		}
	}()
	if !d.idle() {
		if err := d.make(ctx, []string{"scripts"}, overrides...); err != nil {
			return err
		}
		if err := d.placeSignFile(); err != nil {
			return err
		}
		if _, err := d.hashes(ctx, overrides); err != nil {
			return err
		}
	}
	if err := d.make(ctx, goals, overrides...); err != nil || d.idle() {
		return err
	}
	return d.reportInstall()
}

// placeSignFile puts modsign in the place of a sign-file that Kbuild has built.
func (d *Driver) placeSignFile() error {
	tree, err := d.tree()
	if err != nil || d.idle() || !tree.Config.Bool("MODULE_SIG_FORMAT") || !Enabled(d.Objtree) {
		return err
	}
	return d.hook().PlaceSignFile()
}

// clean destroys the key, even if make fails.
func (d *Driver) clean(ctx context.Context, step Step) error {
	err := d.make(ctx, step.Goals)
	if d.idle() || ctx.Err() != nil {
		return err
	}
	if _, forget := destroyKey(d.Objtree); forget != nil {
		return errors.Join(err, forget)
	}
	if step.Work == Purge && err == nil {
		err = d.purge()
	}
	return err
}

// purge removes the receipts too, as mrproper removes everything but the source.
func (d *Driver) purge() error {
	if err := RemoveReceipts(d.Objtree); err != nil {
		return err
	}
	return d.hook().Purge()
}
