package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
)

func newHashlistCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hashlist",
		Short: "Trust modules by built-in hashes instead of signatures",
		Long: `Hashlist is for kernels with CONFIG_MODULE_HASHES (modsign kbuild patch), which
load the modules that they were built with, and need no key for it. The kernel has
the SHA-256 hashes of all modules (list), or the root of a tree of hashes, for which
every module carries a proof (merkle).

Where modsign is enabled in the kernel's build (modsign kbuild enable), make does
build and embed itself.`,
		Example: `  modsign hashlist build --objtree . > hashes
  modsign hashlist embed --objtree .
  modsign hashlist verify --kernel /boot/vmlinuz-6.12.0 /lib/modules/6.12.0
  modsign hashlist diff hashes-1 hashes-2`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newHashlistBuildCommand(u), newHashlistEmbedCommand(u), newHashlistVerifyCommand(u), newHashlistDiffCommand(u), newHashlistSignCommand(u), newHashlistCheckCommand(u))
	return cmd
}

// hashedTree are modules whose hashes are wanted.
type hashedTree struct {
	dir     string
	names   []string // below dir, in the order of modules.order
	prefix  string   // of the names, in lists
	release string
	strip   bool   // hash what is left without debug information
	program string // that strips what modsign does not
	ordered bool   // there is a modules.order
}

// objectTree are the modules of an object tree, as modules_install will leave them.
func objectTree(tree *kbuild.Tree) (*hashedTree, error) {
	strip, given := tree.Vars.Lookup("INSTALL_MOD_STRIP")
	if tree.Config.HashFormat() != "" {
		frozen := tree.Config.InstallStrip()
		if given && strip != frozen {
			return nil, stripsOtherwise(strip, frozen)
		}
		strip = frozen
	}
	names, err := tree.Modules()
	if err != nil {
		return nil, err
	}
	if tree.Release == "" {
		return nil, fmt.Errorf("%s: the kernel has no release yet: run make first", tree.Objtree)
	}
	t := &hashedTree{dir: tree.Objtree, names: names, prefix: "kernel/", release: tree.Release, ordered: true, program: stripProgram(tree)}
	switch strip {
	case "":
	case "1", "--strip-debug", "-g":
		t.strip = true
	default:
		return nil, fmt.Errorf("INSTALL_MOD_STRIP is %q, and what that leaves of a module cannot be told before: the hashes can be those of modules as they are, or with INSTALL_MOD_STRIP=1", strip)
	}
	return t, nil
}

// stripsOtherwise is the error of modules that would not be what was hashed.
func stripsOtherwise(strip, frozen string) error {
	return withHint(fmt.Errorf("INSTALL_MOD_STRIP is %q, and was %q when the kernel was built, which has the hashes of modules that are stripped so", strip, frozen),
		"go on with that, or build with this")
}

// installedTree are the modules in a folder, in the order of the modules.order there,
// or of their names.
func installedTree(dir, order, release string) (*hashedTree, error) {
	t := &hashedTree{dir: dir, release: release, ordered: true}
	if release == "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		t.release = filepath.Base(abs)
	}
	var err error
	t.names, err = kbuild.ReadInstalledOrder(order)
	if !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	t.ordered = false
	links := 0
	entries, err := module.Find([]string{dir}, func(_ module.Entry, kind fs.FileMode) {
		if kind&fs.ModeSymlink != 0 {
			links++
		}
	})
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 && links > 0 {
		return nil, fmt.Errorf("%w in %s; symbolic links are not followed, and there are %d", sign.ErrNoModules, dir, links)
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w in %s", sign.ErrNoModules, dir)
	}
	for _, e := range entries {
		if e.Err != nil {
			return nil, e.Err
		}
		t.names = append(t.names, module.BaseName(e.Rel))
	}
	slices.Sort(t.names)
	if twice := slices.Compact(slices.Clone(t.names)); len(twice) != len(t.names) {
		return nil, fmt.Errorf("%s: a module is there in more than one form of compression: remove what is out of date", dir)
	}
	return t, nil
}

