package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/sign/policy"
)

// work is one run over a tree, as the commands that write modules show it.
type work struct {
	ui      *ui
	verb    string // "signing", say
	options sign.Options
	summary sign.Summary
	cert    string   // where a one-time certificate was written
	foreign bool     // the owner of a module could not be kept
	mixed   bool     // an old signature names its signer in the other way
	said    []string // notes from before the run, for the summary in JSON
	how     string   // "with rsa:4096 and sha512, as ..."
	xattr   bool     // the command has the flag --xattr
	inPlace bool     // new modules replace the old ones
}

// do runs f, shows what it does, and returns the error for the exit code.
func (w *work) do(ctx context.Context, f func(sign.Options) (sign.Summary, error)) error {
	if !w.options.DryRun {
		w.ui.Begin()
	}
	w.options.Report = sign.Report{Progress: treeProgress(w.ui, w.verb), Result: w.result}
	summary, err := f(w.options)
	w.summary = summary
	w.ui.Progress(true, nil)
	notes := w.notes(summary)
	if w.ui.JSON {
		w.ui.Object(w.json(summary, notes))
	}
	w.ui.Note("%s", w.sentence(summary))
	for _, note := range notes {
		w.ui.Note("%s", note)
	}
	if w.foreign {
		w.ui.Hint("--owner runner makes you the owner of new files; --output DIR writes a copy and leaves the modules alone")
	}
	if w.mixed {
		w.ui.Hint("--key-id, of sign or sign-digests, names the new signer by subject key identifier, no --key-id by issuer and serial number")
	}
	if w.unseen(summary) != "" {
		w.ui.Hint("--output DIR writes a copy; see \"fakeroot and pseudo\" in docs/distribution.md")
	}
	for _, dir := range summary.StaleIndexes {
		w.ui.Hint("%s lists old names of modules: %s", filepath.Join(dir, "modules.dep"), depmod(dir))
	}
	left := summary.Modules - summary.Signed - summary.Stripped - summary.Skipped - summary.Failed
	_, lost := errors.AsType[*sign.KeyLostError](err)
	switch {
	case err != nil && errors.Is(err, context.Cause(ctx)) && ctx.Err() != nil:
		if left == 0 {
			return errInterrupted
		}
		return fmt.Errorf("%w: %s left unchanged; run the same command again to complete it",
			errInterrupted, plural(left, "module"))
	case lost && left > 0:
		err = fmt.Errorf("%w: %s left unchanged", err, plural(left, "module"))
		if keyHint(err) == "" { // or the same would happen again
			err = fmt.Errorf("%w; run the same command again to complete it", err)
		}
		return err
	case errors.Is(err, sign.ErrIncomplete): // the modules are named above
		return exitStatus(exitSome)
	}
	return err
}

// json is the summary for --json.
func (w *work) json(s sign.Summary, notes []string) jsonSignSummary {
	return jsonSignSummary{
		Type: "summary", Modules: s.Modules, Signed: s.Signed, Stripped: s.Stripped, Skipped: s.Skipped,
		Failed: s.Failed, Replaced: s.Replaced, Stacked: s.Stacked, Added: s.Added, Elsewhere: s.OutsideLinks,
		Debug: s.Debug, DebugBytes: s.DebugBytes, DebugFiles: s.DebugFiles, ByProgram: s.ByProgram,
		Bytes: s.Bytes, Seconds: s.Duration.Seconds(), DryRun: w.options.DryRun, Cert: w.cert,
		Links: s.Links.Found, Relinked: s.Links.Renamed, Behind: s.Links.Behind, Irregular: s.Links.Irregular,
		Notes: append(slices.Clip(w.said), notes...),
	}
}

// treeProgress shows how far a run is that starts now.
func treeProgress(u *ui, verb string) func(done, total sign.Count) {
	start := time.Now()
	return func(done, total sign.Count) {
		u.Progress(false, func() string {
			return fmt.Sprintf("%s %d of %d modules, %s of %s%s", verb, done.Modules, total.Modules,
				megabytes(done.Bytes), megabytes(total.Bytes), pace(time.Since(start), done.Bytes, total.Bytes))
		})
	}
}

// pace is the end of a line of progress: the rate, and the time left at that rate. Both go
// by bytes, as modules differ in size by a factor of a thousand.
func pace(took time.Duration, done, total int64) string {
	rate := float64(done) / took.Seconds()
	if done <= 0 || took <= 0 {
		return ""
	}
	left := min(float64(total-done)/rate, 1e9) // more is no Duration
	return fmt.Sprintf(", %s a second, %s left", megabytes(int64(rate)), seconds(time.Duration(left*float64(time.Second))))
}

func (w *work) result(r sign.Result) {
	if w.ui.JSON {
		w.ui.Object(newJSONSigned(r))
	}
	if r.Err != nil {
		w.ui.Say("%s", describe(r.Path, r.Err))
	}
	if _, ok := errors.AsType[*sign.OwnerError](r.Err); ok {
		w.foreign = true
	}
	w.mixed = w.mixed || errors.Is(r.Err, cms.ErrMixed)
}

