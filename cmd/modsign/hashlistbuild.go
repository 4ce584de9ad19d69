package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/internal/terminal"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
)

type hashlistBuildOptions struct {
	installedOptions
	objtree string
	release string
	format  string
	output  string
	section string
	source  string
	proofs  bool
	append  bool
	strip   string
	strips  bool // strip is given, and may be empty
	jobs    jobsFlag
	wait    bool
}

func newHashlistBuildCommand(u *ui) *cobra.Command {
	var o hashlistBuildOptions
	cmd := &cobra.Command{
		Use:   "build {TREE | PACKAGE | --installed [KVER] | --objtree DIR}",
		Short: "Hash the modules of a kernel",
		Long: `Build hashes the modules of a kernel in the order of modules.order: those in the
directory lib/modules/KVER, or those in an object tree as modules_install will
install them. It hashes the content of a module without compression and signature.
The modules in a package make the list that they make after unpacking it. --release
chooses a kernel if there are several.

It writes the list of all hashes as text, for people and for hashlist verify, diff and
sign: to --output, or to stdout if nothing else is asked for. For the kernel it writes
the content of the section .module_hashes (--section), or source code for that section
(--source), in --format list or merkle. A kernel with the root of a Merkle tree requires
a proof of each module. --append appends it to the module, where a signature would be.
--proofs writes it to NAME.merkle beside NAME.ko, where make modules_install finds it.

INSTALL_MOD_STRIP decides how an object tree's modules are stripped. It comes from
--strip, from the environment, or from the configuration of the kernel.`,
		Example: `  modsign hashlist build /lib/modules/6.12.0 > hashes
  modsign hashlist build linux-image-6.12.0-1-amd64_6.12.0-1_amd64.deb > hashes
  modsign hashlist build --objtree . --format merkle --section root.bin --proofs
  modsign hashlist build --format merkle --section root.bin --append /tmp/stage/lib/modules/6.12.0`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.strips = cmd.Flags().Changed("strip")
			return o.run(cmd.Context(), u, args)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.objtree, "objtree", "", "hash the modules built in the object tree `DIR`")
	o.installedOptions.addFlags(flags)
	flags.StringVar(&o.format, "format", "list", "`FORMAT` of the kernel's hashes: list or merkle")
	addOutputFile(flags, &o.output, "the list")
	flags.StringVar(&o.section, "section", "", "write the content of the section .module_hashes to `FILE`")
	flags.StringVar(&o.source, "source", "", "write the section as C (.c) or assembler (.S, .s) to `FILE`")
	flags.BoolVar(&o.proofs, "proofs", false, "write the proof of NAME.ko to NAME.merkle beside it")
	flags.BoolVar(&o.append, "append", false, "append its proof to each module, replacing signatures")
	addWait(flags, &o.wait)
	flags.Lookup("wait").Usage = "with --append: " + flags.Lookup("wait").Usage
	flags.StringVar(&o.strip, "strip", "", "with --objtree: `VALUE` of INSTALL_MOD_STRIP")
	flags.StringVar(&o.release, "release", "", "release `KVER` of the kernel (default: the name of the directory)")
	addQuiet(flags, u)
	o.jobs.addFlag(flags)
	return cmd
}

