package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/verify"
)

type hashlistVerifyOptions struct {
	installedOptions
	list  string
	image string
	all   bool
	jobs  jobsFlag
}

func newHashlistVerifyCommand(u *ui) *cobra.Command {
	var o hashlistVerifyOptions
	cmd := &cobra.Command{
		Use:   "verify {--list LIST | --kernel IMAGE} TREE|PACKAGE | --installed [KVER]",
		Short: "Compare modules with a list, or with a kernel's built-in hashes",
		Long: `Verify compares the modules in a directory lib/modules/KVER with a list, or with the
hashes that a kernel has built in. It names every module that differs from the list,
or that the kernel would reject because of its hash: changed, extra, missing, stripped
since, without a proof, or with the proof of another kernel. The kernel is a vmlinux or
a boot image with a vmlinux inside, as on x86. It holds no names: these come from
modules.order in the directory.

Modules with other hashes that the kernel loads for their signatures are "signed": it
accepts signatures, and one of its built-in certificates fits. modsign verify --kernel
takes more certificates. Verify follows symbolic links as modsign verify does.

Instead of the directory, a package or image with the modules will do, as for modsign
verify. modules.order inside names them. Without --list and --kernel, the hashes of the
kernel image inside count.`,
		Example: `  modsign hashlist verify --list hashes /tmp/stage/lib/modules/6.12.0
  modsign hashlist verify --kernel /boot/vmlinuz-6.12.0 /lib/modules/6.12.0
  modsign hashlist verify --installed`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.list, "list", "", "compare with the list in `FILE`")
	flags.StringVar(&o.image, "kernel", "", "compare with the hashes built into the kernel `IMAGE`")
	o.installedOptions.addFlags(flags)
	flags.BoolVarP(&o.all, "all", "a", false, "list every module")
	addJSON(flags, u)
	addQuiet(flags, u)
	o.jobs.addFlag(flags)
	return cmd
}

func (o *hashlistVerifyOptions) run(ctx context.Context, u *ui, args []string) error {
	if err := o.jobs.check(); err != nil {
		return err
	}
	kernel, err := o.kernel(args)
	if err != nil {
		return err
	}
	dir, err := o.choose(kernel, args)
	if err != nil {
		return err
	}
	pkgs, _ := packages([]string{dir})
	var reference *hashlist.Reference
	var against string
	if len(pkgs) == 0 {
		if reference, against, err = o.reference(u, dir, kernel); err != nil {
			return err
		}
	}
	start := time.Now()
	modules, inPlace := 0, 0
	keys, err := o.keyring()
	if err != nil {
		u.Note("warning: signatures are not looked at: %v", err)
	}
	var signed func(file string) string
	and := ""
	if keys.Len() > 0 {
		and = " and " + plural(keys.Len(), "certificate")
		signed = func(file string) string {
			if r := verify.File(ctx, keys, file); r.Verdict == verify.Trusted {
				return r.Signer
			}
			return ""
		}
	}
	options := hashlist.VerifyOptions{Jobs: int(o.jobs), Root: kernel.rootDir(), Signed: signed}
	options.Result = func(r hashlist.Result) {
		modules++
		if r.Verdict != hashlist.Extra && r.Verdict != hashlist.Missing && r.Detail == "" {
			inPlace++
		}
		u.Progress(false, func() string { return fmt.Sprintf("verifying %s", plural(modules, "module")) })
		o.show(u, r)
	}
	var summary hashlist.Summary
	if len(pkgs) == 0 {
		summary, err = reference.Verify(ctx, dir, options)
	} else {
		options.SignedContent = signedContent(keys)
		summary, against, err = o.verifyPackage(ctx, dir, options)
	}
	u.Progress(true, nil)
	against += and
	if err != nil && !errors.Is(err, hashlist.ErrRefused) { // what is refused is shown
		return err
	}
	if modules == 0 {
		return fmt.Errorf("no kernel module found in %s: nothing was verified", dir)
	}
	took := time.Since(start)
	if u.JSON {
		u.Object(jsonHashlistSummary{Type: "summary", Modules: modules, Verdicts: summary, Seconds: took.Seconds()})
	}
	u.Note("verified %s against %s in %s: %s", plural(modules, "module"), against, seconds(took), summary)
	switch {
	case summary.Refused()-summary[hashlist.Failed] > 0:
		if inPlace == 0 && summary[hashlist.Missing] > 0 && len(pkgs) == 0 {
			u.Hint("names in a list begin below lib/modules/KVER: check that %s is that directory", dir)
		}
		return exitStatus(exitRefused)
	case summary[hashlist.Failed] > 0:
		return exitStatus(exitSome)
	}
	return nil
}

// keyring holds the certificates of a kernel that loads modules for their signatures too.
func (o *hashlistVerifyOptions) keyring() (*verify.Keyring, error) {
	keys := new(verify.Keyring)
	if o.list != "" || o.image == "" {
		return keys, nil
	}
	return keys, keys.AddImage(o.image)
}

// signedContent returns what tells who signed a module, as far as the keyring has the key.
func signedContent(keys *verify.Keyring) func(io.ReaderAt, int64) string {
	if keys.Len() == 0 {
		return nil
	}
	return func(content io.ReaderAt, size int64) string {
		if r := verify.Module(content, size, keys); r.Verdict == verify.Trusted {
			return r.Signer
		}
		return ""
	}
}

// choose checks the flags, completes them for an installed kernel, and returns the
// directory of the modules.
func (o *hashlistVerifyOptions) choose(kernel *kernel, args []string) (dir string, err error) {
	switch {
	case o.list != "" && o.image != "":
		return "", usagef("--list and --kernel exclude each other")
	case kernel != nil:
		if o.list == "" && o.image == "" {
			if o.image, err = kernel.Image(); err != nil {
				return "", withHint(err, "use --kernel IMAGE or --list FILE")
			}
		}
		return kernel.ModLib, nil
	case len(args) != 1:
		return "", usagef("no modules given: name the directory lib/modules/KVER, or use --installed")
	case o.list == "" && o.image == "" && !isPackage(args[0]):
		return "", usagef("nothing to compare with: use --list FILE or --kernel IMAGE")
	}
	return args[0], nil
}

// reference returns what to compare with, and words for it.
func (o *hashlistVerifyOptions) reference(u *ui, dir string, installed *kernel) (*hashlist.Reference, string, error) {
	if o.list != "" {
		list, err := hashlist.ReadFile(o.list)
		if err != nil {
			return nil, "", err
		}
		if installed != nil && installed.Release != list.Release {
			return nil, "", fmt.Errorf("%s is the list of kernel %s, not of %s", o.list, list.Release, installed.Release)
		}
		return hashlist.NewReference(list), "the list of " + list.Release, nil
	}
	kernel, err := hashlist.OpenKernel(o.image)
	if err != nil {
		return nil, "", noHashes(err)
	}
	order, err := installed.order(dir)
	if errors.Is(err, fs.ErrNotExist) {
		u.Note("%s has no modules.order: missing modules are not found", dir)
	} else if err != nil {
		return nil, "", err
	}
	reference, err := hashlist.NewKernelReference(kernel.Embedded, order)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", o.image, err)
	}
	return reference, kernel.Embedded.String(), nil
}

func (o *hashlistVerifyOptions) show(u *ui, r hashlist.Result) {
	switch {
	case u.JSON:
		u.Object(newJSONHashed(r))
	case r.Err != nil:
		u.Say("%s", describe(r.Path, r.Err))
	case r.Verdict != hashlist.Trusted || o.all:
		u.Result("%s: %s", r.Name, r)
	}
}
