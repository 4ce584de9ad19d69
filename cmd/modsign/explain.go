package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/verify"
	"github.com/modsign/modsign/verify/explain"
)

type explainOptions struct {
	verifyOptions
	symvers string
	cmdline string
	known   string
	key     string
	keyCert string
}

func newExplainCommand(u *ui) *cobra.Command {
	o := explainOptions{verifyOptions: verifyOptions{installedOptions: installedOptions{rootPaths: true}}}
	cmd := &cobra.Command{
		Use:   "explain [--kernel IMAGE | --installed KVER] [--cert FILE]... MODULE...",
		Short: "Say why a kernel will not load a module",
		Long: `Explain says whether a kernel would load each MODULE: the file of a module, or the
name by which modprobe knows it. If not, it gives the reason, the command that mends it,
the line that the kernel logs and the error of the load. Further reasons, which the
kernel would meet after the first, are listed too. A MODULE may be a package or an image
with modules: explain lists those that would not load, judged by the kernel image in it
unless --kernel or --installed chooses one.

The kernel is the running one, with --installed the installed one of that version, or
with --kernel the one of that image. Explain looks at its built-in certificates, at its
configuration (--config, or the file beside the image, or the image itself), and at the
modules that are installed for it, which tell its vermagic and the versions of symbols.
Of the running kernel it also looks at sig_enforce, lockdown and the command line. What
it cannot find it does not check, and says so.

Keys beyond the image come as with verify: --cert for what the kernel trusts, --mok, --db,
--dbx, --secondary and --blacklist. Of the running kernel, explain reads its keyrings and
the lists of the firmware and shim: docs/keyrings.md. With --kernel, --running says that
IMAGE is the running kernel's.

--signed-list names modules that are known to be signed, one a line: a build id or a
SHA-256, and the name. The list of modsign hashlist build is one. An unsigned module on
it has lost its signature.

The commands that mend use a key of DKMS, akmods, sbctl, shim or the kernel's build
directory, if this machine has one, or that of --key. They are for root.`,
		Example: `  modsign explain nvidia
  modsign explain --installed 6.12.0-1-amd64 /lib/modules/6.12.0-1-amd64/updates/dkms/zfs.ko.xz
  modsign explain --kernel /boot/vmlinuz-6.12.0-1-amd64 --json ./driver.ko
  modsign explain linux-image-6.12.0-1-amd64_6.12.0-1_amd64.deb`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("nothing to explain: name modules")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.image, "kernel", "", "explain for the kernel `IMAGE`")
	flags.StringVarP(&o.installed, "installed", "i", "", "explain for the installed kernel `KVER`")
	flags.StringArrayVarP(&o.certs, "cert", "c", nil, "the kernel trusts the certificates in `FILE` too (repeatable)")
	o.rings.addFlags(flags)
	flags.StringVar(&o.cmdline, "cmdline", "", "`PARAMETERS` of the kernel, such as lockdown=integrity")
	flags.StringVar(&o.symvers, "symvers", "", "versions of the kernel's symbols: its `FILE` Module.symvers")
	flags.StringVar(&o.known, "signed-list", "", "build ids or hashes of signed modules in `FILE`")
	flags.StringVar(&o.key, "key", "", "private key `FILE` for the commands that sign")
	flags.StringVar(&o.keyCert, "key-cert", "", "certificate `FILE` of --key (default: in the same file)")
	flags.StringVar(&o.root, "root", "/", "root `DIR` of the system with the kernel and the modules")
	addJSON(flags, u)
	addQuiet(flags, u)
	return cmd
}

func (o *explainOptions) run(ctx context.Context, u *ui, args []string) error {
	archives, modules := packages(args)
	var kernel *explain.Kernel
	if len(modules) > 0 || o.image != "" || o.installed != "" || o.rings.running {
		var err error
		if kernel, err = o.open(ctx, u); err != nil {
			return err
		}
		for _, note := range kernel.Notes {
			u.Note("warning: %s", note)
		}
	}
	e := explained{u: u, kernel: kernel}
	for _, arg := range modules {
		report := kernel.Module(ctx, findModule(kernel, arg))
		if err := context.Cause(ctx); err != nil {
			return err
		}
		e.show(kernel, report)
	}
	for _, pkg := range archives {
		if err := o.explainPackage(ctx, &e, pkg); err != nil {
			return err
		}
	}
	if u.JSON {
		u.Object(newJSONExplainSummary(e.kernel, e.modules, e.refused, e.unreadable))
	}
	switch {
	case e.unreadable == e.modules:
		return exitStatus(exitError)
	case e.refused > 0:
		return exitStatus(exitRefused)
	case e.unreadable > 0 || e.outside:
		return exitStatus(exitSome)
	}
	return nil
}

