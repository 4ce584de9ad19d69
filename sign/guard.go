package sign

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"sync/atomic"
	"time"

	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/sign/policy"
)

// guard has a policy judge the modules of a run. A nil guard allows everything.
type guard struct {
	policy  *policy.Policy
	hashes  []Hash // of the signatures
	allowed bool   // a dry run, after CheckPolicy: only what cannot be read fails
	files   atomic.Int64
}

// checkRun has the policy judge a run over so many modules. It has to allow all hashes.
func (g *guard) checkRun(modules int) error {
	for _, h := range g.hashes {
		if err := g.policy.CheckRun(time.Now(), h.HashFunc(), modules); err != nil {
			return err
		}
	}
	return nil
}

// CheckPolicy has Options.Policy judge all modules that [Tree.Sign] would sign with the same
// arguments. If the policy refuses any, the error is a [*RefusedError]. A module that fails
// for another reason will fail again. Sign calls CheckPolicy unless it was called before.
// Report.Result gets the modules that are refused, in the order of the error's Errs, in which
// a refusal of the whole run is the last one.
func (t *Tree) CheckPolicy(ctx context.Context, signer *Signer, opts Options) error {
	err := first(t.check(), signer.check(), opts.Existing.check(opts.Detached, opts.DebugOptions))
	if err != nil || opts.Policy == nil {
		return err
	}
	g := &guard{policy: opts.Policy, hashes: signer.hashes}
	if err := g.checkRun(0); err != nil {
		return &RefusedError{Errs: []error{err}}
	}
	k := task{
		WriteOptions: ReadOptions{Jobs: opts.Jobs, MaxSize: opts.MaxSize}.reading(), DebugOptions: opts.DebugOptions,
		existing: opts.Existing, trailers: judgements{}, guard: g, last: stagePrepare,
	}
	if g.policy.NeedsSHA256() {
		k.last = stageMake
	}
	var results []Result
	k.Report.Progress = opts.Report.Progress
	k.Report.Result = func(r Result) {
		if _, ok := errors.AsType[*policy.RefusedError](r.Err); ok {
			results = append(results, r)
		}
	}
	if _, err := t.run(ctx, k); err != nil && !errors.Is(err, ErrIncomplete) {
		return err
	}
	var refused []error
	for _, r := range results {
		refused = append(refused, failures.Name(r.Path, r.Err))
		if opts.Report.Result != nil {
			opts.Report.Result(r)
		}
	}
	if e, ok := errors.AsType[*RefusedError](g.checkCount()); ok {
		refused = append(refused, e.Errs...)
	}
	if len(refused) > 0 {
		return &RefusedError{Errs: refused}
	}
	t.allowed = opts.Policy
	return nil
}

// judgements are what a run is for that only asks a policy.
type judgements struct{ signsNot }

func (judgements) action(bool) Action { return Digested }

// begin begins the SHA-256 of a module, or returns nil if the policy does not need it.
func (g *guard) begin() hash.Hash {
	if g == nil || !g.policy.NeedsSHA256() {
		return nil
	}
	return sha256.New()
}

// checkCount has the policy judge how many files it has allowed.
func (g *guard) checkCount() error {
	if err := g.checkRun(int(g.files.Load())); err != nil {
		return &RefusedError{Errs: []error{err}}
	}
	return nil
}

// allow asks the policy about the module, under each of its names. The hash is what begin
// has begun.
func (w *work) allow(sum hash.Hash) error {
	g := w.guard
	if g == nil {
		return nil
	}
	if w.last == stagePlace { // the clock goes on, and what was skipped may not be signed any more
		if err := g.checkRun(int(g.files.Add(1))); err != nil {
			return err
		}
	}
	var m policy.Module
	if sum != nil {
		m.SHA256 = sum.Sum(nil)
	}
	if g.policy.NeedsTags() {
		tags, err := module.Modinfo(w.content.at, w.content.atSize)
		if err != nil {
			return err
		}
		m.Tags = append([]string{}, tags...) // none are not unknown
	}
	if g.allowed {
		return nil
	}
	for _, name := range w.job.names {
		for _, path := range append([]string{name.name}, name.also...) {
			m.Path = path
			if err := g.policy.Check(&m); err != nil {
				return err
			}
		}
	}
	if w.last < stagePlace {
		g.files.Add(1)
	}
	return nil
}