// moduleHashes are those of a tree.
type moduleHashes struct {
	list   *hashlist.List  // without hashes, when plain ones were not wanted
	leaves []hashlist.Hash // nil when they were not wanted
	names  []string
	bytes  int64
}

// hashes hashes the modules of a tree, as many at once as there are processors: plain,
// as a list has them, and as leaves of a tree.
func (t *hashedTree) hashes(ctx context.Context, u *ui, jobs int, plain, leaves bool) (*moduleHashes, error) {
	h := &moduleHashes{list: &hashlist.List{Release: t.release, Modules: make([]hashlist.Module, len(t.names))}, names: t.names}
	if leaves {
		h.leaves = make([]hashlist.Hash, len(t.names))
	}
	if len(t.names) == 0 {
		return h, nil
	}
	// Nothing is written, so that nothing has to be locked either: a module that
	// changes meanwhile fails.
	tree, err := sign.Open(ctx, sign.Source{Roots: []string{t.dir}, Names: t.names, DryRun: true})
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	position := make(map[string]int, len(t.names))
	for i, name := range t.names {
		position[name] = i
	}
	w := work{ui: u, verb: "hashing", start: time.Now()}
	debug := sign.DebugOptions{StripDebug: t.strip, StripProgram: t.program}
	options := sign.ReadOptions{Jobs: jobs, Report: sign.Report{Progress: w.progress, Result: func(r sign.Result) {
		if r.Err != nil {
			u.say("%s", describe(r.Path, r.Err))
			return
		}
		i := position[r.Name]
		m := &h.list.Modules[i]
		m.Path, m.Size = t.prefix+r.Name, r.Payload
		h.bytes += r.Payload
		switch {
		case plain && leaves:
			m.Hash, h.leaves[i] = hashlist.SplitDigest(r.Digest)
		case leaves:
			h.leaves[i] = hashlist.Hash(r.Digest)
		default:
			m.Hash = hashlist.Hash(r.Digest)
		}
	}}}
	newHash := hashlist.NewLeaf
	if plain {
		newHash = hashlist.NewDigest
	}
	var summary sign.Summary
	if leaves {
		summary, err = tree.Hash(ctx, func(name string) hash.Hash { return newHash(uint32(position[name])) }, options, debug)
	} else {
		summary, err = tree.Hash(ctx, func(string) hash.Hash { return sha256.New() }, options, debug)
	}
	u.progress(true, nil)
	switch {
	case errors.Is(err, sign.ErrIncomplete): // the modules are named above
		return nil, fmt.Errorf("%s failed: nothing is written before all %d can be read", plural(summary.Failed, "module"), len(t.names))
	case err != nil:
		return nil, err
	}
	return h, nil
}

// embedded is what a kernel is to have of the modules.
func (h *moduleHashes) embedded() *hashlist.Embedded {
	if h.leaves != nil {
		root := hashlist.NewTree(h.leaves).Root()
		return &hashlist.Embedded{Root: &root}
	}
	return h.list.Embedded()
}

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
	jobs    int
	wait    bool
}

