package main

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/keygen/keyscan"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/verify"
	"github.com/modsign/modsign/verify/explain"
)

// The objects of --json. docs/json.md describes them; they may get new fields,
// and lose none.

type jsonError struct {
	Type  string `json:"message_type"` // error
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
	Code  int    `json:"exit_code"`
}

type jsonSigned struct {
	Type      string  `json:"message_type"` // module
	Path      string  `json:"path"`
	Action    string  `json:"action"`
	Output    string  `json:"output,omitempty"`
	Format    string  `json:"compression"`
	Payload   int64   `json:"payload_size"`
	Signature int     `json:"signature_size"`
	Removed   int     `json:"signatures_removed"`
	Kept      int     `json:"signers_kept,omitempty"`
	LinkOf    string  `json:"link_of,omitempty"`
	Debug     int64   `json:"debug_size,omitempty"`
	DebugFile string  `json:"debug_file,omitempty"`
	ByProgram bool    `json:"by_program,omitempty"`
	Seconds   float64 `json:"seconds"`
	Error     string  `json:"error,omitempty"`
}

func newJSONSigned(r sign.Result) jsonSigned {
	o := jsonSigned{
		Type: "module", Path: r.Path, Action: string(r.Action), Output: r.Output, Format: r.Format.String(),
		Payload: r.Payload, Signature: r.Signature, Removed: r.Removed, Kept: r.Kept, LinkOf: r.LinkOf,
		Seconds: r.Duration.Seconds(), Debug: r.Debug, DebugFile: r.DebugFile, ByProgram: r.ByProgram,
	}
	if r.Err != nil {
		o.Error = r.Err.Error()
	}
	return o
}

type jsonSignSummary struct {
	Type       string   `json:"message_type"` // summary
	Modules    int      `json:"modules"`
	Signed     int      `json:"signed"`
	Stripped   int      `json:"stripped"`
	Skipped    int      `json:"skipped"`
	Failed     int      `json:"failed"`
	Replaced   int      `json:"replaced"`
	Stacked    int      `json:"stacked"`
	Added      int      `json:"added,omitempty"`
	Elsewhere  int      `json:"names_elsewhere"`
	Debug      int      `json:"debug_modules,omitempty"`
	DebugBytes int64    `json:"debug_size,omitempty"`
	DebugFiles int      `json:"debug_files,omitempty"`
	ByProgram  int      `json:"by_program,omitempty"`
	Bytes      int64    `json:"payload_size"`
	Seconds    float64  `json:"seconds"`
	DryRun     bool     `json:"dry_run"`
	Cert       string   `json:"certificate,omitempty"`
	Links      int      `json:"symbolic_links,omitempty"`
	Relinked   int      `json:"symbolic_links_renamed,omitempty"`
	Behind     []string `json:"modules_behind_links,omitempty"`
	Irregular  []string `json:"not_regular,omitempty"`
	Notes      []string `json:"notes,omitempty"`
}

type jsonVerified struct {
	Type      string              `json:"message_type"` // module
	Path      string              `json:"path"`
	Package   string              `json:"package,omitempty"`
	Target    string              `json:"target,omitempty"`
	Verdict   string              `json:"verdict"`
	Signer    string              `json:"signer,omitempty"`
	Source    string              `json:"trusted_by,omitempty"`
	ByHash    bool                `json:"by_hash,omitempty"`
	Layers    int                 `json:"signature_count"`
	Signers   []jsonSignerVerdict `json:"signers,omitempty"`
	Errno     string              `json:"errno,omitempty"`
	Cause     string              `json:"cause,omitempty"`
	Tolerated bool                `json:"tolerated_without_enforcement,omitempty"`
	Dmesg     []string            `json:"dmesg,omitempty"`
	Warnings  []string            `json:"warnings,omitempty"`
	Error     string              `json:"error,omitempty"`
}

func newJSONVerified(r verify.Result) jsonVerified {
	o := jsonVerified{
		Type: "module", Path: r.Path, Package: r.Archive, Target: r.Target, Verdict: string(r.Verdict),
		Signer: r.Signer, Source: r.Source,
		ByHash: r.ByHash, Layers: r.Layers,
		Errno: errnoName(r.Errno), Cause: errnoName(r.Cause), Tolerated: r.Tolerated, Dmesg: r.Dmesg, Warnings: r.Warnings,
	}
	for _, s := range r.Signers {
		signer := jsonSignerVerdict{
			jsonSigner: newJSONSigner(s.Signer), Verdict: string(s.Verdict), Certificate: s.Certificate, Source: s.Source,
		}
		if s.Err != nil {
			signer.Error = s.Err.Error()
		}
		o.Signers = append(o.Signers, signer)
	}
	if r.Err != nil {
		o.Error = r.Err.Error()
	}
	return o
}