// explained counts and shows reports.
type explained struct {
	u                            *ui
	kernel                       *explain.Kernel // the last one
	modules, refused, unreadable int
	shown                        bool
	outside                      bool // a link leads out of a package
}

func (e *explained) show(kernel *explain.Kernel, report *explain.Report) {
	e.modules++
	switch report.Verdict {
	case explain.Refused:
		e.refused++
	case explain.Unreadable:
		e.unreadable++
	}
	if e.u.JSON {
		e.u.Object(newJSONExplained(kernel, report))
		return
	}
	if report.Archive != "" && report.Verdict == explain.Loads {
		return // a package has thousands
	}
	if e.shown {
		e.u.Result("")
	}
	e.shown = true
	for _, line := range explanation(kernel, report) {
		e.u.Result("%s", line)
	}
}

// explainPackage explains the modules in a package: by the kernel that the flags choose, or by
// the one in the package.
func (o *explainOptions) explainPackage(ctx context.Context, e *explained, pkg string) error {
	before := *e
	found, err := explain.Archive(ctx, pkg, explain.ArchiveOptions{
		Kernel: e.chosen(o), Result: e.show,
		Open: func(image *verify.Image) (*explain.Kernel, error) {
			files := &kernelFiles{image: image}
			keys, err := (&packageJudges{more: func(keys *verify.Keyring, _ *verify.Image) error {
				return o.rings.apply(e.u, keys, files, o.root)
			}}).keyring(image)
			if err != nil {
				return nil, err
			}
			for _, path := range o.certs {
				if err := keys.AddFile(path); err != nil {
					return nil, hintFor(path, err)
				}
			}
			config, err := files.configuration(o.rings.config)
			if err != nil {
				return nil, err
			}
			s := explain.Source{Name: image.Name(), Image: image, Config: config.Config, ConfigFile: config.from, Keys: keys,
				Symvers: o.symvers, Cmdline: o.cmdline, Firmware: &o.rings.firmware,
				NoShimTable: o.rings.reads() && dirOrNone(filepath.Join(o.root, shimTable)) == ""}
			if err := o.more(e.u, &s); err != nil {
				return nil, err
			}
			kernel, err := explain.Open(ctx, s)
			if err != nil {
				return nil, err
			}
			for _, note := range kernel.Notes {
				e.u.Note("warning: %s", note)
			}
			e.kernel = kernel
			return kernel, nil
		},
	})
	switch {
	case errors.Is(err, verify.ErrNoKernel):
		return withHint(err, "name the kernel with --kernel IMAGE or --installed KVER")
	case err != nil:
		return err
	case found.Modules == 0:
		return fmt.Errorf("%s: %w", pkg, verify.ErrNoModules)
	}
	e.u.Note("explained %s in %s: %d refused, %d unreadable", plural(found.Modules, "module"), pkg,
		e.refused-before.refused, e.unreadable-before.unreadable)
	e.u.notSeen(found.Outside, found.Inner)
	e.outside = e.outside || len(found.Outside)+len(found.Boot) > 0
	return nil
}

// chosen is the kernel that the flags choose, or nil if a package decides.
func (e *explained) chosen(o *explainOptions) *explain.Kernel {
	if o.image != "" || o.installed != "" || o.rings.running {
		return e.kernel
	}
	return nil
}

// findModule returns the path of a module that is given by path or, as for modprobe, by name.
func findModule(kernel *explain.Kernel, arg string) string {
	if strings.ContainsAny(arg, "/.") {
		return arg
	}
	if _, err := os.Lstat(arg); err == nil {
		return arg
	}
	if path, err := kernel.Find(arg); err == nil {
		return path
	}
	return arg
}

