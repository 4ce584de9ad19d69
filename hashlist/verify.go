package hashlist

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/elfstrip"
	"github.com/modsign/modsign/internal/module"
)

// Verdict is what a kernel with these hashes decides about a module.
type Verdict string

const (
	Trusted     Verdict = "trusted"           // the kernel loads it because of its hash
	Signed      Verdict = "signed"            // not because of its hash, but of its signature
	Changed     Verdict = "changed"           // its content is not the one that was hashed
	Stripped    Verdict = "stripped since"    // it was changed, and lost its debug information
	Unstripped  Verdict = "not stripped"      // the kernel trusts it without debug information
	Extra       Verdict = "extra"             // the kernel was built without it
	Missing     Verdict = "missing"           // the kernel was built with it, and it is not there
	Unproven    Verdict = "not proven"        // it carries no proof, and the kernel has a Merkle tree
	OtherKernel Verdict = "of another kernel" // its proof is for another kernel
	Malformed   Verdict = "malformed"         // the kernel cannot parse its signature
	Failed      Verdict = "failed"            // no verdict: it cannot be read
)

var verdicts = []Verdict{Trusted, Signed, Changed, Stripped, Unstripped, Extra, Missing, Unproven, OtherKernel,
	Malformed, Failed}

// Result is the verdict on one module.
type Result struct {
	Path    string // of the file, or the path in the Archive; empty if the module is Missing
	Archive string // the path of the package, or other archive, that has it; else empty
	Target  string // the file, if Path leads to it over symbolic links
	Name    string // as in lists: kernel/fs/ext4/ext4.ko
	Verdict Verdict
	Detail  string // more words for people; may be empty
	Err     error  // why it Failed
}

// String returns the verdict and the detail.
func (r Result) String() string {
	if r.Detail == "" {
		return string(r.Verdict)
	}
	return string(r.Verdict) + ": " + r.Detail
}

// Summary counts verdicts.
type Summary map[Verdict]int

// Refused returns how many modules have any verdict but Trusted and Signed.
func (s Summary) Refused() (n int) {
	for verdict, count := range s {
		if verdict != Trusted && verdict != Signed {
			n += count
		}
	}
	return n
}

// String returns "all trusted", "no module", or the number of modules with each verdict.
func (s Summary) String() string {
	switch {
	case s.Refused()+s[Signed] > 0:
	case s[Trusted] > 0:
		return "all trusted"
	default:
		return "no module"
	}
	var parts []string
	for _, verdict := range verdicts {
		if n := s[verdict]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, verdict))
		}
	}
	return strings.Join(parts, ", ")
}

// A Reference is what [Reference.Verify] compares modules with: a list with names, or the
// hashes that a kernel has built in.
type Reference struct {
	kernel bool // the hashes are those of a kernel
	root   *Root
	names  []string
	named  map[string]Module // by path; of a kernel's own list without sizes
	known  map[Hash]string   // the names of hashes, which may be empty
}

// NewReference returns a list as a reference, or nil if the list is nil. Verify fails for
// a nil Reference.
func NewReference(l *List) *Reference {
	if l == nil {
		return nil
	}
	r := &Reference{named: make(map[string]Module, len(l.Modules)), known: make(map[Hash]string, len(l.Modules))}
	for _, m := range l.Modules {
		r.names = append(r.names, m.Path)
		r.named[m.Path] = m
		r.known[m.Hash] = m.Path
	}
	return r
}

// NewKernelReference returns the hashes of a kernel as a reference. The kernel has no names
// of modules: order holds those in the installed modules.order. If order is nil, Verify
// does not find missing modules. If the number of names and hashes differs, they are from
// different builds, which is an error.
func NewKernelReference(e *Embedded, order []string) (*Reference, error) {
	if e == nil {
		return nil, errNoHashes
	}
	if e.Blank() {
		return nil, errors.New("the kernel has no hashes yet: its section " + SectionName + " is empty")
	}
	r := &Reference{kernel: true, root: e.Root, names: order}
	if r.root != nil {
		if n := levels(len(order)); order != nil && n != int(r.root.Levels) {
			return nil, fmt.Errorf("the kernel has a tree of %d levels, but the %d modules of modules.order make %d: "+
				"they are from different builds", r.root.Levels, len(order), n)
		}
		return r, nil
	}
	if order != nil && len(order) != len(e.Hashes) {
		return nil, fmt.Errorf("the kernel has %d hashes, but modules.order has %d modules: they are from different builds",
			len(e.Hashes), len(order))
	}
	r.known = make(map[Hash]string, len(e.Hashes))
	r.named = make(map[string]Module, len(order))
	for i, h := range e.Hashes {
		name := ""
		if order != nil {
			name = order[i]
			r.named[name] = Module{Path: name, Size: -1, Hash: h}
		}
		r.known[h] = name
	}
	return r, nil
}

// VerifyOptions tell [Reference.Verify] how to go through a tree.
type VerifyOptions struct {
	Jobs int // modules that are read at once; 0 means twice the number of processors
	// Root is the root directory of the system that the modules belong to: symbolic links
	// lead where they would lead after chroot(2). Empty means the machine's own.
	Root string
	// Signed, if it is not nil, is asked about files that are not Trusted. It returns who
	// signed one, if the kernel loads it for its signature, and otherwise "". Several
	// goroutines call it.
	Signed func(file string) (signer string)
	// SignedContent is Signed for [VerifyArchive]: it gets the content of a module, size bytes
	// long and not compressed.
	SignedContent func(r io.ReaderAt, size int64) (signer string)
	// Result, if it is not nil, gets the results one at a time: in the order of the names,
	// and last of the modules that are missing.
	Result func(Result)
}