// jsonSignerVerdict is a signer as inspect shows it, with the verdict on it.
type jsonSignerVerdict struct {
	jsonSigner
	Verdict     string `json:"verdict"`
	Certificate string `json:"certificate,omitempty"`
	Source      string `json:"trusted_by,omitempty"`
	Error       string `json:"error,omitempty"`
}

type jsonVerifySummary struct {
	Type         string                 `json:"message_type"` // summary
	Modules      int                    `json:"modules"`
	Linked       int                    `json:"modules_over_links,omitempty"`
	Skipped      []string               `json:"links_not_followed,omitempty"`
	Packages     []string               `json:"packages,omitempty"`
	Images       []string               `json:"kernel_images,omitempty"`         // in the packages, that judged
	Outside      []string               `json:"links_out_of_packages,omitempty"` // below lib/modules
	Inner        []string               `json:"not_looked_into,omitempty"`       // initramfs images in packages
	Verdicts     map[verify.Verdict]int `json:"verdicts"`
	Kernel       string                 `json:"kernel"` // whose rules decided
	Certificates []string               `json:"certificates"`
	Hashed       bool                   `json:"hashes,omitempty"`
	HashesOnly   bool                   `json:"hashes_only,omitempty"`
	Seconds      float64                `json:"seconds"`
	Warnings     []string               `json:"warnings,omitempty"`
	Keys         []jsonKey              `json:"keys,omitempty"`
}

type jsonHashed struct {
	Type    string `json:"message_type"` // module
	Path    string `json:"path,omitempty"`
	Package string `json:"package,omitempty"`
	Target  string `json:"target,omitempty"`
	Name    string `json:"name"`
	Verdict string `json:"verdict"`
	Detail  string `json:"detail,omitempty"`
	Error   string `json:"error,omitempty"`
}

func newJSONHashed(r hashlist.Result) jsonHashed {
	o := jsonHashed{
		Type:    "module",
		Path:    r.Path,
		Package: r.Archive,
		Target:  r.Target,
		Name:    r.Name,
		Verdict: string(r.Verdict),
		Detail:  r.Detail,
	}
	if r.Err != nil {
		o.Error = r.Err.Error()
	}
	return o
}

type jsonHashlistSummary struct {
	Type     string           `json:"message_type"` // summary
	Modules  int              `json:"modules"`
	Verdicts hashlist.Summary `json:"verdicts"`
	Seconds  float64          `json:"seconds"`
}

type jsonInspected struct {
	Type     string      `json:"message_type"` // module
	Path     string      `json:"path"`
	Package  string      `json:"package,omitempty"`
	Target   string      `json:"target,omitempty"`
	Format   string      `json:"compression"`
	FileSize int64       `json:"file_size"`
	Size     int64       `json:"size"`
	Payload  int64       `json:"payload_size"`
	Layers   []jsonLayer `json:"signatures"`
	Warnings []string    `json:"warnings,omitempty"`
	Error    string      `json:"error,omitempty"`
}

type jsonLayer struct {
	Kind    string       `json:"type"`
	Offset  int64        `json:"offset"`
	Size    int          `json:"size"`
	Signers []jsonSigner `json:"signers,omitempty"`
	Problem string       `json:"problem,omitempty"`
	Notes   []string     `json:"notes,omitempty"`
}

type jsonSigner struct {
	Name       string `json:"name,omitempty"`
	Issuer     string `json:"issuer,omitempty"`
	Serial     string `json:"serial,omitempty"`
	KeyID      string `json:"key_id,omitempty"`
	Hash       string `json:"hash"`
	Algorithm  string `json:"algorithm"`
	Size       int    `json:"size"`
	Attributes bool   `json:"signed_attributes,omitempty"`
}

func newJSONSigner(s verify.Signer) jsonSigner {
	return jsonSigner{s.Name, s.Issuer, s.Serial, s.KeyID, s.Hash, s.Algorithm, s.Size, s.HasAttribute}
}

