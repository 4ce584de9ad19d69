package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/sign"
)

type digestOptions struct {
	installedOptions
	hash    string
	output  string
	jobs    int
	maxSize size
}

func newDigestCommand(u *ui) *cobra.Command {
	o := digestOptions{maxSize: 2 << 30}
	cmd := &cobra.Command{
		Use:   "digest {PATH... | --installed [KVER]} > MANIFEST",
		Short: "Write what is to be signed where the key is",
		Long: `Digest is the first of three steps for keys that are elsewhere. It writes a
manifest, one line for each module with its path, size and digest, and changes
nothing. The manifest is all that has to leave the machine with the modules:

  modsign digest TREE > manifest                               here
  modsign sign-digests --key KEY < manifest > signatures       where the key is
  modsign attach --cert CERT TREE < signatures                 here

The result is, byte for byte, what modsign sign would have written with an RSA
key. A module that is signed already has the digest that it would have without
its signatures.

If a module cannot be read, no manifest is written. What is to be stripped has
to be stripped before.`,
		Example: `  modsign digest /tmp/stage/lib/modules/6.12.0 > manifest
  modsign digest --installed 6.12.0-1-amd64 --output manifest`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.installedOptions.addFlags(flags)
	flags.StringVar(&o.hash, "hash", "", "`NAME` of the hash, as CONFIG_MODULE_SIG_HASH spells it (default: sha512, or what the kernel's configuration says)")
	flags.StringVarP(&o.output, "output", "o", "", "write the manifest to `FILE` instead of stdout")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but errors")
	flags.IntVarP(&o.jobs, "jobs", "j", 0, "modules read at once, `N` (default: twice the number of processors)")
	flags.Var(&o.maxSize, "max-module-size", "refuse a compressed module that is larger than `SIZE` when decompressed")
	return cmd
}

func (o *digestOptions) run(ctx context.Context, u *ui, args []string) error {
	if o.jobs < 0 {
		return usagef("--jobs is %d, and has to be a number of modules", o.jobs)
	}
	if len(args) == 0 && o.installed == "" {
		return usagef("nothing to take digests of: name modules or folders, or give --installed")
	}
	kernel, err := o.kernel(args)
	if err != nil {
		return err
	}
	roots := kernel.roots(args)
	hashName, err := (&signOptions{hash: o.hash}).hashName(kernel)
	if err != nil {
		return err
	}
	hash, err := cms.HashByName(hashName)
	if err != nil {
		return usagef("--hash: %v", err)
	}
	// Nothing is written, so that nothing has to be locked either: a module that
	// changes meanwhile fails.
	tree, err := sign.Open(sign.Source{Roots: roots, Root: kernel.rootDir(), DryRun: true})
	if err != nil {
		return err
	}
	defer tree.Close()
	start := time.Now()
	m, err := digests(ctx, u, tree, func(options sign.Options) (sign.Manifest, error) {
		options.Jobs, options.MaxSize = o.jobs, int64(o.maxSize)
		return tree.Manifest(ctx, hash, options)
	})
	if err != nil {
		return err
	}
	if err := writeResult(u, o.output, m); err != nil {
		return err
	}
	var bytes int64
	for _, d := range m {
		bytes += d.Size
	}
	u.note("took the %s digests of %s (%s), in %s", cms.HashName(hash), plural(len(m), "module"), megabytes(bytes), seconds(time.Since(start)))
	for _, note := range linkNotes(tree.Links(), "read") {
		u.note("%s", note)
	}
	return nil
}

// digests shows how f reads a tree and names the modules that fail.
func digests[T any](ctx context.Context, u *ui, tree *sign.Tree, f func(sign.Options) (T, error)) (T, error) {
	w := work{ui: u, verb: "reading", start: time.Now()}
	failed := 0
	found, err := f(sign.Options{DryRun: true, Report: sign.Report{Progress: w.progress, Result: func(r sign.Result) {
		if r.Err != nil {
			failed++
			u.say("%s", describe(r.Path, r.Err))
		}
	}}})
	u.progress(true, nil)
	if errors.Is(err, sign.ErrIncomplete) { // the modules are named above
		return found, fmt.Errorf("%d of %d modules failed: nothing is written before all %[2]d can be read", failed, tree.Modules())
	}
	return found, err
}

// written is a manifest, or the signatures.
type written interface {
	Write(io.Writer) error
	WriteFile(string) error
}

// writeResult writes a result whole, to stdout or to a file.
func writeResult(u *ui, file string, result written) error {
	if file != "" {
		u.beginAt(file)
		return result.WriteFile(file)
	}
	u.begin()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.erase()
	err := result.Write(u.stdout)
	if lost := u.stdout.Flush(); lost != nil {
		return nil // the ui says so
	}
	return err
}

// openInput opens a file that may come from stdin, and names it for people.
func openInput(u *ui, file, what string) (io.ReadCloser, string, error) {
	if file != "" && file != "-" {
		f, err := os.Open(file)
		return f, file, err
	}
	if stdin, ok := u.stdin.(*os.File); ok && term.IsTerminal(int(stdin.Fd())) {
		return nil, "", usagef("no %s: name the file, or redirect stdin from it", what)
	}
	return io.NopCloser(u.stdin), "stdin", nil
}
