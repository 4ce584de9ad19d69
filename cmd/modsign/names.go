package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// signProgramOf returns the program of a name that takes the arguments of sign-file, or nil.
// It knows the names that distributions give the kernel's program, such as kernel-sign-file
// and sign-file-6.1, and Ubuntu's kmodsign.
func signProgramOf(name string) *signProgram {
	switch {
	case strings.HasPrefix(name, "sign-file"), strings.HasSuffix(name, "sign-file"):
		return kernelSignFile
	case name == kmodsign.name:
		return kmodsign
	}
	return nil
}

// noSuchCommand is the error for words that name no command below cmd. It repeats only the
// first, as the others may be secret, and suggests the nearest command.
func noSuchCommand(cmd *cobra.Command, words []string) error {
	if len(words) == 0 {
		return nil
	}
	err := &failure{code: exitUsage, err: fmt.Errorf("there is no command %.40q", words[0])}
	err.hint = cmd.CommandPath() + " --help lists the commands"
	if name := nearestCommand(cmd, words[0]); name != "" {
		err.hint = fmt.Sprintf("%s %s is the nearest; %s", cmd.CommandPath(), name, err.hint)
	}
	return err
}

// flagError makes the error for a wrong flag in these arguments. After a word that is no
// command every flag is unknown, so it reports the word.
func flagError(args []string) func(*cobra.Command, error) error {
	return func(cmd *cobra.Command, err error) error {
		if cmd.HasSubCommands() {
			_, words, _ := cmd.Root().Find(args)
			if len(words) > 0 && !strings.HasPrefix(words[0], "-") {
				return noSuchCommand(cmd, words)
			}
		}
		return invalidValue(err)
	}
}

// invalidValue is the error of the flag library about a value, in the words that the
// commands have for the values that they check.
func invalidValue(err error) error {
	e, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return &failure{code: exitUsage, err: err}
	}
	want := "want " + map[string]string{
		"int": "a number", "duration": "a duration such as 90m or 24h", "bool": "true or false",
	}[e.GetFlag().Value.Type()]
	if want == "want " {
		want = e.Unwrap().Error()
	}
	return usagef("--%s: invalid value %q: %s", e.GetFlag().Name, e.GetValue(), want)
}

// nearestCommand returns the command that a misspelled word may mean, or nothing.
func nearestCommand(cmd *cobra.Command, word string) string {
	if len(word) > 40 {
		return ""
	}
	for distance := 1; distance <= 2; distance++ {
		cmd.SuggestionsMinimumDistance = distance
		if names := cmd.SuggestionsFor(word); len(names) > 0 {
			return names[0]
		}
	}
	return ""
}