func (o *hashlistBuildOptions) check(args []string) error {
	merkle := o.format == string(hashlist.FormatMerkle)
	switch {
	case o.format != string(hashlist.FormatList) && !merkle:
		return usagef("--format: invalid value %q: want list or merkle", o.format)
	case (o.proofs || o.append) && !merkle:
		return usagef("--append and --proofs require --format merkle")
	case o.append && o.objtree != "":
		return usagef("--append does not go with --objtree: make modules_install appends what --proofs writes")
	case o.objtree != "" && o.installed != "":
		return usagef("--objtree and --installed exclude each other")
	case o.strip != "" && o.objtree == "":
		return usagef("--strip requires --objtree: installed modules are hashed as they are")
	}
	if o.source != "" && !hashlist.IsSource(o.source) {
		return usagef("--source %s: the file name must end in .c (C), .S or .s (assembler)", o.source)
	}
	for _, err := range []error{
		checkOutput("--output", o.output, append(args, o.section, o.source)...),
		checkOutput("--section", o.section, append(args, o.source)...), checkOutput("--source", o.source, args...),
	} {
		if err != nil {
			return err
		}
	}
	if pkgs, _ := packages(args); len(pkgs) > 0 && merkle {
		return withHint(fmt.Errorf("%s: a Merkle tree needs its proofs in the modules, and modsign does not write into packages",
			pkgs[0]), "unpack it, append the proofs with modsign hashlist build --append DIR, and pack it again")
	}
	return o.jobs.check()
}

func (o *hashlistBuildOptions) run(ctx context.Context, u *ui, args []string) error {
	if err := o.check(args); err != nil {
		return err
	}
	start := time.Now()
	built, err := o.build(ctx, u, args)
	if err != nil {
		return err
	}
	source := built.Source
	if err := o.write(u, built); err != nil {
		return err
	}
	u.Note("hashed %s (%s) of %s, in %s", plural(len(source.Names), "module"), megabytes(built.Bytes), source.Release,
		seconds(time.Since(start)))
	if !o.append || len(source.Names) == 0 {
		return nil
	}
	return o.appendProofs(ctx, u, built)
}

// build hashes the modules.
func (o *hashlistBuildOptions) build(ctx context.Context, u *ui, args []string) (*hashlist.Built, error) {
	if pkgs, _ := packages(args); len(pkgs) > 0 {
		return o.buildPackage(ctx, u, args)
	}
	source, options, err := o.modules(u, args)
	if err != nil {
		return nil, err
	}
	options.Jobs, options.Format = int(o.jobs), hashlist.Format(o.format)
	options.LeavesOnly = options.Format == hashlist.FormatMerkle && !o.writesList()
	return buildHashes(ctx, u, source, options)
}

// buildPackage hashes the modules in a package.
func (o *hashlistBuildOptions) buildPackage(ctx context.Context, u *ui, args []string) (*hashlist.Built, error) {
	if len(args) > 1 || o.installed != "" || o.objtree != "" {
		return nil, usagef("a list is of one kernel: give one package and nothing else")
	}
	failed, modules := 0, 0
	options := hashlist.BuildOptions{Jobs: int(o.jobs)}
	options.Progress = func(done, _ hashlist.Count) {
		modules = done.Modules
		u.Progress(false, func() string { return "hashing " + plural(modules, "module") })
	}
	options.Failed = func(path string, err error) {
		failed++
		u.Say("%s", describe(path+" in "+args[0], err))
	}
	built, err := hashlist.BuildArchive(ctx, args[0], o.release, options)
	u.Progress(true, nil)
	switch {
	case errors.Is(err, hashlist.ErrIncomplete):
		err = fmt.Errorf("%d of %s failed: nothing was written", failed, plural(modules, "module"))
	case errors.Is(err, hashlist.ErrSeveralKernels):
		err = withHint(err, "name one with --release KVER")
	}
	return built, err
}

// modules returns the modules to hash, and how.
func (o *hashlistBuildOptions) modules(u *ui, args []string) (hashlist.Source, hashlist.BuildOptions, error) {
	if o.objtree != "" {
		return o.objtreeModules(args)
	}
	source, err := o.installedModules(u, args)
	return source, hashlist.BuildOptions{}, err
}

func (o *hashlistBuildOptions) objtreeModules(args []string) (hashlist.Source, hashlist.BuildOptions, error) {
	if len(args) > 0 {
		err := usagef("--objtree names the modules: unexpected argument %q", args[0])
		return hashlist.Source{}, hashlist.BuildOptions{}, err
	}
	tree, err := kbuild.OpenTree(o.objtree, "", kbuild.Vars{LookupEnv: os.LookupEnv})
	if err != nil {
		return hashlist.Source{}, hashlist.BuildOptions{}, err
	}
	if o.strips {
		tree.Vars.Line = map[string]string{"INSTALL_MOD_STRIP": o.strip}
	}
	source, options, err := kbuildrun.HashSource(tree)
	return source, options, fromDriver(err)
}

