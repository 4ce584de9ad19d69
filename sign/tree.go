package sign

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"
)

// Sign signs every module. It goes on after a module that fails: the Summary counts
// those, Report.Result names them, and the error is [ErrIncomplete]. Any other error
// ended the run: the context's cause, a failure to flush to disk, a [*KeyLostError], or a
// [*RefusedError] of Options.Policy, before the first module was signed.
func (t *Tree) Sign(ctx context.Context, signer *Signer, opts Options) (Summary, error) {
	if err := first(signer.check(), opts.Existing.check(opts.Detached, opts.DebugOptions)); err != nil {
		return Summary{}, err
	}
	if opts.Detached && (opts.StripDebug || opts.SplitDebug != "") {
		return Summary{}, errors.New("detached signatures leave the modules as they are: they cannot be stripped as well")
	}
	k := task{
		WriteOptions: opts.WriteOptions, DebugOptions: opts.DebugOptions,
		existing: opts.Existing, detached: opts.Detached,
		trailers: signatures{Signer: signer}, last: t.lastStage(opts.DryRun, stagePrepare),
	}
	if opts.Policy != nil {
		if t.allowed != opts.Policy {
			if err := t.CheckPolicy(ctx, signer, opts); err != nil {
				return Summary{}, err
			}
		}
		// What is signed may not be what was checked: it is checked again.
		k.guard = &guard{policy: opts.Policy, hashes: signer.hashes, allowed: k.last < stagePlace}
	}
	return t.run(ctx, k)
}

// RemoveSignatures removes all signatures of every module. A module without a signature
// is Skipped. Its errors are those of [Tree.Sign].
func (t *Tree) RemoveSignatures(ctx context.Context, opts WriteOptions) (Summary, error) {
	return t.StripDebug(ctx, StripOptions{WriteOptions: opts})
}

// StripDebug removes debug information as its DebugOptions say, and all signatures, as
// they do not match the stripped module. A module that has neither is Skipped. Its errors
// are those of [Tree.Sign].
func (t *Tree) StripDebug(ctx context.Context, opts StripOptions) (Summary, error) {
	return t.run(ctx, task{
		WriteOptions: opts.WriteOptions, DebugOptions: opts.DebugOptions,
		trailers: noTrailer{}, last: t.lastStage(opts.DryRun, stagePrepare),
	})
}

// Prove appends its proof to every module, as Sign appends a signature. Names of the same
// file become files of their own, since each has its own proof. A module without a proof
// fails and stays as it is.
func (t *Tree) Prove(ctx context.Context, p Prover, opts ProveOptions) (Summary, error) {
	if isNil(p) {
		return Summary{}, errors.New("nothing to prove with: the Prover is nil")
	}
	return t.run(ctx, task{
		WriteOptions: opts.WriteOptions, DebugOptions: opts.DebugOptions,
		trailers: proofs{Prover: p}, last: t.lastStage(opts.DryRun, stagePrepare),
	})
}

// Digest reads every module and writes nothing: the Results that Report gets hold the
// digests that Sign would sign. If the policy refuses the whole run, the error is a
// [*RefusedError].
func (t *Tree) Digest(ctx context.Context, hashed Hash, opts ReadOptions) (Summary, error) {
	if h, ok := hashed.(crypto.Hash); hashed == nil || ok && !h.Available() {
		return Summary{}, fmt.Errorf("no digest %v in this build", hashed)
	}
	k := task{WriteOptions: opts.reading(), trailers: digests{hash: hashed}, last: stageMake}
	if opts.Policy != nil {
		if err := opts.Policy.CheckRun(time.Now(), hashed.HashFunc(), 0); err != nil {
			return Summary{}, &RefusedError{Errs: []error{err}}
		}
		k.guard = &guard{policy: opts.Policy, hashes: []Hash{hashed}}
	}
	summary, err := t.run(ctx, k)
	if k.guard != nil && err == nil {
		err = k.guard.checkCount()
	}
	return summary, err
}

// reading are the options of a run that writes nothing.
func (o ReadOptions) reading() WriteOptions {
	return WriteOptions{Jobs: o.Jobs, MaxSize: o.MaxSize, Report: o.Report, Sync: SyncNone}
}

// lastStage is how far a run goes: dry is for dry runs.
func (t *Tree) lastStage(dryRun bool, dry stage) stage {
	if dryRun || t != nil && t.source.DryRun {
		return dry
	}
	return stagePlace
}