func newJSONInspected(d *verify.Description) jsonInspected {
	o := jsonInspected{
		Type: "module", Path: d.Path, Package: d.Archive, Target: d.Target, Format: d.Format,
		FileSize: d.FileSize, Size: d.Size, Payload: d.Payload,
		Layers: []jsonLayer{}, Warnings: d.Warnings,
	}
	for _, l := range d.Layers {
		o.Layers = append(o.Layers, newJSONLayer(l))
	}
	return o
}

func newJSONLayer(l verify.Layer) jsonLayer {
	layer := jsonLayer{Kind: l.Type, Offset: l.Offset, Size: l.Size, Problem: l.Problem, Notes: l.Notes}
	for _, s := range l.Signers {
		layer.Signers = append(layer.Signers, newJSONSigner(s))
	}
	return layer
}

type jsonExplained struct {
	Type         string      `json:"message_type"` // module
	Path         string      `json:"path"`
	Package      string      `json:"package,omitempty"`
	Target       string      `json:"target,omitempty"`
	Verdict      string      `json:"verdict"`
	Kernel       string      `json:"kernel,omitempty"`
	Causes       []jsonCause `json:"causes"`
	Name         string      `json:"name,omitempty"`
	Format       string      `json:"compression,omitempty"`
	Vermagic     string      `json:"vermagic,omitempty"`
	Architecture string      `json:"architecture,omitempty"`
	BuildID      string      `json:"build_id,omitempty"`
	Debug        bool        `json:"debug_info,omitempty"`
	Signature    string      `json:"signature_verdict,omitempty"`
	Signer       string      `json:"signer,omitempty"`
	Source       string      `json:"trusted_by,omitempty"`
	Layers       []jsonLayer `json:"signatures"`
	Outside      *jsonLayer  `json:"signature_outside,omitempty"`
	Notes        []string    `json:"notes,omitempty"`
	Unchecked    []string    `json:"unchecked,omitempty"`
	Error        string      `json:"error,omitempty"`
}

type jsonCause struct {
	ID       explain.ID     `json:"id"`
	Effect   explain.Effect `json:"effect"`
	Errno    string         `json:"errno,omitempty"`
	Cause    string         `json:"cause,omitempty"`
	Dmesg    []string       `json:"dmesg,omitempty"`
	Reason   string         `json:"reason"`
	Evidence []string       `json:"evidence,omitempty"`
	Command  string         `json:"command,omitempty"`
	Then     string         `json:"then,omitempty"`
}

func newJSONExplained(k *explain.Kernel, r *explain.Report) jsonExplained {
	o := jsonExplained{
		Type: "module", Path: r.Path, Package: r.Archive, Target: r.Target, Verdict: string(r.Verdict), Causes: []jsonCause{},
		Name: r.Name, Format: r.Compression, Vermagic: r.Vermagic, Architecture: r.Architecture, BuildID: r.BuildID,
		Debug: r.Debug, Signature: string(r.Signed.Verdict), Signer: r.Signed.Signer, Source: r.Signed.Source,
		Layers: []jsonLayer{}, Notes: r.Notes, Unchecked: r.Unchecked,
	}
	if k != nil { // which it is if a package has none for this module
		o.Kernel = k.Name
	}
	for _, c := range r.Causes {
		o.Causes = append(o.Causes, jsonCause{
			ID: c.ID, Effect: c.Effect, Errno: errnoName(c.Errno), Cause: errnoName(c.Inner), Dmesg: c.Log, Reason: c.Reason,
			Evidence: c.Evidence, Command: c.Mend.Command, Then: c.Mend.Then,
		})
	}
	if r.Signature != nil {
		o.Layers = newJSONInspected(r.Signature).Layers
	}
	if r.Outside != nil {
		layer := newJSONLayer(*r.Outside)
		o.Outside = &layer
	}
	if r.Err != nil {
		o.Error = r.Err.Error()
	}
	return o
}

