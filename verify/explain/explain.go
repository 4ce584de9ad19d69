// Package explain says why a kernel would not load a module: the cause, the line that the
// kernel logs, the error of the system call, and the command that mends it.
//
// Open a [Kernel] with what is known about it, then call [Kernel.Module] for each module.
// The package goes the way of the kernel: finit_module(2), kernel/module/decompress.c,
// signing.c, and the checks of load_module in kernel/module/main.c, in their order. The first
// [Cause] of a [Report] is the one that the kernel meets; the others would come after it.
//
// The verdict on the signature is that of package verify. What the package cannot know it
// does not guess: [Report.Unchecked] lists it.
package explain

import (
	"syscall"

	"github.com/modsign/modsign/verify"
)

// Verdict is what the kernel would do with a module.
type Verdict string

const (
	Loads      Verdict = "loads"
	Taints     Verdict = "taints" // it loads, and the kernel is tainted: signatures are not enforced
	Refused    Verdict = "refused"
	Unreadable Verdict = "unreadable" // no verdict: the file could not be read
)

// ID names a cause. It is stable: scripts may compare it. docs/explain.md describes each.
type ID string

const (
	ModulesDisabled ID = "modules-disabled" // kernel.modules_disabled is 1

	// The file.
	CompressionRefused   ID = "compression-refused"    // a form that the decompressor of the kernel or kmod does not read
	Misnamed             ID = "misnamed"               // the name claims another compression than the content has
	SignedCompressedFile ID = "signed-compressed-file" // the signature was appended to the compressed file
	Damaged              ID = "damaged"                // the compressed file is cut off or changed

	// The signature.
	NotSigned          ID = "not-signed"           // it never had one, as far as can be seen
	SignatureLost      ID = "signature-lost"       // it had one, and a program removed it
	DataAfterSignature ID = "data-after-signature" // something was appended after it
	SignatureFormat    ID = "signature-format"     // the kernel cannot parse it
	SignatureType      ID = "signature-type"       // a kind of signature that the kernel does not take
	NotInHashList      ID = "not-in-hash-list"     // the kernel loads modules by their hashes, and has not this one's
	ForeignProof       ID = "foreign-proof"        // a Merkle proof of another build of the kernel
	UnknownKey         ID = "unknown-key"          // no keyring has the certificate
	KeyRegenerated     ID = "key-regenerated"      // a certificate of the same name is trusted, with another key
	KeyNotEnrolled     ID = "key-not-enrolled"     // the key is on this machine, and the kernel does not have it
	KeyElsewhere       ID = "key-elsewhere"        // the certificate is in a keyring that does not count for modules
	KeyDropped         ID = "key-dropped"          // the kernel is given the certificate and does not take it
	MokNotTrusted      ID = "mok-not-trusted"      // a machine owner key, and MokListTrustedRT is missing
	MokNotRead         ID = "mok-not-read"         // a machine owner key, and the kernel does not read shim's list
	NoMachineKeyring   ID = "no-machine-keyring"   // a machine owner key, and no CONFIG_INTEGRITY_MACHINE_KEYRING
	NotAuthority       ID = "not-an-authority"     // a machine owner key, and CONFIG_INTEGRITY_CA_MACHINE_KEYRING
	KeyRevoked         ID = "key-revoked"          // the kernel is told to reject the key or certificate
	HashNotInKernel    ID = "hash-not-in-kernel"   // the kernel cannot compute the hash
	HashIsModule       ID = "hash-is-module"       // the hash is in a module, which has to be loaded first
	AlgorithmMissing   ID = "algorithm-not-in-kernel"
	ModuleBlacklisted  ID = "module-blacklisted" // the hash of the module is on a blacklist

	// The signature does not match the module.
	Changed        ID = "changed-after-signing" // and nothing tells how
	Stripped       ID = "stripped-after-signing"
	Padded         ID = "padded-after-signing"         // bytes between the module and its signature
	SignedFirst    ID = "signed-without-signatures"    // the signature is of the module without its inner signatures
	SignedCompress ID = "signature-of-compressed-file" // the signature is of the file in compressed form

	// The module.
	NotModule         ID = "not-a-module"
	WrongArchitecture ID = "wrong-architecture"
	NoSymbols         ID = "no-symbols"          // a strip removed the symbol table
	OtherStruct       ID = "other-struct-module" // struct module has another size in this kernel
	NameBlacklisted   ID = "name-blacklisted"    // module_blacklist= on the command line
	Vermagic          ID = "vermagic"            // built for another kernel
	NoVermagic        ID = "no-vermagic"         // .modinfo is gone
	SymbolVersion     ID = "symbol-version"      // CONFIG_MODVERSIONS: a symbol has changed
	NoSymbolVersions  ID = "no-symbol-versions"  // CONFIG_MODVERSIONS, and the module has no versions
	Livepatch         ID = "livepatch-disabled"  // a livepatch, and the kernel has no CONFIG_LIVEPATCH
)

// Effect is what a cause leads to.
type Effect string

const (
	Refuses  Effect = "refuses"
	TaintsIt Effect = "taints" // the kernel loads the module all the same
	May      Effect = "may refuse"
)

// Cause is one reason against a module.
type Cause struct {
	ID     ID
	Effect Effect

	// Errno is the error of finit_module(2), and Inner the error inside the kernel that leads
	// to it, if that is another one. Log is what the kernel logs, without time and level.
	Errno, Inner syscall.Errno
	Log          []string

	Reason   string   // one or two sentences
	Evidence []string // what was found
	Mend     Mend
}

// Mend is what to do about a cause.
type Mend struct {
	// Command works as it stands in a shell of root. It is empty if no command helps. If several
	// modules need a new key, the command for the first makes it.
	Command string
	Then    string // what to do after it, or instead of it

	makes, enrols string // what stands around Command if that signs with a key that is to be made
}

// Report is the answer for one module.
type Report struct {
	Path    string
	Archive string // the package that has the module, of [Archive]; Path is the path inside
	Target  string // the file, if Path leads to it over symbolic links
	Name    string // the module's own name, from its content
	Verdict Verdict

	// Causes are why the kernel does not load the module, in the order in which the kernel
	// would meet them. It is empty for a module that loads.
	Causes []Cause

	// Signature is what is appended to the module, if that could be read.
	Signature   *verify.Description
	Compression string // of the file: none, gzip, xz or zstd
	// Outside is the signature that was appended to the file in compressed form.
	Outside *verify.Layer

	Signed       verify.Result // the verdict on the signature alone
	Vermagic     string
	Architecture string
	BuildID      string // hexadecimal
	Debug        bool   // it has debug information

	Notes     []string // remarks that do not change the verdict
	Unchecked []string // what could not be looked at, and why
	Err       error    // why there is no verdict
}
