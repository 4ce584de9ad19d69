package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/sign"
)

// treeOptions are those of the commands that write modules.
type treeOptions struct {
	output  string
	jobs    int
	mode    string
	mtime   string
	xattr   string
	sync    string
	level   int
	maxSize size
	dryRun  bool
	owner   string
	wait    bool
}

func (o *treeOptions) addFlags(flags *pflag.FlagSet, u *ui) {
	o.maxSize = 2 << 30
	flags.StringVarP(&o.output, "output", "o", "", "leave the modules alone and write the same tree to `DIR`")
	flags.BoolVarP(&o.dryRun, "dry-run", "n", false, "look at everything and write nothing")
	flags.BoolVar(&u.json, "json", false, "write one JSON object a line to stdout")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but errors")
	flags.IntVarP(&o.jobs, "jobs", "j", 0, "modules worked on at once, `N` (default: twice the number of processors)")
	flags.StringVar(&o.mode, "mode", "", "give what is written this `MODE`, such as 0644, instead of keeping the old one")
	flags.StringVar(&o.owner, "owner", "keep", "`OWNER` of what is written: keep the old file's, or runner for whoever runs modsign")
	flags.StringVar(&o.mtime, "mtime", "keep", "`TIME` of modification of what is written: keep the old one, or now")
	flags.StringVar(&o.xattr, "xattr", "safe", "`WHICH` extended attributes stay: the safe ones, without security.ima and security.evm, which attest the old bytes; or keep, for all")
	flags.StringVar(&o.sync, "sync", "tree", "`WHEN` what is written has to be on disk: the tree at the end, each file before it gets its name, or none")
	flags.IntVar(&o.level, "level", 0, "level of compression for modules that are compressed, `N` (default: the kernel's)")
	flags.BoolVar(&o.wait, "wait", false, "wait for another run that has locked the modules")
	flags.Var(&o.maxSize, "max-module-size", "refuse a compressed module that is larger than `SIZE` when decompressed")
}

func (o *treeOptions) options() (sign.Options, error) {
	options := sign.Options{Jobs: o.jobs, Level: o.level, MaxSize: int64(o.maxSize), DryRun: o.dryRun}
	if o.jobs < 0 {
		return options, usagef("--jobs is %d, and has to be a number of modules", o.jobs)
	}
	if err := (compress.Options{Level: o.level}).Check(compress.Zstd); err != nil { // which has the most
		return options, usagef("--level: %v", err)
	}
	if o.mode != "" {
		mode, err := strconv.ParseUint(o.mode, 8, 32)
		if err != nil || mode > 0o777 {
			return options, usagef("--mode %s: not an octal mode such as 0644", o.mode)
		}
		m := fs.FileMode(mode)
		options.Mode = &m
	}
	var err error
	if options.NewMTime, err = choice("mtime", o.mtime, "keep", "now"); err != nil {
		return options, err
	}
	if options.NewOwner, err = choice("owner", o.owner, "keep", "runner"); err != nil {
		return options, err
	}
	if options.KeepXattrs, err = choice("xattr", o.xattr, "safe", "keep"); err != nil {
		return options, err
	}
	if options.Sync, err = sign.ParseSync(o.sync); err != nil {
		return options, usagef("--sync: %v", err)
	}
	return options, nil
}

// open finds and locks the modules. With --wait it waits for another run.
func (o *treeOptions) open(ctx context.Context, u *ui, source sign.Source) (*sign.Tree, error) {
	if o.wait {
		source.Wait = func(l *sign.LockedError) { u.note("waiting for %s, which has locked %s", l.Holder, l.Path) }
	}
	tree, err := sign.OpenContext(ctx, source)
	if _, locked := errors.AsType[*sign.LockedError](err); locked {
		return nil, withHint(err, "run again with --wait to wait for it")
	}
	return tree, err
}

// choice reports whether a flag has the second of its two values.
func choice(flag, value, no, yes string) (bool, error) {
	if value != no && value != yes {
		return false, usagef("--%s %s: it is %s or %s", flag, value, no, yes)
	}
	return value == yes, nil
}