func newHashlistBuildCommand(u *ui) *cobra.Command {
	var o hashlistBuildOptions
	cmd := &cobra.Command{
		Use:   "build {TREE | --installed [KVER] | --objtree DIR}",
		Short: "Hash the modules of a kernel",
		Long: `Build hashes the modules of a kernel in the order of modules.order: those in a
folder lib/modules/KVER, compressed or not, or those in an object tree, as they will
be installed. The hash of a module is that of its bytes without compression, and
without a signature if it has one.

It writes the list of all hashes as text, for people and for hashlist verify, diff and
sign, to stdout or to --output; and what a kernel can have of them, in the --format
list or merkle: the bytes of its section .module_hashes (--section), or a file of
source for it (--source). A kernel with the root of a Merkle tree wants a proof of
each module: --append puts it where a signature would be, and --proofs leaves it in
NAME.merkle beside NAME.ko, where make modules_install takes it from.`,
		Example: `  modsign hashlist build /lib/modules/6.12.0 > hashes
  modsign hashlist build --objtree . --format merkle --section root.bin --proofs
  modsign hashlist build --format merkle --section root.bin --append /tmp/stage/lib/modules/6.12.0`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.objtree, "objtree", "", "the modules that were built in the object tree `DIR`")
	o.installedOptions.addFlags(flags)
	flags.StringVar(&o.format, "format", "list", "what the kernel gets, `FORMAT`: list or merkle")
	flags.StringVarP(&o.output, "output", "o", "", "write the list as text to `FILE` (default: to stdout, unless something else is asked for)")
	flags.StringVar(&o.section, "section", "", "write what the section .module_hashes is to hold to `FILE`")
	flags.StringVar(&o.source, "source", "", "write it as source to `FILE`, in C (.c) or for the assembler (.S, .s)")
	flags.BoolVar(&o.proofs, "proofs", false, "write the proof of NAME.ko to NAME.merkle beside it")
	flags.BoolVar(&o.append, "append", false, "append its proof to each module, in the place of a signature")
	flags.BoolVar(&o.wait, "wait", false, "with --append: wait for another run that has locked the modules")
	flags.StringVar(&o.strip, "strip", "", "with --objtree: hash the modules as this INSTALL_MOD_STRIP `VALUE` leaves them (default: as the environment says, or as the kernel was built)")
	flags.StringVar(&o.release, "release", "", "the kernel is release `KVER` (default: as the folder says)")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but errors")
	flags.IntVarP(&o.jobs, "jobs", "j", 0, "modules read at once, `N` (default: twice the number of processors)")
	return cmd
}

func (o *hashlistBuildOptions) check() error {
	merkle := o.format == "merkle"
	switch {
	case o.format != "list" && !merkle:
		return usagef("--format %s: it is list or merkle", o.format)
	case o.jobs < 0:
		return usagef("--jobs is %d, and has to be a number of modules", o.jobs)
	case (o.proofs || o.append) && !merkle:
		return usagef("a list needs no proofs: --append and --proofs go with --format merkle")
	case o.append && o.objtree != "":
		return usagef("--append is for installed modules: of an object tree make modules_install takes what --proofs writes")
	case o.objtree != "" && o.installed != "":
		return usagef("--objtree chooses the modules, and so does --installed: give one of them")
	case o.strip != "" && o.objtree == "":
		return usagef("--strip goes with --objtree: installed modules are hashed as they are")
	}
	if o.source != "" && !hashlist.IsSource(o.source) {
		return usagef("--source %s: the name of a file in C ends with .c, and for the assembler with .S or .s", o.source)
	}
	return nil
}

func (o *hashlistBuildOptions) run(ctx context.Context, u *ui, args []string) error {
	if err := o.check(); err != nil {
		return err
	}
	tree, err := o.tree(args)
	if err != nil {
		return err
	}
	if !tree.ordered {
		u.note("%s has no modules.order: the order is that of the names", tree.dir)
	}
	start := time.Now()
	h, err := tree.hashes(ctx, u, o.jobs, o.format == "list" || o.writesList(), o.format == "merkle")
	if err != nil {
		return err
	}
	if err := o.write(u, tree, h); err != nil {
		return err
	}
	u.note("hashed %s (%s) of %s, in %s", plural(len(h.names), "module"), megabytes(h.bytes), h.list.Release, seconds(time.Since(start)))
	if !o.append || len(h.names) == 0 {
		return nil
	}
	return o.appendProofs(ctx, u, tree, h)
}

func (o *hashlistBuildOptions) tree(args []string) (*hashedTree, error) {
	if o.objtree != "" {
		if len(args) > 0 {
			return nil, usagef("--objtree chooses the modules, and so does %q: give one of them", args[0])
		}
		tree, err := kbuild.OpenTree(o.objtree, "", kbuild.Vars{LookupEnv: os.LookupEnv})
		if err != nil {
			return nil, err
		}
		if o.strip != "" {
			tree.Vars.Line = map[string]string{"INSTALL_MOD_STRIP": o.strip}
		}
		return objectTree(tree)
	}
	kernel, err := o.kernel(args)
	if err != nil {
		return nil, err
	}
	switch {
	case kernel != nil:
		order, err := kernel.order()
		if err != nil {
			return nil, err
		}
		return installedTree(kernel.modules, order, o.release)
	case len(args) != 1:
		return nil, usagef("whose modules? Give the folder lib/modules/KVER, --installed, or --objtree DIR")
	}
	return installedTree(args[0], filepath.Join(args[0], "modules.order"), o.release)
}

