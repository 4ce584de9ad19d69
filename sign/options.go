package sign

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/sign/policy"
)

// ReadOptions are those of work that reads modules and writes nothing.
type ReadOptions struct {
	Jobs    int   // modules read at once; 0: twice the number of processors
	MaxSize int64 // limit for a decompressed module in bytes; 0: 2 GiB
	Report  Report
	// Policy, if it is not nil, says which modules may be read for their digests: the others
	// fail.
	Policy *policy.Policy
}

// WriteOptions are those of all work that writes modules. At most one module for 16 file
// descriptors of the process is processed at once, whatever Jobs says.
type WriteOptions struct {
	Jobs       int          // modules processed at once; 0: twice the number of processors, and more for batches
	MaxSize    int64        // limit for a decompressed module in bytes; 0: 2 GiB
	Level      int          // compression level; 0: the kernel's choice
	Mode       *fs.FileMode // mode of written files; nil: the old file's
	NewMTime   bool         // set the modification time to now instead of keeping it
	NewOwner   bool         // written files belong to the caller, without setuid and setgid bits
	KeepXattrs bool         // keep security.ima and security.evm too, which attest the old bytes
	Sync       Sync
	// Extend is for copies that were just made and can be made again: a plain module
	// without a signature stays the same file and grows, which takes a fraction of the
	// time of a new file. Its attributes stay. A kill at that moment leaves a module
	// with a signature that no kernel accepts; the next run replaces it. A Mode,
	// SyncFile, or a hard link outside of the tree still takes a new file.
	Extend bool
	DryRun bool // read everything, write nothing
	Report Report
}

// DebugOptions say what happens to debug information. Modules that are Skipped keep it.
type DebugOptions struct {
	StripDebug bool // remove debug information, as strip --strip-debug does
	// SplitDebug, if it is not empty, moves debug information into files below this
	// directory: SplitDebug/lib/modules/KVER/kernel/.../dummy.ko.debug, with a link from
	// SplitDebug/.build-id. The module gets a .gnu_debuglink. A debugger finds the file
	// if SplitDebug is /usr/lib/debug.
	SplitDebug string
	// StripProgram is run as strip --strip-debug on modules of a shape that this package
	// cannot strip. If it is empty, they fail.
	StripProgram string
}

// Options are those of [Tree.Sign].
type Options struct {
	WriteOptions
	DebugOptions // not with Detached
	Existing     Existing
	Detached     bool // write NAME.ko.p7s beside each module and leave the module as it is
	// Policy, if it is not nil, says which modules may be signed. Sign reads all modules
	// first, and signs none if the policy refuses one. It asks again about each module when
	// it signs it.
	Policy *policy.Policy
}

// AttachOptions are those of [Tree.Attach].
type AttachOptions struct {
	WriteOptions
	Existing Existing
	Detached bool // write NAME.ko.p7s beside each module and leave the module as it is
}

// ProveOptions are those of [Tree.Prove].
type ProveOptions struct {
	WriteOptions
	DebugOptions
}

// StripOptions are those of [Tree.StripDebug].
type StripOptions struct {
	WriteOptions
	DebugOptions
}

// Existing says what happens to a module that is already signed.
type Existing uint8

const (
	Replace Existing = iota // all its signatures are removed
	Skip                    // the module stays as it is
	Refuse                  // the module fails with ErrSigned
	// Add keeps the signers of the module's signature, and the signature gets the new ones
	// beside them: as JoinSigners would make it. A signer that is there already is replaced.
	// Add checks no signature, so that one that does not match the module stays, and the
	// kernel then rejects the module. A module with a signature that cannot have another
	// signer fails: one that the kernel cannot parse or that no module may have, one that
	// names its signers in the other way, one on top of another one, or one of another
	// kind, such as a proof. Add does not go with Detached and DebugOptions.
	Add
)

var existingNames = []string{"replace", "skip", "refuse", "add"}

// String returns replace, skip, refuse or add.
func (e Existing) String() string { return nameOf(e, existingNames) }

// ParseExisting returns the Existing of a name: replace, skip, refuse or add.
func ParseExisting(s string) (Existing, error) { return parse[Existing](s, existingNames) }

// Sync says when written files are flushed to disk.
type Sync uint8

const (
	SyncTree Sync = iota // all at the end of the run, with one syncfs(2) per file system
	SyncNone             // when the system chooses
	SyncFile             // each file before it gets its name
)