// work is one run over a tree, as the commands sign and strip show it.
type work struct {
	ui      *ui
	verb    string // what is done, as in "signing"
	start   time.Time
	options sign.Options
	summary sign.Summary
	cert    string   // where a one-time certificate was written
	foreign bool     // the owner of a module could not be kept
	said    []string // before the work began, for the summary in JSON
	how     string   // "with rsa:4096 and sha512, as ..."
	stale   staleIndexes
}

// do runs and shows what f does, and returns the error that makes the exit code.
func (w *work) do(ctx context.Context, f func(sign.Options) (sign.Summary, error)) error {
	if !w.options.DryRun {
		w.ui.begin()
	}
	w.start = time.Now()
	w.options.Report = sign.Report{Progress: w.progress, Result: w.result}
	summary, err := f(w.options)
	w.summary = summary
	w.ui.progress(true, nil)
	if w.ui.json {
		w.ui.object(jsonSignSummary{
			Type: "summary", Modules: summary.Modules, Signed: summary.Signed, Stripped: summary.Stripped, Skipped: summary.Skipped,
			Failed: summary.Failed, Replaced: summary.Replaced, Stacked: summary.Stacked, Elsewhere: summary.Elsewhere,
			Debug: summary.Debug, DebugBytes: summary.DebugBytes, DebugFiles: summary.DebugFiles, ByProgram: summary.ByProgram,
			Bytes: summary.Bytes, Seconds: summary.Duration.Seconds(), DryRun: w.options.DryRun, Cert: w.cert,
			Links: summary.Links.Found, Relinked: summary.Links.Renamed, Behind: summary.Links.Behind, Irregular: summary.Links.Irregular, Notes: append(slices.Clip(w.said), w.notes(summary)...),
		})
	}
	w.ui.note("%s", w.sentence(summary))
	for _, note := range w.notes(summary) {
		w.ui.note("%s", note)
	}
	if w.foreign {
		w.ui.hint("--owner runner leaves the new files to the user who runs modsign; --output DIR writes a copy and leaves the modules alone")
	}
	w.stale.hint(w.ui)
	switch {
	case err != nil && errors.Is(err, context.Cause(ctx)) && ctx.Err() != nil:
		left := summary.Modules - summary.Signed - summary.Stripped - summary.Skipped - summary.Failed
		if left == 0 {
			return errInterrupted
		}
		return fmt.Errorf("%w: %s left as before; the same command again completes it", errInterrupted, plural(left, "module"))
	case errors.Is(err, sign.ErrIncomplete): // the modules are named above
		return exitStatus(exitSome)
	}
	return err
}

func (w *work) progress(done, total sign.Count) {
	w.ui.progress(false, func() string {
		return fmt.Sprintf("%s %d of %d modules, %s of %s%s", w.verb,
			done.Modules, total.Modules, megabytes(done.Bytes), megabytes(total.Bytes), pace(time.Since(w.start), done.Bytes, total.Bytes))
	})
}

// pace is the end of a line of progress: the rate, and the time that the rest takes at
// that rate. Both go by bytes, as modules differ in size by a factor of a thousand.
func pace(took time.Duration, done, total int64) string {
	rate := float64(done) / took.Seconds()
	if done <= 0 || took <= 0 {
		return ""
	}
	left := min(float64(total-done)/rate, 1e9) // beyond, it is no Duration
	return fmt.Sprintf(", %s a second, %s left", megabytes(int64(rate)), seconds(time.Duration(left*float64(time.Second))))
}

func (w *work) result(r sign.Result) {
	w.stale.add(r)
	if w.ui.json {
		w.ui.object(newJSONSigned(r))
	}
	if r.Err != nil {
		w.ui.say("%s", describe(r.Path, r.Err))
	}
	if _, ok := errors.AsType[*sign.OwnerError](r.Err); ok {
		w.foreign = true
	}
}