// writesList reports whether the list is written as text.
func (o *hashlistBuildOptions) writesList() bool {
	return o.output != "" || o.section == "" && o.source == "" && !o.proofs && !o.append
}

// write writes all that was asked for but the proofs that are appended. What goes
// into pipes comes first: until somebody reads them, nothing is written.
func (o *hashlistBuildOptions) write(u *ui, tree *hashedTree, h *moduleHashes) error {
	e := h.embedded()
	type output struct {
		path  string
		write func(path string) error
	}
	var outputs []output
	if o.section != "" {
		order, err := byteOrder(tree)
		if err != nil {
			return err
		}
		outputs = append(outputs, output{o.section, func(path string) error { return e.WriteSection(path, order) }})
	}
	if o.source != "" {
		outputs = append(outputs, output{o.source, e.WriteSource})
	}
	if o.proofs {
		outputs = append(outputs, output{"", func(string) error {
			return hashlist.NewProofs(h.names, h.leaves).Write(tree.dir)
		}})
	}
	if o.writesList() {
		outputs = append(outputs, output{o.output, func(path string) error { return writeResult(u, path, h.list) }})
	}
	for _, first := range []bool{true, false} {
		for _, out := range outputs {
			if isIrregular(out.path) != first {
				continue
			}
			u.beginAt(out.path)
			if err := out.write(out.path); err != nil {
				return err
			}
		}
	}
	return nil
}

// byteOrder is that of the kernel, which is that of its modules.
func byteOrder(tree *hashedTree) (binary.AppendByteOrder, error) {
	if len(tree.names) == 0 {
		return binary.LittleEndian, nil
	}
	entries, err := module.FindNames(tree.dir, tree.names[:1])
	if err != nil {
		return nil, err
	}
	m, err := module.Open(context.Background(), entries[0].Path, module.Limits{})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return module.ByteOrder(m)
}

func (o *hashlistBuildOptions) appendProofs(ctx context.Context, u *ui, t *hashedTree, h *moduleHashes) error {
	tree, err := openTree(ctx, u, sign.Source{Roots: []string{t.dir}, Names: h.names}, o.wait)
	if err != nil {
		return err
	}
	defer tree.Close()
	w := work{ui: u, verb: "proving", options: sign.Options{WriteOptions: sign.WriteOptions{Jobs: o.jobs}}}
	return w.do(ctx, func(options sign.Options) (sign.Summary, error) {
		return tree.Prove(ctx, hashlist.NewProofs(h.names, h.leaves), sign.ProveOptions{WriteOptions: options.WriteOptions})
	})
}

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
		Long: `Embed writes what hashlist build has made into the section .module_hashes of a
linked vmlinux, before the boot image is made of it: the hashes of a list, or the
bytes of a section. It says what it replaces. Nothing is written when it does not
fit: the kernel is linked with room for as many hashes as there were modules.

With --objtree it does all that is to be done in an object tree between the modules
and the boot image: it hashes the modules, writes their proofs where there is a
Merkle tree, embeds, and removes what the boot image was made of, so that the next
make makes it of this vmlinux. The time of vmlinux stays: modules are not built again
for it.`,
		Example: `  modsign hashlist embed vmlinux --list hashes
  make vmlinux modules && modsign hashlist embed --objtree . && make bzImage`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.list, "list", "", "the hashes of the list in `FILE`")
	flags.StringVar(&o.section, "section", "", "what --section of hashlist build wrote to `FILE`")
	flags.StringVar(&o.objtree, "objtree", "", "hash the modules of the object tree `DIR`, and write to its vmlinux")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but errors")
	flags.IntVarP(&o.jobs, "jobs", "j", 0, "modules read at once, `N` (default: twice the number of processors)")
	return cmd
}