var syncNames = []string{"tree", "none", "file"}

// String returns tree, none or file.
func (s Sync) String() string { return nameOf(s, syncNames) }

// ParseSync returns the Sync of a name: tree, none or file.
func ParseSync(s string) (Sync, error) { return parse[Sync](s, syncNames) }

// Format is how a module is compressed: None, Gzip, XZ or Zstd.
type Format = compress.Format

// The formats of modules. None is the zero value.
const (
	None = compress.None
	Gzip = compress.Gzip
	XZ   = compress.XZ
	Zstd = compress.Zstd
)

var (
	formatNames     = []string{None.String(), Gzip.String(), XZ.String(), Zstd.String()}
	formatFileNames = []string{"none", "gz", "xz", "zst"}
)

// ParseFormat returns the Format of a name: none, gz, xz or zst as in file names, or gzip
// or zstd.
func ParseFormat(s string) (Format, error) {
	if i := slices.Index(formatNames, s); i >= 0 {
		return Format(i), nil
	}
	return parse[Format](s, formatFileNames)
}

// parse finds the value of a name.
func parse[T ~uint8](s string, names []string) (T, error) {
	for i, name := range names {
		if s == name {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("invalid value %q: want %s", s, enumerate(names, "or"))
}

// enumerate joins items for a sentence: a, b and c, say.
func enumerate(items []string, conjunction string) string {
	last := len(items) - 1
	if last < 1 {
		return strings.Join(items, "")
	}
	return strings.Join(items[:last], ", ") + " " + conjunction + " " + items[last]
}

func isNamed[T ~uint8](value T, names []string) bool { return int(value) < len(names) }

// nameOf is the name of a value, which may have none.
func nameOf[T ~uint8](value T, names []string) string {
	if isNamed(value, names) {
		return names[value]
	}
	return fmt.Sprintf("%s(%d)", reflect.TypeFor[T]().Name(), uint8(value))
}

func (o *ReadOptions) check() error {
	switch {
	case o.Jobs < 0:
		return fmt.Errorf("negative Options.Jobs: %d", o.Jobs)
	case o.MaxSize < 0:
		return fmt.Errorf("negative Options.MaxSize: %d", o.MaxSize)
	}
	return nil
}

func (o *WriteOptions) check() error {
	if !isNamed(o.Sync, syncNames) {
		return fmt.Errorf("unknown value of Options.Sync: %v", o.Sync)
	}
	return (&ReadOptions{Jobs: o.Jobs, MaxSize: o.MaxSize}).check()
}

// check returns an error for a value that means nothing, and for Add where it cannot be.
func (e Existing) check(detached bool, debug DebugOptions) error {
	switch {
	case !isNamed(e, existingNames):
		return fmt.Errorf("unknown value of Options.Existing: %v", e)
	case e == Add && detached:
		return errors.New("detached signatures leave the modules as they are: nothing is added to the modules' own")
	case e == Add && (debug.StripDebug || debug.SplitDebug != ""):
		return errors.New("old signatures do not match a module that is stripped: none can be added to them")
	}
	return nil
}

func (s *Source) check() error {
	switch {
	case !isNamed(s.Compress, formatNames):
		return fmt.Errorf("unknown value of Source.Compress: %v", s.Compress)
	case s.Names != nil && len(s.Roots) != 1:
		return fmt.Errorf("modules are named below one directory, and %d are given", len(s.Roots))
	case s.Copy && (s.Names == nil || s.Output == ""):
		return errors.New("Source.Copy needs Names and an Output")
	case s.Below != "" && !filepath.IsLocal(s.Below):
		return fmt.Errorf("Source.Below is not a path below a directory: %q", s.Below)
	}
	return nil
}

// check refuses to sign with nothing, or with two things. A Signature that is there
// and empty is appended, as scripts/sign-file does.
func (o *FileOptions) check(signer *Signer, dst string) error {
	switch {
	case o.Trailer && dst == "":
		return errors.New("no file is given for what FileOptions.Trailer writes")
	case signer != nil && o.Signature != nil:
		return errors.New("both a Signer and a signature are given")
	case signer == nil && o.Signature != nil && (o.Save || o.Detached):
		return errors.New("a given signature is appended, and not written to a file")
	case signer == nil && o.Signature != nil:
		return nil
	}
	return signer.check()
}