// sentence is the one true summary.
func (w *work) sentence(s sign.Summary) string {
	would := ""
	if w.options.DryRun {
		would = "would have "
	}
	var parts []string
	if s.Signed > 0 && w.verb == "proving" {
		parts = append(parts, fmt.Sprintf("%sappended the proofs of %s (%s)", would, plural(s.Signed, "module"), megabytes(s.Bytes)))
	} else if s.Signed > 0 || s.Stripped == 0 && w.verb == "signing" {
		parts = append(parts, fmt.Sprintf("%ssigned %s (%s)%s", would, plural(s.Signed, "module"), megabytes(s.Bytes), w.how))
	}
	switch {
	case w.verb == "stripping" && w.options.StripDebug:
		parts = append(parts, fmt.Sprintf("%sstripped %s (%s left)", would, plural(s.Stripped, "module"), megabytes(s.Bytes)))
		if s.Replaced > 0 {
			parts = append(parts, fmt.Sprintf("%d of them had been signed", s.Replaced))
		}
	case s.Stripped > 0 || w.verb == "stripping":
		parts = append(parts, fmt.Sprintf("%staken the signature off %s (%s)", would, plural(s.Stripped, "module"), megabytes(s.Bytes)))
	}
	if s.Debug > 0 {
		what := "taken out of"
		if w.options.SplitDebug != "" {
			what = "split off"
		}
		parts = append(parts, fmt.Sprintf("%s of debug information %s %s", megabytes(s.DebugBytes), what, plural(s.Debug, "module")))
	}
	if s.ByProgram > 0 {
		parts = append(parts, fmt.Sprintf("%s of an unusual shape stripped by %s", plural(s.ByProgram, "module"), w.options.StripProgram))
	}
	if s.Replaced > 0 && w.verb != "stripping" {
		parts = append(parts, fmt.Sprintf("%d of them in place of an older signature", s.Replaced))
	}
	if s.Stacked > 0 {
		parts = append(parts, fmt.Sprintf("%d had been signed more than once", s.Stacked))
	}
	if s.Skipped > 0 {
		was := map[bool]string{true: "was", false: "were"}[s.Skipped == 1]
		why := was + " signed already"
		switch {
		case w.verb == "stripping" && w.options.StripDebug:
			why = "had nothing to strip"
		case w.verb == "stripping":
			why = was + " not signed"
		}
		parts = append(parts, fmt.Sprintf("skipped %d that %s", s.Skipped, why))
	}
	if s.Failed > 0 {
		parts = append(parts, fmt.Sprintf("%s failed", plural(s.Failed, "module")))
	}
	return strings.Join(parts, ", ") + ", in " + seconds(s.Duration)
}

// notes are the things of a run that a person should know of.
func (w *work) notes(s sign.Summary) []string {
	notes := s.Notes
	if s.Attested > 0 {
		notes = append(notes, fmt.Sprintf("warning: dropped security.ima or security.evm of %s, as they attest the old bytes (--xattr=keep keeps them)", plural(s.Attested, "module")))
	}
	if s.Elsewhere > 0 {
		notes = append(notes, fmt.Sprintf("warning: %s outside of what was given: hard links of these modules, which keep the old ones", plural(s.Elsewhere, "name")))
	}
	done := "signed"
	if w.verb == "stripping" {
		done = "stripped"
	}
	notes = append(notes, linkNotes(s.Links, done)...)
	if s.Completed > 0 {
		notes = append(notes, fmt.Sprintf("linked %s again that an interrupted run had left apart", plural(s.Completed, "name")))
	}
	return notes
}

// size is a flag in bytes, with K, M, G or T behind it for powers of 1024.
type size int64

func (s *size) Type() string { return "SIZE" }

func (s *size) String() string {
	for i, unit := range []string{"T", "G", "M", "K"} {
		if n := int64(1) << (40 - 10*i); *s != 0 && int64(*s)%n == 0 {
			return fmt.Sprintf("%d%s", int64(*s)/n, unit)
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *size) Set(value string) error {
	number, shift := strings.ToUpper(value), 0
	for i, unit := range []string{"K", "M", "G", "T"} {
		if rest, ok := strings.CutSuffix(strings.TrimSuffix(number, "IB"), unit); ok {
			number, shift = rest, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return errors.New("not a size such as 512M or 2G")
	}
	*s = size(n << shift)
	return nil
}
