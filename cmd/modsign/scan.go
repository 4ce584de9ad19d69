package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/keygen/keyscan"
)

type scanOptions struct {
	exclude    []string
	kernels    []string
	allowEmpty bool
	jobs       jobsFlag
	maxSize    size
}

func newScanCommand(u *ui) *cobra.Command {
	var o scanOptions
	cmd := &cobra.Command{
		Use:   "scan PATH...",
		Short: "Find private keys in what is about to be shipped",
		Long: `Scan looks for private keys in directories, packages and files: the one-time key that a
kernel's build left in certs/signing_key.pem, a machine owner key, any other key. The
content of a file decides, never its name: PEM of every kind anywhere in a file, DER,
PKCS #12, Java and NSS keystores, OpenPGP, OpenSSH, GnuPG, PuTTY and SoftHSM. Scan looks
into compressed files, except for kernel modules, and into deb and RPM packages, tar and
zip archives, container images, initramfs images and unified kernel images. docs/scan.md
has the whole list.

For each key, scan shows the kind and the subject key identifier, never a byte of it. If the
scanned files have a certificate of the key, scan names it, and with --kernel the kernel
images that trust it. A key that works in one TPM or card alone is a note and no finding.

Symbolic links below a directory are not followed; FIFOs and devices are not opened. The exit
code is 4 if there is a key, 3 if there is none in all that could be read, and 0 only if
all was read.`,
		Example: `  modsign scan %{buildroot}
  modsign scan --kernel arch/x86/boot/bzImage /usr/src/linux-headers-6.12
  modsign scan --exclude 'tests/keys/*' --json .`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("nothing to scan: name directories or files")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringArrayVar(&o.kernels, "kernel", nil, "say which keys the kernel `IMAGE` trusts (repeatable)")
	flags.StringArrayVar(&o.exclude, "exclude", nil, "leave out what matches `PATTERN`, by name or path (repeatable)")
	flags.BoolVar(&o.allowEmpty, "allow-empty", false, "succeed if there is no file")
	addJSON(flags, u)
	addQuiet(flags, u)
	o.jobs.addFlag(flags)
	flags.Lookup("jobs").Usage = "read `N` files at once (default: twice the processors)"
	o.maxSize = 2 << 30
	flags.Var(&o.maxSize, "max-size", "look at most at `SIZE` of a decompressed file")
	return cmd
}

func (o *scanOptions) run(ctx context.Context, u *ui, args []string) error {
	if err := o.jobs.check(); err != nil {
		return err
	}
	start := time.Now()
	scanner, err := keyscan.New(keyscan.Options{
		Jobs: int(o.jobs), MaxSize: int64(o.maxSize), Exclude: o.exclude, Kernels: o.kernels,
		Progress: func(files int, bytes int64) {
			u.Progress(false, func() string {
				return fmt.Sprintf("scanned %s, %s", plural(files, "file"), megabytes(bytes))
			})
		},
	})
	if _, ok := errors.AsType[*keyscan.PatternError](err); ok {
		return usagef("--exclude: %v", err)
	}
	if err != nil {
		return err
	}
	for _, path := range args {
		if err := scanner.Tree(ctx, path); err != nil {
			u.Progress(true, nil)
			return err
		}
	}
	u.Progress(true, nil)
	report := scanner.Report()
	took := time.Since(start)
	o.show(u, report, took)
	err = report.Err()
	switch {
	case err == nil, errors.Is(err, keyscan.ErrNothing) && o.allowEmpty:
		return nil
	case errors.Is(err, keyscan.ErrFound):
		return exitStatus(exitRefused)
	case errors.Is(err, keyscan.ErrIncomplete):
		return exitStatus(exitSome)
	}
	return withHint(fmt.Errorf("%s: %w", strings.Join(args, ", "), err), "use --allow-empty to succeed without files")
}

// show writes a report: the findings as results, all else beside them.
func (o *scanOptions) show(u *ui, r *keyscan.Report, took time.Duration) {
	for i := range r.Findings {
		f := &r.Findings[i]
		switch {
		case u.JSON:
			u.Object(newJSONFoundKey(f))
		case f.Harmless != "":
			u.Note("note: %s: %s, no leak: %s", f.Name(), keyKind(f), f.Harmless)
		default:
			for _, line := range keyLines(f) {
				u.Result("%s", line)
			}
		}
	}
	for _, f := range r.Failures {
		if u.JSON {
			u.Object(jsonScanFailure{Type: "failure", Path: f.Path, Archive: f.Archive, Error: f.Err.Error()})
		}
		u.Say("%s", describe(f.Name(), f.Err))
	}
	for _, dir := range r.Systems {
		u.Note("note: %s: not scanned: the kernel makes its files", dir)
	}
	for _, pattern := range r.Unused {
		u.Note("note: --exclude %s matches nothing", shell.Quote(pattern))
	}
	if u.JSON {
		u.Object(newJSONScanSummary(r, took))
	}
	u.Note("%s", scanSentence(r, took))
}

// keyKind is what a key is: "private key, RSA 4096 (PEM, PKCS #8, not encrypted)".
func keyKind(f *keyscan.Finding) string {
	kind := "private key"
	if f.Algorithm != "" {
		kind += ", " + f.Algorithm
	}
	state := "not encrypted"
	if f.Encrypted {
		state = "encrypted"
	}
	if f.Damaged {
		state += ", damaged or cut off"
	}
	return fmt.Sprintf("%s (%s, %s)", kind, f.Form, state)
}

// keyLines describes a finding.
func keyLines(f *keyscan.Finding) []string {
	at := f.Name()
	switch {
	case f.Line > 1:
		at += fmt.Sprintf(":%d", f.Line)
	case f.Line == 0 && f.Offset > 0:
		at += fmt.Sprintf(" at byte %d", f.Offset)
	}
	lines := []string{at + ": " + keyKind(f)}
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf("  "+format, args...)) }
	for _, image := range f.Kernels {
		add("signs for the kernel %s, which trusts this key", image)
	}
	if f.Certificate != "" {
		add("belongs to the certificate %s in %s", f.Certificate, f.CertificatePath)
	}
	if f.Origin != "" {
		add("%s", f.Origin)
	}
	if f.KeyID != "" {
		add("key id %s", f.KeyID)
	}
	if who := f.Readers(); who != "" {
		add("mode %04o: %s can read it", f.Mode.Perm(), who)
	}
	return lines
}