// open collects what is known about the kernel.
func (o *explainOptions) open(ctx context.Context, u *ui) (*explain.Kernel, error) {
	s := explain.Source{Symvers: o.symvers, Cmdline: o.cmdline}
	if o.root != "" && filepath.Clean(o.root) != "/" {
		s.Root = o.root
	}
	files := &kernelFiles{path: o.image}
	defer func() { files.image.Close() }()
	switch {
	case o.image != "" && o.installed != "":
		return nil, usagef("--kernel and --installed choose two kernels: give one of them")
	case o.image != "":
		s.Name = o.image
		if o.rings.running {
			s.Running, s.Release = true, runningRelease()
			s.Name = "the running kernel " + s.Release
		}
		if version, ok := strings.CutPrefix(filepath.Base(o.image), "vmlinuz-"); ok {
			s.Modules = dirOrNone(filepath.Join(filepath.Dir(o.image), "../lib/modules", version))
		}
	case o.installed == "" && s.Root != "":
		return nil, usagef("--root needs --installed or --kernel: the running kernel is that of this machine")
	default:
		k, err := kbuild.OpenInstalled(o.root, o.installed)
		if errors.Is(err, kbuild.ErrRelease) {
			return nil, usagef("--installed %v", err)
		}
		if err != nil {
			return nil, withHint(err, "name the kernel with --installed KVER or --kernel IMAGE")
		}
		files.installed = &kernel{k}
		s.Release, s.Modules = k.Release, k.ModLib
		s.Running = s.Root == "" && runningRelease() == k.Release
		o.rings.running = o.rings.running || s.Running
		s.Name = "kernel " + k.Release
		if s.Running {
			s.Name = "the running kernel " + k.Release
		}
	}
	if s.Running && o.cmdline != "" {
		return nil, usagef("--cmdline goes with --kernel or --installed: the running kernel tells its own")
	}
	var err error
	if s.Keys, _, err = o.keyring(u, files); err != nil {
		return nil, err
	}
	config, err := files.configuration(o.rings.config)
	if err != nil {
		return nil, err
	}
	s.Image, s.Config, s.ConfigFile = files.image, config.Config, config.from
	s.Firmware = &o.rings.firmware
	s.NoShimTable = o.rings.reads() && dirOrNone(filepath.Join(o.root, shimTable)) == ""
	for _, warning := range s.Keys.Warnings() {
		u.Note("warning: %s", warning)
	}
	if err := o.more(u, &s); err != nil {
		return nil, err
	}
	return explain.Open(ctx, s)
}

// more adds what the flags tell of any kernel: certificates, signed modules, and keys for the
// commands that mend.
func (o *explainOptions) more(u *ui, s *explain.Source) (err error) {
	if o.known != "" {
		if s.Known, err = explain.OpenKnown(o.known); err != nil {
			return err
		}
	}
	switch {
	case o.key != "":
		cert := o.keyCert
		if cert == "" {
			cert = o.key
		}
		s.KeyPairs = []explain.KeyPair{{Key: absolute(o.key), Cert: absolute(cert)}}
	case o.keyCert != "":
		return usagef("--key-cert goes with --key")
	}
	s.KeyPairs = append(s.KeyPairs, explain.MachineKeys(o.root, s.Release)...)
	return nil
}

// runningRelease is what uname -r prints, or empty if nothing tells.
func runningRelease() string {
	release, _ := kbuild.RunningRelease()
	return release
}

// absolute is a path for a command that somebody may run elsewhere.
func absolute(path string) string {
	if absolute, err := filepath.Abs(path); err == nil {
		return absolute
	}
	return path
}

// shimTable is where the kernel shows the table of variables that shim left.
const shimTable = "sys/firmware/efi/mok-variables"

func dirOrNone(path string) string {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return path
	}
	return ""
}