// sentence is the one true summary.
func (w *work) sentence(s sign.Summary) string {
	strips := w.verb == "stripping"
	parts := []string{}
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	would := ""
	if w.options.DryRun {
		would = "would have "
	}
	switch {
	case w.verb == "proving" && s.Signed > 0:
		add("%sappended the proofs of %s (%s)", would, plural(s.Signed, "module"), megabytes(s.Bytes))
	case s.Signed > 0, w.verb == "signing" && s.Stripped == 0:
		add("%ssigned %s (%s)%s", would, plural(s.Signed, "module"), megabytes(s.Bytes), w.how)
	}
	switch {
	case strips && w.options.StripDebug:
		add("%sstripped %s (%s left)", would, plural(s.Stripped, "module"), megabytes(s.Bytes))
		if s.Replaced > 0 {
			add("%d of them had been signed", s.Replaced)
		}
	case strips, s.Stripped > 0:
		add("%sremoved the signatures of %s (%s)", would, plural(s.Stripped, "module"), megabytes(s.Bytes))
	}
	if s.Debug > 0 {
		what := "removed from"
		if w.options.SplitDebug != "" {
			what = "split off"
		}
		add("%s of debug information %s %s", megabytes(s.DebugBytes), what, plural(s.Debug, "module"))
	}
	if s.ByProgram > 0 {
		add("%s of an unusual shape stripped by %s", plural(s.ByProgram, "module"), w.options.StripProgram)
	}
	if s.Replaced > 0 && !strips {
		add("%d of them in place of an older signature", s.Replaced)
	}
	if s.Added > 0 {
		add("%d of them beside the signers of an older signature", s.Added)
	}
	if s.Stacked > 0 {
		add("%d had been signed more than once", s.Stacked)
	}
	if s.Skipped > 0 {
		add("skipped %d that %s", s.Skipped, w.whySkipped(s.Skipped))
	}
	if s.Failed > 0 {
		add("%s failed", plural(s.Failed, "module"))
	}
	return strings.Join(parts, ", ") + ", in " + seconds(s.Duration)
}

// unseen names the faked session whose table of inodes is wrong after the run, or none.
func (w *work) unseen(s sign.Summary) string {
	if !w.inPlace || w.options.DryRun || s.Signed+s.Stripped == 0 {
		return ""
	}
	switch {
	case strings.Contains(os.Getenv("LD_PRELOAD"), "libpseudo"):
		return "pseudo"
	case os.Getenv("FAKEROOTKEY") != "":
		return "fakeroot"
	}
	return ""
}

func (w *work) whySkipped(n int) string {
	was := map[bool]string{true: "was", false: "were"}[n == 1]
	switch {
	case w.verb == "stripping" && w.options.StripDebug:
		return "had nothing to strip"
	case w.verb == "stripping":
		return was + " not signed"
	}
	return was + " already signed"
}

// notes are what a person should know of a run.
func (w *work) notes(s sign.Summary) []string {
	notes := s.Notes
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if s.DroppedXattrs > 0 {
		hint := ""
		if w.xattr {
			hint = " (--xattr=keep keeps them)"
		}
		add("warning: dropped security.ima or security.evm of %s, which attest the old bytes%s",
			plural(s.DroppedXattrs, "module"), hint)
	}
	if s.OutsideLinks > 0 {
		add("warning: %s outside of the given paths: these hard links keep the old modules",
			plural(s.OutsideLinks, "name"))
	}
	if session := w.unseen(s); session != "" {
		add("warning: %s does not see that modules were replaced, and may show files with the type, mode and owner of others",
			session)
	}
	done := "signed"
	if w.verb == "stripping" {
		done = "stripped"
	}
	notes = append(notes, linkNotes(s.Links, done)...)
	if s.RecoveredLinks > 0 {
		add("restored %s that an interrupted run had not linked", plural(s.RecoveredLinks, "hard link"))
	}
	return notes
}

// readTree runs f, which reads a tree, shows what it does, and names the modules that fail.
func readTree[T any](
	u *ui, tree *sign.Tree, options sign.ReadOptions, f func(sign.ReadOptions) (T, error),
) (T, error) {
	failed := 0
	options.Report = sign.Report{Progress: treeProgress(u, "reading"), Result: func(r sign.Result) {
		if r.Err != nil {
			failed++
			u.Say("%s", describe(r.Path, r.Err))
		}
	}}
	result, err := f(options)
	u.Progress(true, nil)
	if !errors.Is(err, sign.ErrIncomplete) {
		return result, err
	}
	// The modules are named above.
	if _, ok := errors.AsType[*policy.RefusedError](err); ok {
		err := fmt.Errorf("%s does not allow this: nothing is written", options.Policy.Name())
		return result, &failure{code: exitRefused, err: err}
	}
	return result, fmt.Errorf("%d of %d modules failed: nothing is written unless all %[2]d can be read",
		failed, tree.Modules())
}