// scanSentence sums up a scan.
func scanSentence(r *keyscan.Report, took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "scanned %s, %s in %s: ", plural(r.Files, "file"), megabytes(r.Bytes), seconds(took))
	if n := r.Leaks(); n > 0 {
		b.WriteString(plural(n, "private key"))
		if n := trustedKeys(r); n > 0 {
			fmt.Fprintf(&b, " (%d trusted by a kernel)", n)
		}
	} else {
		b.WriteString("no private key")
	}
	if r.Omitted > 0 {
		fmt.Fprintf(&b, ", %d of them not listed", r.Omitted)
	}
	part := func(n int, text string) {
		if n > 0 {
			b.WriteString("; " + text)
		}
	}
	failed := len(r.Failures) + r.MoreFailures
	part(failed, fmt.Sprintf("%d could not be read", failed))
	part(r.Modules, plural(r.Modules, "compressed module")+" not looked into")
	part(r.Links, plural(r.Links, "symbolic link")+" not followed")
	part(r.Special, plural(r.Special, "special file")+" not opened")
	part(r.Excluded, fmt.Sprintf("%d excluded", r.Excluded))
	return b.String()
}

// trustedKeys counts the keys that a kernel trusts.
func trustedKeys(r *keyscan.Report) (n int) {
	for _, f := range r.Findings {
		if len(f.Kernels) > 0 {
			n++
		}
	}
	return n
}