// explanation is a report for people. What it is and what to do come first.
func explanation(k *explain.Kernel, r *explain.Report) []string {
	var lines []string
	field := func(name, format string, args ...any) {
		if name != "" {
			name += ":"
		}
		lines = append(lines, strings.TrimRight(fmt.Sprintf("  %-11s%s", name, fmt.Sprintf(format, args...)), " "))
	}
	switch r.Verdict {
	case explain.Unreadable:
		return []string{describe(r.Where(), r.Err)}
	case explain.Loads:
		lines = append(lines, fmt.Sprintf("%s: %s loads this module", r.Where(), k.Name))
	case explain.Taints:
		lines = append(lines, fmt.Sprintf("%s: %s loads this module and is tainted (%s)", r.Where(), k.Name,
			r.Causes[0].ID))
	default:
		lines = append(lines, fmt.Sprintf("%s: %s refuses this module (%s)", r.Where(), k.Name, first(r).ID))
	}
	main := first(r)
	if main != nil {
		field("why", "%s", main.Reason)
		mended(field, main.Mend)
		logged(field, main)
		for i, evidence := range main.Evidence {
			field([]string{"evidence", ""}[min(i, 1)], "%s", evidence)
		}
	}
	for i := range r.Causes {
		c := &r.Causes[i]
		if c == main {
			continue
		}
		said := map[explain.Effect]string{
			explain.Refuses: "after that, the kernel would also refuse it", explain.TaintsIt: "the kernel is tainted",
			explain.May: "the kernel or kmod may refuse it",
		}[c.Effect]
		field("also", "%s (%s): %s", said, c.ID, c.Reason)
		if c.Effect == explain.Refuses {
			mended(field, c.Mend)
			logged(field, c)
		}
	}
	for _, note := range r.Notes {
		field("note", "%s", note)
	}
	contentLines(r, field)
	for _, what := range r.Unchecked {
		field("unchecked", "%s", what)
	}
	return lines
}

// first returns the cause that decides.
func first(r *explain.Report) *explain.Cause {
	want := map[explain.Verdict]explain.Effect{explain.Refused: explain.Refuses,
		explain.Taints: explain.TaintsIt}[r.Verdict]
	for i := range r.Causes {
		if r.Causes[i].Effect == want {
			return &r.Causes[i]
		}
	}
	return nil
}

func mended(field func(name, format string, args ...any), m explain.Mend) {
	if m.Command != "" {
		field("mend", "%s", m.Command)
	}
	if m.Then != "" {
		field([]string{"mend", "then"}[min(len(m.Command), 1)], "%s", m.Then)
	}
}

func logged(field func(name, format string, args ...any), c *explain.Cause) {
	for i, line := range c.Log {
		field([]string{"log", ""}[min(i, 1)], "%s", line)
	}
	if len(c.Log) == 0 {
		field("log", "(the kernel logs nothing about it)")
	}
	if c.Errno == 0 {
		return
	}
	inner := ""
	if c.Inner != 0 && c.Inner != c.Errno {
		inner = ", inside the kernel " + errnoName(c.Inner)
	}
	field("error", "%s%s", errnoText(c.Errno), inner)
}

// errnoText is how programs print an error.
func errnoText(e syscall.Errno) string {
	text := e.Error()
	return fmt.Sprintf("%s (%s%s)", errnoName(e), strings.ToUpper(text[:1]), text[1:])
}

// contentLines describes the module and its signatures.
func contentLines(r *explain.Report, field func(name, format string, args ...any)) {
	if r.Vermagic != "" {
		field("module", "%s, %s, built for %s", r.Name, r.Architecture, strings.TrimSpace(r.Vermagic))
	}
	if r.Signature == nil {
		return
	}
	place := "at the end of the file"
	if r.Compression != "none" {
		place = "inside the " + r.Compression + " file"
	}
	for i, l := range r.Signature.Layers {
		which := ""
		if len(r.Signature.Layers) > 1 {
			which = fmt.Sprintf(" (%d of %d, the kernel looks at the first)", i+1, len(r.Signature.Layers))
		}
		field("signed", "%s, %d bytes at offset %d, %s%s", l.Type, l.Size, l.Offset, place, which)
		for _, s := range l.Signers {
			field("", "by %s: %s with %s", signerText(s), s.Algorithm, s.Hash)
		}
		if l.Problem != "" {
			field("", "%s", l.Problem)
		}
	}
	if l := r.Outside; l != nil {
		field("signed", "%s, %d bytes at offset %d, behind the %s file, where the kernel does not look", l.Type,
			l.Size, l.Offset,
			r.Compression)
		for _, s := range l.Signers {
			field("", "by %s: %s with %s", signerText(s), s.Algorithm, s.Hash)
		}
	}
}

func signerText(s verify.Signer) string {
	switch {
	case s.Issuer != "":
		return fmt.Sprintf("%q, serial %s", s.Issuer, colons(s.Serial))
	case s.KeyID != "":
		return "key id " + colons(s.KeyID)
	}
	return fmt.Sprintf("%q", s.Name)
}
