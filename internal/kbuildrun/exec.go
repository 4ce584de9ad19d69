package kbuildrun

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/modsign/modsign/kbuild"
)

// runMake calls make in the place of this program. If make fails, the error is an
// [*ExitError].
func (s *System) runMake(ctx context.Context, program string, args []string, env ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = append(slices.Clone(s.Environ), env...), s.Stdin, s.Stdout, s.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it removes half-made files
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return &ExitError{exit.ExitCode()}
	}
	return err
}

// InstallOnce calls make modules_install with these arguments through the hook, in a tree
// that need not have it. Make calls this program back.
func (s *System) InstallOnce(ctx context.Context, args []string) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	// A file and no pipe: make reads its makefile again when it starts over.
	f, err := os.CreateTemp("", "modsign-*.mk")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(HookText(program))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.runMake(ctx, "make", slices.Concat([]string{"-f", f.Name()}, args, []string{"modules_install"}))
}

// depmod does as the kernel's scripts/depmod.sh.
func (d *Driver) depmod(ctx context.Context, tree *kbuild.Tree) error {
	if _, err := os.Stat(d.path("System.map")); err != nil {
		d.Front.Say("warning: depmod is left out: no System.map in %s", d.Objtree)
		return nil
	}
	name, _ := tree.Vars.Lookup("DEPMOD")
	name = cmp.Or(name, "depmod")
	program, err := lookPath(name)
	if (errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist)) && !isCommandLine(name) {
		d.Front.Say("warning: depmod is left out: no program %s (Debian's package kmod has it)", name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("DEPMOD is not a program: %w", err)
	}
	args := []string{"-ae", "-F", "System.map"}
	if root := tree.InstallModPath(); root != "" {
		args = append(args, "-b", root)
	}
	cmd := exec.CommandContext(ctx, program, append(args, tree.Release)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = d.Objtree, d.System.Stdout, d.System.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// lookPath finds a program, also in /sbin, which is not in everyone's PATH.
func lookPath(name string) (string, error) {
	program, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) && !strings.Contains(name, "/") {
		if inSbin, err := exec.LookPath(filepath.Join("/sbin", name)); err == nil {
			return inSbin, nil
		}
	}
	return program, err
}

// isCommandLine reports whether a name is that of a program with arguments. Kbuild finds
// the program and then fails to run it by the whole name.
func isCommandLine(name string) bool {
	words := strings.Fields(name)
	if len(words) < 2 {
		return false
	}
	_, err := lookPath(words[0])
	return err == nil
}