// Verify compares the modules below a directory lib/modules/KVER with a reference. It
// looks at the files that depmod would find, over symbolic links too. The error is nil
// only if all modules are Trusted or Signed. Otherwise it is [ErrRefused], with [ErrIncomplete] if
// some could not be read, or the cause of the context if that has ended. A directory
// without modules is no error in itself, but all modules of the reference are missing.
func (r *Reference) Verify(ctx context.Context, root string, opts VerifyOptions) (Summary, error) {
	switch {
	case r == nil || r.known == nil && r.root == nil:
		return nil, errNoReference
	case opts.Jobs < 0:
		return nil, fmt.Errorf("negative VerifyOptions.Jobs: %d", opts.Jobs)
	}
	in, err := module.NewRoot(opts.Root)
	if err != nil {
		return nil, err
	}
	found, err := module.FindLoadable(in, []string{root})
	if err != nil {
		return nil, err
	}
	entries := found.Entries
	summary := make(Summary)
	missing := make(map[string]bool, len(r.names))
	for _, name := range r.names {
		missing[name] = true
	}
	modules := 0
	var outcome outcome
	report := func(result Result) {
		modules++
		summary[result.Verdict]++
		outcome.add(result)
		delete(missing, result.Name)
		if opts.Result != nil {
			opts.Result(result)
		}
	}
	limits := module.SharedLimits(0)
	work := func(i int) Result {
		result := r.entry(ctx, entries[i], limits)
		if opts.Signed == nil || result.Verdict == Trusted || result.Verdict == Failed {
			return result
		}
		if signer := opts.Signed(cmp.Or(result.Target, result.Path)); signer != "" {
			result.Verdict, result.Detail = Signed, "by "+signer
		}
		return result
	}
	if err := batch.Map(ctx, len(entries), opts.Jobs, work, report); err != nil {
		return summary, err
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		report(Result{Name: name, Verdict: Missing})
	}
	return summary, outcome.err(modules)
}

// entry returns the verdict on a file.
func (r *Reference) entry(ctx context.Context, e module.Entry, limits module.Limits) Result {
	result := Result{Path: e.Path, Target: e.Real, Name: module.BaseName(e.Rel)}
	if result.Err = r.file(ctx, e, &result, limits); result.Err != nil {
		result.Verdict = Failed
	}
	return result
}

func (r *Reference) file(ctx context.Context, e module.Entry, result *Result, limits module.Limits) error {
	m, err := e.Open(ctx, limits)
	if err != nil {
		return err
	}
	defer m.Close()
	return r.judge(ctx, m, result)
}

// judge sets the verdict on an open module.
func (r *Reference) judge(ctx context.Context, m *module.File, result *Result) error {
	// The kernel removes the outermost signature, and no other.
	layer, err := module.Check(m, m.Size, module.TypePKCS7, module.TypeMerkle)
	signed := err == nil
	if format, ok := errors.AsType[*module.FormatError](err); ok {
		result.Verdict, result.Detail = Malformed, format.Error()
		return nil
	} else if err != nil && err != module.ErrNotSigned {
		return err
	}
	size := m.Size
	if signed {
		size = layer.Offset
	}
	payload := func() io.Reader { return module.Reader(ctx, m.Payload(size)) }
	if r.root != nil {
		if !signed || layer.Info.IDType != module.TypeMerkle {
			result.Verdict = Unproven
			return nil
		}
		return r.proven(m, layer, payload(), result)
	}
	if r.kernel && signed && layer.Info.IDType == module.TypeMerkle {
		result.Verdict, result.Detail = OtherKernel, "it carries a proof, but this kernel has a list"
		return nil
	}
	hash, _, err := Sum(payload())
	if err != nil {
		return err
	}
	if name, ok := r.known[hash]; ok {
		result.Verdict = Trusted
		if name != "" && name != result.Name {
			result.Detail = "it is " + name
		}
		return nil
	}
	return r.explain(m, size, result)
}

// proven sets the verdict on a module with a proof.
func (r *Reference) proven(m *module.File, layer module.Layer, payload io.Reader, result *Result) error {
	sig, err := layer.Signature(m)
	if err != nil {
		return err
	}
	proof, err := ParseProof(sig)
	if err != nil {
		result.Verdict, result.Detail = OtherKernel, err.Error()
		return nil
	}
	leaf := NewLeaf(proof.Position)
	if _, err := module.Copy(leaf, payload); err != nil {
		return err
	}
	switch err := r.root.Check(Hash(leaf.Sum(nil)), proof); {
	case errors.Is(err, ErrLevels):
		result.Verdict, result.Detail = OtherKernel, err.Error()
	case err != nil:
		result.Verdict, result.Detail = Changed, "or its proof is that of another module or kernel"
	default:
		result.Verdict = Trusted
	}
	return nil
}

// explain sets the verdict on a module with an unknown hash.
func (r *Reference) explain(m *module.File, size int64, result *Result) error {
	was, named := r.named[result.Name]
	result.Verdict = Extra
	if named {
		result.Verdict = Changed
	}
	file, err := elfstrip.Parse(m.Payload(size), size)
	if err != nil {
		return nil // no module: there is nothing more to tell
	}
	if !file.HasDebugInfo() {
		if named && size < was.Size {
			result.Verdict, result.Detail = Stripped, fmt.Sprintf("%d bytes instead of %d", size, was.Size)
		}
		return nil
	}
	image, err := file.Strip(nil)
	if err != nil {
		return nil
	}
	h := sha256.New()
	if _, err := module.Copy(h, image.Reader()); err != nil {
		return err
	}
	if _, ok := r.known[Hash(h.Sum(nil))]; ok {
		result.Verdict = Unstripped
	}
	return nil
}
