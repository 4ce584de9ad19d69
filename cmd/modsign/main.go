// Modsign signs Linux kernel modules in parallel, and checks whether a kernel will load
// them.
//
// Called as sign-file, by that name or as its first argument, it is the kernel's
// scripts/sign-file. Called as kmodsign or modsign-verify, it is the program of Ubuntu or
// SUSE.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// The exit codes, of all commands but sign-file, which has the kernel's, and the program
// modsign-verify, which has SUSE's. Every help shows them, and docs/exit-codes.md.
const (
	exitDone        = 0
	exitError       = 1
	exitUsage       = 2
	exitSome        = 3
	exitRefused     = 4
	exitInterrupted = 130
	statusAborted   = 134 // no code: what a shell makes of SIGABRT
)

var exitCodes = []struct {
	code    int
	meaning string
}{
	{exitDone, "done"},
	{exitError, "failed; modules not yet processed are unchanged"},
	{exitUsage, "wrong command line; nothing was done"},
	{exitSome, "some modules failed; the others are done"},
	{exitRefused, "verification or a policy refused something"},
	{exitInterrupted, "interrupted; no module is half-written"},
	{statusAborted, "killed by SIGABRT (128+6): out of memory or threads, or a bug; no module is half-written"},
}

// failure is an error that has an exit code of its own.
type failure struct {
	code int
	err  error
	hint string // what to do; may be empty
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usagef is the error of a command line that makes no sense.
func usagef(format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// withHint adds what to do to an error.
func withHint(err error, format string, args ...any) error {
	return &failure{code: exitError, err: err, hint: fmt.Sprintf(format, args...)}
}

// exitStatus ends a command with a code when all has been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted")

func main() {
	abortOnFailure()
	isProgram = true
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// run is the program as a function from its arguments to its exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	name := filepath.Base(args[0])
	if program := signProgramOf(name); program != nil {
		return program.run(args[1:], stderr)
	}
	if name == modsignVerifyName {
		return modsignVerify(args[1:], stdout, stderr)
	}
	u := newUI(stdin, stdout, stderr)
	ctx, cancel := u.listen()
	defer cancel(nil)
	defer u.Stop()

	root := newRootCommand(u)
	root.SetArgs(args[1:])
	root.SetFlagErrorFunc(flagError(args[1:]))
	root.SetIn(stdin)
	root.SetOut(u.Stdout)
	root.SetErr(stderr)
	return u.exit(root.ExecuteContext(ctx))
}

func newRootCommand(u *ui) *cobra.Command {
	root := &cobra.Command{
		Use:   "modsign",
		Short: "Sign and verify Linux kernel modules",
		Long: `Modsign signs Linux kernel modules in parallel, and checks whether a kernel will load
them.

  modsign keygen -o signing_key.pem                  make a key
  modsign sign --key signing_key.pem TREE            sign all modules of a tree
  modsign verify --cert signing_key.pem TREE         check their signatures`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			u.parsed.Store(true)
			if beginsAtOnce(cmd) {
				u.Begin()
			}
			if cmd.DisableFlagParsing {
				return nil // the arguments are for another program
			}
			return checkEmpty(cmd, args)
		},
	}
	root.AddGroup(&cobra.Group{ID: "everyday", Title: "Everyday:"}, &cobra.Group{ID: "more", Title: "More:"})
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(
		"everyday",
		newSignCommand(u),
		newModulesSignCommand(u),
		newVerifyCommand(u),
		newExplainCommand(u),
		newInspectCommand(u),
		newDoctorCommand(u),
		newKeygenCommand(u),
		newKbuildCommand(u),
		newHashlistCommand(u),
	)
	add(
		"more",
		newStripCommand(u),
		newDigestCommand(u),
		newSignDigestsCommand(u),
		newAttachCommand(u),
		newScanCommand(u),
		newAgentCommand(u),
		newReceiptCommand(u),
		newKernelCommand(u),
		newSignFileCommand(u),
		newCompletionCommand(u),
		newVersionCommand(u),
	)
	completeAll(root)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(newHelpCommand())
	root.SetHelpCommandGroupID("more")
	// A function, not a template: text/template, which finds methods by their names, makes
	// the linker keep every method of every type, a fifth of the program.
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { fmt.Fprint(cmd.OutOrStdout(), help(cmd)) })
	return root
}

func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		Long:  "Help shows the same text as COMMAND --help.",

		ValidArgsFunction: completeCommands,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return noSuchCommand(about, rest)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// help is what COMMAND --help shows.
func help(cmd *cobra.Command) string {
	return cmp.Or(cmd.Long, cmd.Short) + "\n\n" + cmd.UsageString() + "\n" +
		cmp.Or(cmd.Annotations["exit"], exitStatusHelp()) + "\n"
}

// exitStatusHelp is the end of every help.
func exitStatusHelp() string {
	var b strings.Builder
	b.WriteString("Exit status:")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "\n  %3d  %s", e.code, e.meaning)
	}
	return b.String()
}
