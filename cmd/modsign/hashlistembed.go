package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/kbuild"
)

type hashlistEmbedOptions struct {
	objtree string
	list    string
	section string
	jobs    int
}

func newHashlistEmbedCommand(u *ui) *cobra.Command {
	var o hashlistEmbedOptions
	cmd := &cobra.Command{
		Use:   "embed {VMLINUX {--list LIST | --section FILE} | --objtree DIR}",
		Short: "Put the hashes into a linked vmlinux",
		Long: `Embed writes the results of hashlist build into the section .module_hashes of a
linked vmlinux: the hashes of a list, or the content of a section. Run it before the
boot image is made. It says what it replaces. If the hashes do not fit, it writes
nothing: the kernel is linked with room for as many hashes as it had modules.

With --objtree, embed does all the work between the modules and the boot image. It
hashes the modules, writes their proofs for a Merkle tree, embeds the hashes, and
removes the files that were made from vmlinux, so that the next make makes a new boot
image. vmlinux keeps its time of modification, so that make does not build modules
again.`,
		Example: `  modsign hashlist embed vmlinux --list hashes
  make vmlinux modules && modsign hashlist embed --objtree . && make bzImage`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.list, "list", "", "embed the hashes of the list in `FILE`")
	flags.StringVar(&o.section, "section", "", "embed the section that hashlist build wrote to `FILE`")
	flags.StringVar(&o.objtree, "objtree", "", "hash the modules of the object tree `DIR`, and embed the hashes")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but errors")
	flags.IntVarP(&o.jobs, "jobs", "j", 0, "modules read at once, `N` (default: twice the number of processors)")
	return cmd
}

func (o *hashlistEmbedOptions) run(ctx context.Context, u *ui, args []string) error {
	switch {
	case o.list != "" && o.section != "", o.objtree != "" && o.list+o.section != "":
		return usagef("--list, --section and --objtree exclude each other")
	case o.jobs < 0:
		return usagef("--jobs is %d, and has to be a number of modules", o.jobs)
	case o.objtree+o.list+o.section == "":
		return usagef("nothing to embed: use --list FILE, --section FILE or --objtree DIR")
	case o.objtree != "" && len(args) > 0:
		return usagef("--objtree names the vmlinux: unexpected argument %q", args[0])
	case o.objtree == "" && len(args) == 0:
		return usagef("no vmlinux given")
	case o.objtree == "" && len(args) > 1:
		return usagef("unexpected argument %q", args[1])
	}
	if o.objtree != "" {
		return o.embedObjtree(ctx, u)
	}
	return o.embedFile(u, args[0])
}

func (o *hashlistEmbedOptions) embedObjtree(ctx context.Context, u *ui) error {
	tree, err := kbuild.OpenTree(o.objtree, "", kbuild.Vars{LookupEnv: os.LookupEnv})
	if err != nil {
		return err
	}
	e, changed, err := embedHashes(ctx, u, tree, o.jobs)
	if err == nil && !changed {
		u.note("vmlinux has %s already", e)
	}
	return err
}

func (o *hashlistEmbedOptions) embedFile(u *ui, vmlinux string) error {
	kernel, err := hashlist.OpenKernel(vmlinux)
	if err != nil {
		return noHashes(err)
	}
	e, err := o.hashes(vmlinux, kernel)
	if err != nil {
		return err
	}
	u.begin()
	old, err := hashlist.Embed(vmlinux, e)
	if err != nil {
		return err
	}
	if old.Has(e) {
		u.note("%s has %s already", vmlinux, e)
	} else {
		u.note("%s now has %s instead of %s", vmlinux, e, old.Embedded)
	}
	return nil
}

// hashes reads what to embed into a kernel.
func (o *hashlistEmbedOptions) hashes(vmlinux string, kernel *hashlist.Kernel) (*hashlist.Embedded, error) {
	if o.list == "" {
		data, err := readLimited(o.section)
		if err != nil {
			return nil, err
		}
		e, err := hashlist.ParseSection(data, kernel.Order())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.section, err)
		}
		return e, nil
	}
	list, err := readList(o.list)
	if err != nil {
		return nil, err
	}
	if kernel.Release != "" && kernel.Release != list.Release {
		return nil, fmt.Errorf("%s is the list of kernel %s, and %s is kernel %s",
			o.list, list.Release, vmlinux, kernel.Release)
	}
	return list.Embedded(), nil
}

// embedHashes brings the vmlinux of an object tree up to date with the modules that are
// built there. It returns what vmlinux has now, and whether that is new.
func embedHashes(ctx context.Context, u *ui, tree *kbuild.Tree, jobs int) (*hashlist.Embedded, bool, error) {
	u.begin()
	format := tree.Config.HashFormat()
	if format == "" {
		err := fmt.Errorf("%s: the kernel is configured without CONFIG_MODULE_HASHES_LIST and _MERKLE", tree.Objtree)
		return nil, false, withHint(err, "modsign kbuild patch adds them to a kernel's source")
	}
	start := time.Now()
	source, options, err := objtreeSource(tree)
	if err != nil {
		return nil, false, err
	}
	options.Format, options.Jobs = hashlist.Format(format), jobs
	built, err := buildHashes(ctx, u, source, options)
	if err != nil {
		return nil, false, err
	}
	old, err := built.Embed(hashlist.ObjectTree{
		Vmlinux:   filepath.Join(tree.Objtree, "vmlinux"),
		BootFiles: tree.BootFiles,
		WriteList: func(text []byte) error { return kbuild.WriteHashList(tree.Objtree, text) },
	})
	if err != nil {
		return nil, false, noHashes(err)
	}
	e := built.Embedded()
	if old.Has(e) {
		return e, false, nil
	}
	u.note("hashed %s (%s), and vmlinux has %s, in %s", plural(len(source.Names), "module"), megabytes(built.Bytes), e,
		seconds(time.Since(start)))
	return e, true, nil
}

// objtreeSource returns the modules of an object tree, and how to hash them as
// modules_install will install them.
func objtreeSource(tree *kbuild.Tree) (source hashlist.Source, options hashlist.BuildOptions, err error) {
	strip, given := tree.Vars.Lookup("INSTALL_MOD_STRIP")
	if tree.Config.HashFormat() != "" {
		frozen := tree.Config.InstallStrip()
		if given && strip != frozen {
			return source, options, stripsOtherwise(strip, frozen)
		}
		strip = frozen
	}
	source = hashlist.Source{Dir: tree.Objtree, Prefix: "kernel/", Release: tree.Release}
	if source.Names, err = tree.Modules(); err != nil {
		return source, options, err
	}
	if tree.Release == "" {
		return source, options, fmt.Errorf("%s: the kernel has no release yet: run make first", tree.Objtree)
	}
	options.StripProgram = stripProgram(tree)
	switch strip {
	case "":
	case "1", "--strip-debug", "-g":
		options.Strip = true
	default:
		return source, options, fmt.Errorf(
			"INSTALL_MOD_STRIP is %q: modsign can predict the installed modules only if it is empty or 1", strip)
	}
	return source, options, nil
}

// stripsOtherwise is the error of modules that would not be what was hashed.
func stripsOtherwise(strip, frozen string) error {
	err := fmt.Errorf("INSTALL_MOD_STRIP is %q, but was %q when the kernel was built and got the hashes", strip, frozen)
	return withHint(err, "use the same value, or run make with the new one first")
}

// stripProgram is the program strip of a build.
func stripProgram(tree *kbuild.Tree) string {
	if program, ok := tree.Vars.Lookup("STRIP"); ok {
		return program
	}
	return "strip"
}
