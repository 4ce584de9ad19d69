package sign

import (
	"fmt"
	"slices"
	"time"

	"github.com/modsign/modsign/internal/module"
)

// Report is how a run reports what it does. The functions may be nil, and are called
// one at a time.
type Report struct {
	Progress func(done, total Count) // now and then
	Result   func(Result)            // once for each module, in the order of the input
}

// Count measures work.
type Count struct {
	Modules int
	Bytes   int64 // as the files lie on disk
}

// Action is what was done with a module.
type Action string

const (
	Signed   Action = "signed"
	Stripped Action = "stripped" // signatures, or debug information as well, were removed
	Digested Action = "digested" // read for its digest alone
	Skipped  Action = "skipped"  // unchanged, in place or as a copy in the output directory
	Failed   Action = "failed"
)

var actions = []Action{Signed, Stripped, Digested, Skipped, Failed}

// String returns the name of the action.
func (a Action) String() string { return string(a) }

// ParseAction returns the Action of a name: signed, stripped, digested, skipped or failed.
func ParseAction(s string) (Action, error) {
	if i := slices.Index(actions, Action(s)); i >= 0 {
		return actions[i], nil
	}
	names := make([]string, len(actions))
	for i, a := range actions {
		names[i] = string(a)
	}
	return "", fmt.Errorf("invalid value %q: want %s", s, enumerate(names, "or"))
}

// Result is the outcome for one module.
type Result struct {
	Path      string // as it was found
	Name      string // its path in the tree, without a compression suffix
	Output    string // the file that was written; empty if none was
	Action    Action
	Format    Format // as it was found
	Removed   int    // number of signatures that were removed
	Kept      int    // number of signers of the old signature that the new one has beside its own: see Add
	Payload   int64  // bytes that are signed
	Digest    []byte // of these bytes, by the hash of the first signer
	Signature int    // bytes of the CMS message, or of the proof
	Debug     int64  // bytes of debug information that were removed
	DebugFile string // the debug file that was written
	ByProgram bool   // DebugOptions.StripProgram was needed
	LinkOf    string // the Path of the name of the same file that was processed
	Duration  time.Duration
	Err       error // why it Failed
}

// Summary is the outcome of a run.
type Summary struct {
	Modules        int // all of them
	Signed         int
	Stripped       int
	Digested       int
	Skipped        int
	Failed         int
	Replaced       int   // had a signature that was removed
	Stacked        int   // had more than one
	Added          int   // have signers of an older signature beside the new ones: see Add
	Debug          int   // lost their debug information
	DebugBytes     int64 // bytes of it
	DebugFiles     int
	ByProgram      int   // needed DebugOptions.StripProgram
	Renamed        int   // have another name now, since their compression changed
	Bytes          int64 // of all payloads
	Duration       time.Duration
	DroppedXattrs  int // lost security.ima or security.evm
	OutsideLinks   int // hard links outside of the tree, which keep the old module
	RecoveredLinks int // names that a killed run had not linked yet
	Links          Links
	StaleIndexes   []string // directories whose modules.dep lists old names of modules
	Notes          []string // for people
}

// renamed reports whether a module, and not a detached signature, got another name.
func (r *Result) renamed() bool {
	return r.Output != "" && r.Output != r.Path && module.BaseName(r.Output) == module.BaseName(r.Path)
}

// count adds the result of one name to the summary.
func (s *Summary) count(r Result) {
	switch r.Action {
	case Signed:
		s.Signed++
	case Stripped:
		s.Stripped++
	case Digested:
		s.Digested++
	case Skipped:
		s.Skipped++
	case Failed:
		s.Failed++
	}
	if r.Action == Signed || r.Action == Stripped || r.Action == Digested {
		s.Bytes += r.Payload
	}
	if r.Debug != 0 {
		s.Debug++
		s.DebugBytes += r.Debug
	}
	if r.DebugFile != "" && r.LinkOf == "" {
		s.DebugFiles++
	}
	if r.ByProgram {
		s.ByProgram++
	}
	if r.renamed() {
		s.Renamed++
	}
	if r.Removed > 0 {
		s.Replaced++
	}
	if r.Removed > 1 {
		s.Stacked++
	}
	if r.Kept > 0 {
		s.Added++
	}
}