func (o *hashlistEmbedOptions) run(ctx context.Context, u *ui, args []string) error {
	switch {
	case o.list != "" && o.section != "", o.objtree != "" && o.list+o.section != "":
		return usagef("--list, --section and --objtree say what to embed: give one of them")
	case o.jobs < 0:
		return usagef("--jobs is %d, and has to be a number of modules", o.jobs)
	case o.objtree+o.list+o.section == "":
		return usagef("nothing to embed: give --list FILE, --section FILE or --objtree DIR")
	}
	if o.objtree != "" {
		if len(args) > 0 {
			return usagef("--objtree chooses the vmlinux, and so does %q: give one of them", args[0])
		}
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
	if len(args) != 1 {
		return usagef("into which vmlinux? Give one")
	}
	kernel, err := hashlist.OpenKernel(args[0])
	if err != nil {
		return noHashes(err)
	}
	var e *hashlist.Embedded
	if o.list != "" {
		list, err := readList(o.list)
		if err != nil {
			return err
		}
		if kernel.Release != "" && kernel.Release != list.Release {
			return fmt.Errorf("%s is the list of the kernel %s, and %s is %s", o.list, list.Release, args[0], kernel.Release)
		}
		e = list.Embedded()
	} else {
		data, err := readLimited(o.section)
		if err != nil {
			return err
		}
		if e, err = hashlist.ParseSection(data, kernel.Order()); err != nil {
			return fmt.Errorf("%s: %w", o.section, err)
		}
	}
	u.begin()
	old, err := hashlist.Embed(args[0], e)
	if err != nil {
		return err
	}
	sayEmbedded(u, args[0], old, e)
	return nil
}

// noHashes says what to do about a kernel without hashes.
func noHashes(err error) error {
	if errors.Is(err, hashlist.ErrNoSection) {
		return withHint(err, "modsign kbuild patch adds CONFIG_MODULE_HASHES to a kernel's source")
	}
	return err
}

func sayEmbedded(u *ui, path string, old *hashlist.Kernel, e *hashlist.Embedded) {
	if old.Has(e) {
		u.note("%s has %s already", path, e)
	} else {
		u.note("%s has %s now, in the place of %s", path, e, old.Embedded)
	}
}

func readList(path string) (*hashlist.List, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := hashlist.Parse(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// embedHashes brings the vmlinux of an object tree up to the modules that are built
// there. It returns what vmlinux has then, and whether it had something else.
func embedHashes(ctx context.Context, u *ui, tree *kbuild.Tree, jobs int) (*hashlist.Embedded, bool, error) {
	u.begin()
	format := tree.Config.HashFormat()
	if format == "" {
		return nil, false, withHint(fmt.Errorf("%s: the kernel is configured without CONFIG_MODULE_HASHES_LIST and _MERKLE", tree.Objtree), "modsign kbuild patch adds them to a kernel's source")
	}
	start := time.Now()
	modules, err := objectTree(tree)
	if err != nil {
		return nil, false, err
	}
	h, err := modules.hashes(ctx, u, jobs, true, format == "merkle")
	if err != nil {
		return nil, false, err
	}
	vmlinux := filepath.Join(tree.Objtree, "vmlinux")
	kernel, err := hashlist.OpenKernel(vmlinux)
	if err != nil {
		return nil, false, noHashes(err)
	}
	e := h.embedded()
	if err := kernel.Fits(e); err != nil {
		return nil, false, fmt.Errorf("%s: %w", vmlinux, err)
	}
	if !kernel.Has(e) {
		// Before: after a kill in between, make has the boot image to make all the same.
		stale, err := tree.BootFiles()
		if err != nil {
			return nil, false, err
		}
		for _, path := range stale {
			if err := os.Remove(path); err != nil {
				return nil, false, err
			}
		}
	}
	if format == "merkle" {
		if err := hashlist.NewProofs(h.names, h.leaves).Write(tree.Objtree); err != nil {
			return nil, false, err
		}
	}
	old, err := hashlist.Embed(vmlinux, e)
	if err != nil {
		return nil, false, err
	}
	// Last: it says that all is done, by its time.
	var list bytes.Buffer
	if err := h.list.Write(&list); err != nil {
		return nil, false, err
	}
	if err := kbuild.WriteHashList(tree.Objtree, list.Bytes()); err != nil || old.Has(e) {
		return e, false, err
	}
	u.note("hashed %s (%s), and vmlinux has %s, in %s", plural(len(h.names), "module"), megabytes(h.bytes), e, seconds(time.Since(start)))
	return e, true, nil
}

// stripProgram is the program strip of a build.
func stripProgram(tree *kbuild.Tree) string {
	if program, ok := tree.Vars.Lookup("STRIP"); ok {
		return program
	}
	return "strip"
}

type hashlistVerifyOptions struct {
	installedOptions
	list  string
	image string
	all   bool
	jobs  int
}

func newHashlistVerifyCommand(u *ui) *cobra.Command {
	var o hashlistVerifyOptions
	cmd := &cobra.Command{
		Use:   "verify {--list LIST | --kernel IMAGE} TREE | --installed [KVER]",
		Short: "Compare modules with a list, or with what a kernel has built in",
		Long: `Verify names every module of a folder lib/modules/KVER, compressed or not, that is
not as the list says, or that a kernel would not load for its hash: changed, extra,
missing, stripped since, without a proof, or with that of another kernel. The kernel is
a vmlinux or an x86 boot image; the names of its modules are those of modules.order in
the folder.

Symbolic links are followed as by modsign verify. A module that the kernel would load
for its signature is named all the same.`,
		Example: `  modsign hashlist verify --list hashes /tmp/stage/lib/modules/6.12.0
  modsign hashlist verify --kernel /boot/vmlinuz-6.12.0 /lib/modules/6.12.0
  modsign hashlist verify --installed`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.list, "list", "", "compare with the list in `FILE`")
	flags.StringVar(&o.image, "kernel", "", "compare with what the kernel `IMAGE` has built in")
	o.installedOptions.addFlags(flags)
	flags.BoolVarP(&o.all, "all", "a", false, "list every module")
	flags.BoolVar(&u.json, "json", false, "write one JSON object a line to stdout")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but results and errors")
	flags.IntVarP(&o.jobs, "jobs", "j", 0, "modules looked at at once, `N` (default: twice the number of processors)")
	return cmd
}

func (o *hashlistVerifyOptions) run(ctx context.Context, u *ui, args []string) error {
	kernel, err := o.kernel(args)
	if err != nil {
		return err
	}
	dir := ""
	switch {
	case o.jobs < 0:
		return usagef("--jobs is %d, and has to be a number of modules", o.jobs)
	case o.list != "" && o.image != "":
		return usagef("--list and --kernel say what to compare with: give one of them")
	case kernel != nil:
		dir = kernel.modules
		if o.list == "" && o.image == "" {
			if o.image = kernel.image(); o.image == "" {
				return withHint(fmt.Errorf("there is no image of the kernel %s", kernel.version), "give it with --kernel IMAGE, or a list with --list FILE")
			}
		}
	case len(args) != 1:
		return usagef("which modules? Give the folder lib/modules/KVER, or --installed")
	default:
		dir = args[0]
	}
	if o.list == "" && o.image == "" {
		return usagef("nothing to compare with: give --list FILE or --kernel IMAGE")
	}
	reference, against, err := o.reference(u, dir, kernel)
	if err != nil {
		return err
	}
	start := time.Now()
	modules, inPlace := 0, 0
	summary, err := reference.Verify(ctx, dir, hashlist.Options{Jobs: o.jobs, Root: kernel.rootDir(), Result: func(r hashlist.Result) {
		modules++
		if r.Verdict != hashlist.Extra && r.Verdict != hashlist.Missing && r.Detail == "" {
			inPlace++
		}
		u.progress(false, func() string { return fmt.Sprintf("verifying %s", plural(modules, "module")) })
		o.show(u, r)
	}})
	u.progress(true, nil)
	if err != nil && !errors.Is(err, hashlist.ErrRefused) { // what is refused is shown
		return err
	}
	if modules == 0 {
		return fmt.Errorf("no kernel module found in %s, so that nothing is verified", dir)
	}
	took := time.Since(start)
	if u.json {
		verdicts := make(map[string]int)
		for verdict, n := range summary {
			verdicts[string(verdict)] = n
		}
		u.object(jsonHashlistSummary{Type: "summary", Modules: modules, Verdicts: verdicts, Seconds: took.Seconds()})
	}
	u.note("verified %s against %s in %s: %s", plural(modules, "module"), against, seconds(took), summary)
	switch {
	case summary.Refused()-summary[hashlist.Failed] > 0:
		if inPlace == 0 && summary[hashlist.Missing] > 0 {
			u.hint("names are those below the folder lib/modules/KVER: is %s that one?", dir)
		}
		return exitStatus(exitRefused)
	case summary[hashlist.Failed] > 0:
		return exitStatus(exitSome)
	}
	return nil
}

// reference is what is compared with, and what to call it.
func (o *hashlistVerifyOptions) reference(u *ui, dir string, installed *kernel) (*hashlist.Reference, string, error) {
	if o.list != "" {
		list, err := readList(o.list)
		if err != nil {
			return nil, "", err
		}
		if installed != nil && installed.version != list.Release {
			return nil, "", fmt.Errorf("%s is the list of the kernel %s, not of %s", o.list, list.Release, installed.version)
		}
		return hashlist.NewReference(list), "the list of " + list.Release, nil
	}
	kernel, err := hashlist.OpenKernel(o.image)
	if err != nil {
		return nil, "", noHashes(err)
	}
	path := filepath.Join(dir, "modules.order")
	if installed != nil {
		if path, err = installed.order(); err != nil {
			return nil, "", err
		}
	}
	order, err := kbuild.ReadInstalledOrder(path)
	if errors.Is(err, fs.ErrNotExist) {
		u.note("%s has no modules.order: what is missing cannot be told", dir)
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
	case u.json:
		u.object(newJSONHashed(r))
	case r.Err != nil:
		u.say("%s", describe(r.Path, r.Err))
	case r.Verdict != hashlist.Trusted || o.all:
		u.result("%s: %s", r.Name, r)
	}
}

func newHashlistDiffCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff LIST LIST",
		Short: "Tell in which modules two builds differ",
		Long: `Diff compares two lists, module by module: what was added, removed or changed, and
whether the order is another. Two builds that can be reproduced have none. It ends
with 0 if the lists are the same, and with 4 if they are not.`,
		Example: `  modsign hashlist diff hashes-monday hashes-tuesday`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("diff compares two lists")
			}
			return hashlistDiff(u, args[0], args[1])
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but results and errors")
	return cmd
}

func hashlistDiff(u *ui, pathA, pathB string) error {
	a, err := readList(pathA)
	if err != nil {
		return err
	}
	b, err := readList(pathB)
	if err != nil {
		return err
	}
	changes, reordered := hashlist.Diff(a, b)
	var added, removed, changed int
	for _, c := range changes {
		switch {
		case c.Old == nil:
			added++
			u.result("%s: added", c.Path)
		case c.New == nil:
			removed++
			u.result("%s: removed", c.Path)
		default:
			changed++
			u.result("%s: changed, %d bytes and %d", c.Path, c.Old.Size, c.New.Size)
		}
	}
	if reordered {
		u.result("the order of the modules is another")
	}
	if a.Release != b.Release {
		u.result("the releases are %s and %s", a.Release, b.Release)
	}
	if len(changes) == 0 && !reordered && a.Release == b.Release {
		u.note("the lists are the same: %s of %s", plural(len(a.Modules), "module"), a.Release)
		return nil
	}
	u.note("of %d and %s: %d added, %d removed, %d changed", len(a.Modules), plural(len(b.Modules), "module"), added, removed, changed)
	return exitStatus(exitRefused)
}
