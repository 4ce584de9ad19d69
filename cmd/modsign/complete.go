package main

import (
	"crypto"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/keygen"
)

// flagValues are the values of flags that have a fixed set of them, by the name of the
// flag, or by the command and the flag where the name alone is not enough.
func flagValues() map[string][]string {
	var types []string
	for _, a := range keygen.Algorithms() {
		types = append(types, a.String())
	}
	return map[string][]string{
		"hash":                          hashNames(),
		"type":                          types,
		"key-type":                      types,
		"existing":                      {"replace", "skip", "refuse", "add"},
		"compress":                      {"none", "gz", "xz", "zst"},
		"sync":                          {"tree", "file", "none"},
		"mtime":                         {"keep", "now"},
		"rsa":                           {"single", "batch"},
		"xattr":                         {"safe", "keep"},
		"modsign attach format":         signatureFormats,
		"modsign hashlist build format": {"list", "merkle"},
		"modsign hashlist build strip":  {"1", "--strip-debug", "-g"},
		"keep":                          {"installs=1"},
	}
}

// hashNames are the hashes of module signatures, as CONFIG_MODULE_SIG_HASH spells them.
func hashNames() []string {
	var names []string
	for _, h := range []crypto.Hash{
		crypto.SHA512, crypto.SHA384, crypto.SHA256, crypto.SHA224, crypto.SHA1,
		crypto.SHA3_512, crypto.SHA3_384, crypto.SHA3_256,
	} {
		names = append(names, cms.HashName(h))
	}
	return names
}

// fileFlags are the placeholders of flags that take the path of a file.
var fileFlags = map[string]bool{"FILE": true, "IMAGE": true, "PROGRAM": true, "LIST": true, "MODULE": true}

// completeAll says how a shell completes the flags and the arguments of all commands
// below one. A flag whose value nobody can guess, such as a number, gets nothing: the
// names of files would be wrong.
func completeAll(parent *cobra.Command) {
	values := flagValues()
	for _, cmd := range parent.Commands() {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if complete := completion(cmd, f, values); complete != nil {
				// It fails for a flag that is not there, or has one already.
				if err := cmd.RegisterFlagCompletionFunc(f.Name, complete); err != nil {
					panic("internal error: " + err.Error())
				}
			}
		})
		if cmd.ValidArgsFunction == nil && cmd.ValidArgs == nil {
			cmd.ValidArgsFunction = completeArgs(cmd)
		}
		completeAll(cmd)
	}
}

// completion is how a flag's value is completed; nil is by the names of files.
func completion(cmd *cobra.Command, f *pflag.Flag, values map[string][]string) cobra.CompletionFunc {
	placeholder, _ := pflag.UnquoteUsage(f)
	fixed := values[f.Name]
	if own := values[cmd.CommandPath()+" "+f.Name]; own != nil {
		fixed = own
	}
	switch {
	case f.Value.Type() == "bool" || fileFlags[placeholder]:
		return nil
	case fixed != nil:
		return cobra.FixedCompletions(fixed, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveKeepOrder)
	case placeholder == "DIR":
		return completeDirs
	case placeholder == "KVER":
		return completeKernels
	}
	return cobra.NoFileCompletions
}

func completeDirs(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// completeKernels are the kernels that are installed below --root.
func completeKernels(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	root := "/"
	if f := cmd.Flags().Lookup("root"); f != nil {
		root = f.Value.String()
	}
	entries, _ := os.ReadDir(filepath.Join(root, "lib/modules")) // none are completed where there are none
	var kernels []string
	for _, e := range entries {
		if e.IsDir() {
			kernels = append(kernels, e.Name())
		}
	}
	return kernels, cobra.ShellCompDirectiveNoFileComp
}

// completeArgs is how a command's arguments are completed, by what its usage line
// calls them.
func completeArgs(cmd *cobra.Command) cobra.CompletionFunc {
	_, args, _ := strings.Cut(cmd.Use, " ")
	switch {
	case cmd.HasSubCommands():
		return nil
	case cmd.Name() == "sign-file":
		return completeSignFile
	case args == "":
		return cobra.NoFileCompletions
	case strings.HasSuffix(args, "DIR...") || strings.Contains(args, "TREE") || args == "DIR" || args == "[DIR]":
		return completeDirs
	}
	return nil
}

// completeSignFile completes the hash, which is an argument there, and files.
func completeSignFile(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	a, _ := kernelSignFile.parse(args, false)
	n := len(a.positional)
	switch {
	case n == 0 && !a.raw || n == 1 && a.raw:
		return hashNames(), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	case n > 4:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// completeCommands completes the words of help.
func completeCommands(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if about, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
		for _, c := range about.Commands() {
			if !c.Hidden {
				names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
