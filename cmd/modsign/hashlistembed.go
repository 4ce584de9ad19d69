package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/kbuild"
)

type hashlistEmbedOptions struct {
	objtree string
	list    string
	section string
	jobs    jobsFlag
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
	addQuiet(flags, u)
	o.jobs.addFlag(flags)
	return cmd
}

func (o *hashlistEmbedOptions) run(ctx context.Context, u *ui, args []string) error {
	switch {
	case o.list != "" && o.section != "", o.objtree != "" && o.list+o.section != "":
		return usagef("--list, --section and --objtree exclude each other")
	case o.objtree+o.list+o.section == "":
		return usagef("nothing to embed: use --list FILE, --section FILE or --objtree DIR")
	case o.objtree != "" && len(args) > 0:
		return usagef("--objtree names the vmlinux: unexpected argument %q", args[0])
	case o.objtree == "" && len(args) == 0:
		return usagef("no vmlinux given")
	case o.objtree == "" && len(args) > 1:
		return usagef("unexpected argument %q", args[1])
	}
	if err := o.jobs.check(); err != nil {
		return err
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
	u.Begin()
	hash := func(ctx context.Context, s hashlist.Source, o hashlist.BuildOptions) (*hashlist.Built, error) {
		return buildHashes(ctx, u, s, o)
	}
	e, err := kbuildrun.EmbedHashes(ctx, tree, int(o.jobs), hash)
	switch {
	case err != nil:
		return fromDriver(err)
	case e.Changed:
		noteEmbedded(u, e)
	default:
		u.Note("vmlinux has %s already", e.Embedded)
	}
	return nil
}

func noteEmbedded(u *ui, e *kbuildrun.Embedding) {
	u.Note("hashed %s (%s), and vmlinux has %s, in %s",
		plural(e.Modules, "module"), megabytes(e.Bytes), e.Embedded, seconds(e.Took))
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
	u.Begin()
	old, err := hashlist.Embed(vmlinux, e)
	if err != nil {
		return err
	}
	if old.Has(e) {
		u.Note("%s has %s already", vmlinux, e)
	} else {
		u.Note("%s now has %s instead of %s", vmlinux, e, old.Embedded)
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
	list, err := hashlist.ReadFile(o.list)
	if err != nil {
		return nil, err
	}
	if kernel.Release != "" && kernel.Release != list.Release {
		return nil, fmt.Errorf("%s is the list of kernel %s, and %s is kernel %s",
			o.list, list.Release, vmlinux, kernel.Release)
	}
	return list.Embedded(), nil
}
