package kbuildrun

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
)

// noModules has Kbuild install all but the modules: scripts/Makefile.modinst assigns the
// variable, and one of the command line wins over that.
const noModules = "modules="

// A copying is an install of modules that are read from the build and written once, where
// Kbuild would copy each, and have one program after the other write it again.
type copying struct {
	modules
	strips bool
	before map[string]identity // modules that an earlier install has left
}

// newCopying prepares the copying of a tree's modules. It returns nil if they are left to
// Kbuild, because a program strips them as only that program does.
func (d *Driver) newCopying(ctx context.Context, tree *kbuild.Tree, s installStep, m modules) *copying {
	if len(m.names) == 0 {
		return nil
	}
	c := &copying{modules: m, strips: s.strips}
	strip, _ := tree.Vars.Lookup("INSTALL_MOD_STRIP")
	switch {
	case s.strips || strip == "":
	case strip == "1" && d.isGNUStrip(ctx, stripProgram(tree)):
		c.strips = true
	default:
		return nil
	}
	c.before = c.installed()
	return c
}

// isGNUStrip reports whether a program is strip of GNU binutils, whose output sign makes
// without it.
func (d *Driver) isGNUStrip(ctx context.Context, program string) bool {
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Env = append(slices.Clone(d.System.Environ), "LC_ALL=C")
	out, err := cmd.Output()
	return err == nil && strings.HasPrefix(string(out), "GNU strip")
}

// An identity tells a file from another one that had its name, and from itself before a
// write.
type identity struct {
	ino    uint64
	change syscall.Timespec
}

// installed returns the identities of the installed modules, as Kbuild names them without compression.
func (c *copying) installed() map[string]identity {
	all := make(map[string]identity)
	if !exists(c.destination) {
		return all
	}
	for _, name := range c.names {
		if info, err := os.Lstat(filepath.Join(c.destination, name)); err == nil {
			st := info.Sys().(*syscall.Stat_t)
			all[name] = identity{st.Ino, st.Ctim}
		}
	}
	return all
}

// overtaken reports whether Kbuild has installed modules all the same.
func (c *copying) overtaken() bool {
	for name, now := range c.installed() {
		if c.before[name] != now {
			return true
		}
	}
	return false
}

// copyModules installs the modules and takes the step with them.
func (d *Driver) copyModules(ctx context.Context, tree *kbuild.Tree, s installStep, c *copying) error {
	source := sign.Source{
		Roots: []string{tree.ModulesDir()}, Names: c.names, Output: c.destination, Copy: true,
		Compress: c.format, KeepForms: d.ExtMod != "" && !forExternal(c.below), Wait: d.waiting,
	}
	if d.ExtMod == "" {
		// Kbuild has removed this directory: a link of its name is not the user's.
		source.Output, source.Below = filepath.Split(c.destination)
	}
	modules, err := sign.Open(ctx, source)
	if err != nil {
		return err
	}
	defer modules.Close()
	var l *lines
	if !d.Flags.Silent {
		l = &lines{out: bufio.NewWriter(d.System.Stdout), signs: s.signs, strips: c.strips, format: c.format}
	}
	err = s.do(modules, l, sign.Options{
		WriteOptions: sign.WriteOptions{Jobs: d.jobs(), Sync: sign.SyncNone},
		DebugOptions: sign.DebugOptions{StripDebug: c.strips, StripProgram: stripProgram(tree)},
	})
	if err != nil && ctx.Err() != nil {
		return c.interrupted(ctx)
	}
	return err
}

// interrupted is the error of an install that was interrupted after Kbuild has removed the
// old modules.
func (c *copying) interrupted(ctx context.Context) error {
	return fmt.Errorf("%w: not all modules are installed in %s; run make modules_install again",
		context.Cause(ctx), c.destination)
}

// forExternal reports whether a directory below MODLIB is one of those that Kbuild has for
// external modules. Elsewhere another form of a module may be the kernel's own.
func forExternal(below string) bool {
	first, _, _ := strings.Cut(below, "/")
	return first == "updates" || first == "extra"
}

// lines are those that Kbuild prints of what it does to modules, which people search logs
// for.
type lines struct {
	out    *bufio.Writer
	signs  bool
	strips bool
	format sign.Format
}

// through returns a pass that prints the lines. A nil lines prints none.
func (l *lines) through(pass Pass) Pass {
	if l == nil {
		return pass
	}
	return func(o sign.Options) (sign.Summary, error) {
		report := o.Report.Result
		o.Report.Progress = nil // the lines show it
		o.Report.Result = func(r sign.Result) {
			l.print(r)
			report(r)
		}
		defer l.out.Flush()
		return pass(o)
	}
}

func (l *lines) print(r sign.Result) {
	if r.Output == "" {
		l.out.Flush() // before the words on why it failed
		return
	}
	plain := strings.TrimSuffix(r.Output, l.format.Suffix())
	l.line("INSTALL", plain)
	if l.strips {
		l.line("STRIP", plain)
	}
	if l.signs {
		l.line("SIGN", plain)
	}
	if l.format != sign.None {
		l.line(strings.ToUpper(l.format.String()), r.Output)
	}
}

func (l *lines) line(what, path string) {
	fmt.Fprintf(l.out, "  %-7s %s\n", what, path)
}