type jsonExplainSummary struct {
	Type         string   `json:"message_type"` // summary
	Modules      int      `json:"modules"`
	Refused      int      `json:"refused"`
	Unreadable   int      `json:"unreadable"`
	Kernel       string   `json:"kernel"`
	Release      string   `json:"release,omitempty"`
	Vermagic     string   `json:"vermagic,omitempty"`
	Rules        string   `json:"rules"`
	Enforcement  string   `json:"enforcement"`
	Evidence     []string `json:"enforcement_evidence,omitempty"`
	Decompresses string   `json:"decompresses,omitempty"`
	Config       string   `json:"config,omitempty"`
	Certificates []string `json:"certificates"`
	Notes        []string `json:"notes,omitempty"`
}

func newJSONExplainSummary(k *explain.Kernel, modules, refused, unreadable int) jsonExplainSummary {
	return jsonExplainSummary{
		Type: "summary", Modules: modules, Refused: refused, Unreadable: unreadable, Kernel: k.Name, Release: k.Release,
		Vermagic: k.Vermagic, Rules: k.Keys.Kernel(), Enforcement: string(k.Policy.Enforcement), Evidence: k.Policy.Evidence,
		Decompresses: k.Compression, Config: k.ConfigFile, Certificates: k.Keys.Names(), Notes: k.Notes,
	}
}

// errnoName is the name that a kernel developer knows an error by.
func errnoName(errno syscall.Errno) string {
	if errno == 0 {
		return ""
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", int(errno))
}

type jsonFoundKey struct {
	Type        string   `json:"message_type"` // key
	Path        string   `json:"path"`
	Archive     string   `json:"archive,omitempty"`
	Line        int      `json:"line,omitempty"`
	Offset      int64    `json:"offset"`
	Form        string   `json:"form"`
	Algorithm   string   `json:"algorithm,omitempty"`
	KeyID       string   `json:"key_id,omitempty"`
	Encrypted   bool     `json:"encrypted"`
	Damaged     bool     `json:"damaged,omitempty"`
	Mode        string   `json:"mode"`
	Readers     string   `json:"readers,omitempty"`
	Origin      string   `json:"origin,omitempty"`
	Harmless    string   `json:"harmless,omitempty"`
	Certificate string   `json:"certificate,omitempty"`
	CertPath    string   `json:"certificate_path,omitempty"`
	Kernels     []string `json:"kernels,omitempty"`
}

func newJSONFoundKey(f *keyscan.Finding) jsonFoundKey {
	return jsonFoundKey{
		Type: "key", Path: f.Path, Archive: f.Archive, Line: f.Line, Offset: f.Offset, Form: f.Form, Algorithm: f.Algorithm,
		KeyID: f.KeyID, Encrypted: f.Encrypted, Damaged: f.Damaged,
		Mode: fmt.Sprintf("%04o", f.Mode.Perm()), Readers: f.Readers(),
		Origin: f.Origin, Harmless: f.Harmless, Certificate: f.Certificate,
		CertPath: f.CertificatePath, Kernels: f.Kernels,
	}
}

type jsonScanFailure struct {
	Type    string `json:"message_type"` // failure
	Path    string `json:"path"`
	Archive string `json:"archive,omitempty"`
	Error   string `json:"error"`
}

type jsonScanSummary struct {
	Type         string   `json:"message_type"` // summary
	Files        int      `json:"files"`
	Bytes        int64    `json:"size"`
	Keys         int      `json:"keys"`
	Trusted      int      `json:"trusted_keys"`
	Omitted      int      `json:"keys_not_listed,omitempty"`
	Failed       int      `json:"failed"`
	Modules      int      `json:"modules_not_decompressed,omitempty"`
	Links        int      `json:"links_not_followed,omitempty"`
	Special      int      `json:"not_regular,omitempty"`
	Excluded     int      `json:"excluded,omitempty"`
	Unused       []string `json:"unused_patterns,omitempty"`
	Systems      []string `json:"made_by_kernel,omitempty"`
	Certificates int      `json:"certificates"`
	Seconds      float64  `json:"seconds"`
}

func newJSONScanSummary(r *keyscan.Report, took time.Duration) jsonScanSummary {
	return jsonScanSummary{
		Type: "summary", Files: r.Files, Bytes: r.Bytes, Keys: r.Leaks(), Trusted: trustedKeys(r), Omitted: r.Omitted,
		Failed: len(r.Failures) + r.MoreFailures, Modules: r.Modules, Links: r.Links, Special: r.Special,
		Excluded: r.Excluded, Unused: r.Unused, Systems: r.Systems, Certificates: r.Certificates, Seconds: took.Seconds(),
	}
}
