// Package policy says which modules may be signed with a key. A policy is a file that
// people write, and review, as lines of a keyword and a value:
//
//	policy 1
//	path **/kernel/drivers/net/**
//	not-path **/staging/**
//	vermagic 6.12.0-4-* SMP *
//	license GPL
//	list kernel.hashes
//	expires 2027-06-30
//
// [Parse] reads one. Set it as the Policy of sign.Options, or of sign.SignManifestOptions.
// Programs that sign on their own call [Policy.CheckRun] once, and [Policy.Check] for each
// module. What a policy does not say anything about is allowed, but a policy has to say
// which modules it is for: by paths, names or a list of hashes.
//
// docs/policy.md describes the file byte for byte.
package policy

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/modsign/modsign/internal/cms"
)

// Policy is a policy that was read. Several goroutines may use it at once.
type Policy struct {
	name    string
	rules   map[string][]rule // by keyword
	modules int               // that may be signed in a run, or 0
	expires time.Time         // or the zero time
	list    string            // the file with the hash list
	listSum string            // its SHA-256, in hexadecimal; may be empty
	hashes  map[[sha256.Size]byte]bool
}

// A rule is a line of a policy.
type rule struct {
	line           int
	keyword, value string
	match          func(string) bool // for keywords that may stand several times
}

// tags are the keywords about tags of the same name. The tag name is no such keyword, as
// the file of a module tells its name too.
var tags = []string{"vermagic", "license"}

// A Module is what is known of a module that is to be signed.
type Module struct {
	Path   string   // in its tree, with slashes, without the suffix of a compression
	Tags   []string // of its section .modinfo, such as "license=GPL"; nil if they are not known
	SHA256 []byte   // of the payload; nil if it is not known
}

// A RefusedError says which rule of a policy refuses a module, or a whole run.
type RefusedError struct {
	Policy  string // the name of its file
	Line    int    // of the rule: the first one, if several have the keyword
	Keyword string
	Reason  string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("refused by %s:%d: %s: %s", e.Policy, e.Line, e.Keyword, e.Reason)
}

// Name returns the name of the policy's file.
func (p *Policy) Name() string { return p.name }

func (p *Policy) has(keyword string) bool { return len(p.rules[keyword]) > 0 }

// refusal is the error of the first rule with a keyword.
func (p *Policy) refusal(keyword, format string, args ...any) error {
	return p.rules[keyword][0].refusal(p, format, args...)
}

func (r *rule) refusal(p *Policy, format string, args ...any) error {
	return &RefusedError{Policy: p.name, Line: r.line, Keyword: r.keyword, Reason: fmt.Sprintf(format, args...)}
}

// NeedsTags reports whether Check looks at the tags of a module.
func (p *Policy) NeedsTags() bool {
	return p.has("vermagic") || p.has("license") || p.has("name") || p.has("not-name")
}

// NeedsSHA256 reports whether Check needs the SHA-256 of a module.
func (p *Policy) NeedsSHA256() bool { return p.list != "" }

// CheckRun judges a run: when it is, the hash of its signatures, and how many modules it
// signs. Its error is a [*RefusedError].
func (p *Policy) CheckRun(now time.Time, hash crypto.Hash, modules int) error {
	if !p.expires.IsZero() && !now.Before(p.expires) {
		return p.refusal("expires", "the policy has expired; it is %s now", now.UTC().Format(time.RFC3339))
	}
	if err := p.oneOf("hash", "the hash", cms.HashName(hash)); err != nil {
		return err
	}
	if p.modules > 0 && modules > p.modules {
		return p.refusal("max-modules", "%d modules are to be signed, and %d may be", modules, p.modules)
	}
	return nil
}

// CheckManifest returns a [*RefusedError] if the policy asks what a manifest of digests with
// this hash does not tell about its modules.
func (p *Policy) CheckManifest(hash crypto.Hash) error {
	for _, tag := range tags {
		if p.has(tag) {
			return p.refusal(tag, "a manifest does not tell it")
		}
	}
	if p.NeedsSHA256() && hash != crypto.SHA256 {
		return p.refusal("list", "it has SHA-256, and the digests of the manifest are %s", cms.HashName(hash))
	}
	return nil
}

// Check judges a module. Its error is a [*RefusedError] about the first rule that refuses
// the module.
func (p *Policy) Check(m *Module) error {
	if err := p.oneOf("path", "the path", m.Path); err != nil {
		return err
	}
	if err := p.noneOf("not-path", "the path", m.Path); err != nil {
		return err
	}
	for _, name := range m.names() {
		if err := p.oneOf("name", "the name", name); err != nil {
			return err
		}
		if err := p.noneOf("not-name", "the name", name); err != nil {
			return err
		}
	}
	for _, tag := range tags {
		if err := p.checkTag(m, tag); err != nil {
			return err
		}
	}
	return p.checkList(m)
}

// oneOf refuses a value that fits none of the rules with a keyword, if there are any.
func (p *Policy) oneOf(keyword, what, value string) error {
	rules := p.rules[keyword]
	if len(rules) == 0 || slices.ContainsFunc(rules, func(r rule) bool { return r.match(value) }) {
		return nil
	}
	want := fmt.Sprintf("not %q", rules[0].value)
	if len(rules) > 1 {
		want = fmt.Sprintf("in none of %d lines", len(rules))
	}
	return p.refusal(keyword, "%s %q is %s", what, value, want)
}

// noneOf refuses a value that fits a rule with a keyword.
func (p *Policy) noneOf(keyword, what, value string) error {
	for _, r := range p.rules[keyword] {
		if r.match(value) {
			return r.refusal(p, "%s %q fits %q", what, value, r.value)
		}
	}
	return nil
}

// names are the names of the module: by its file, and as it calls itself.
func (m *Module) names() []string {
	return append([]string{moduleName(strings.TrimSuffix(path.Base(m.Path), ".ko"))}, m.values("name")...)
}

// moduleName is a name as the kernel has it, for which the dash is an underscore.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// values are those of a tag. The kernel looks at the first one alone; other readers do not.
func (m *Module) values(tag string) []string {
	var values []string
	for _, t := range m.Tags {
		if value, ok := strings.CutPrefix(t, tag+"="); ok {
			values = append(values, strings.TrimRight(value, " ")) // vermagic ends with one
		}
	}
	return values
}

// checkTag checks every value of a tag.
func (p *Policy) checkTag(m *Module, tag string) error {
	if !p.has(tag) {
		return nil
	}
	values := m.values(tag)
	switch {
	case m.Tags == nil:
		return p.refusal(tag, "the module's %s is not known", tag)
	case len(values) == 0:
		return p.refusal(tag, "the module has no %s", tag)
	}
	for _, value := range values {
		if err := p.oneOf(tag, "the "+tag, value); err != nil {
			return err
		}
	}
	return nil
}

func (p *Policy) checkList(m *Module) error {
	switch {
	case p.list == "":
		return nil
	case p.hashes == nil:
		return p.refusal("list", "%s was not read", p.list)
	case len(m.SHA256) != sha256.Size:
		return p.refusal("list", "the module's SHA-256 is not known")
	case !p.hashes[[sha256.Size]byte(m.SHA256)]:
		return p.refusal("list", "%s does not have the module's SHA-256, %x", p.list, m.SHA256)
	}
	return nil
}