// installedModules returns the modules of a directory, in the order of its
// modules.order or of their names.
func (o *hashlistBuildOptions) installedModules(u *ui, args []string) (hashlist.Source, error) {
	source := hashlist.Source{Release: o.release}
	kernel, err := o.kernel(args)
	if err != nil {
		return source, err
	}
	roots := kernel.roots(args)
	if len(roots) != 1 {
		return source, usagef("no modules given: name the directory lib/modules/KVER, or use --installed or --objtree DIR")
	}
	source.Dir = roots[0]
	if source.Release == "" {
		dir, err := filepath.Abs(source.Dir)
		if err != nil {
			return source, err
		}
		source.Release = filepath.Base(dir)
	}
	source.Names, err = kernel.order(source.Dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return source, err
	}
	if source.Names, err = hashlist.FindNames(source.Dir); err == nil {
		u.Note("%s has no modules.order: using the order of the names", source.Dir)
	}
	return source, err
}

// writesList reports whether the list is written as text.
func (o *hashlistBuildOptions) writesList() bool {
	return o.output != "" || o.section == "" && o.source == "" && !o.proofs && !o.append
}

// write writes all results but the proofs that are appended. Pipes come first: nothing
// else is written before somebody reads them.
func (o *hashlistBuildOptions) write(u *ui, built *hashlist.Built) error {
	e := built.Embedded()
	type output struct {
		path  string
		write func(path string) error
	}
	var outputs []output
	if o.section != "" {
		outputs = append(outputs, output{o.section, func(path string) error { return e.WriteSection(path, built.Order) }})
	}
	if o.source != "" {
		outputs = append(outputs, output{o.source, e.WriteSource})
	}
	if o.proofs {
		outputs = append(outputs, output{"", func(string) error { return built.Proofs().Write(built.Source.Dir) }})
	}
	if o.writesList() {
		outputs = append(outputs, output{o.output, func(path string) error { return writeResult(u, path, built.List) }})
	}
	for _, first := range []bool{true, false} {
		for _, out := range outputs {
			if terminal.IsIrregular(out.path) != first {
				continue
			}
			u.BeginAt(out.path)
			if err := out.write(out.path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *hashlistBuildOptions) appendProofs(ctx context.Context, u *ui, built *hashlist.Built) error {
	source := sign.Source{Roots: []string{built.Source.Dir}, Names: built.Source.Names}
	tree, err := openTree(ctx, u, source, o.wait)
	if err != nil {
		return err
	}
	defer tree.Close()
	w := work{ui: u, verb: "proving", options: sign.Options{WriteOptions: sign.WriteOptions{Jobs: int(o.jobs)}}}
	return w.do(ctx, func(options sign.Options) (sign.Summary, error) {
		return tree.Prove(ctx, built.Proofs(), sign.ProveOptions{WriteOptions: options.WriteOptions})
	})
}

// buildHashes is hashlist.Build with words about how far it is and what failed.
func buildHashes(ctx context.Context, u *ui, source hashlist.Source, o hashlist.BuildOptions) (*hashlist.Built, error) {
	failed, progress := 0, treeProgress(u, "hashing")
	o.Progress = func(done, total hashlist.Count) { progress(sign.Count(done), sign.Count(total)) }
	o.Failed = func(path string, err error) {
		failed++
		u.Say("%s", describe(path, err))
	}
	built, err := hashlist.Build(ctx, source, o)
	u.Progress(true, nil)
	if errors.Is(err, hashlist.ErrIncomplete) {
		return nil, fmt.Errorf("%d of %s failed: nothing was written", failed, plural(len(source.Names), "module"))
	}
	return built, err
}
