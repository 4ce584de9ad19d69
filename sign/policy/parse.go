package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/modsign/modsign/internal/cms"
)

const (
	version = "1"

	maxSize    = 1 << 20 // bytes of a policy
	maxLine    = 8 << 10 // bytes of a line
	maxModules = 1 << 24 // beyond, the number is not an honest one
)

// keywords are all keywords, and what their lines do to a policy.
var keywords = map[string]struct {
	single bool // at most one line has the keyword
	parse  func(p *Policy, r *rule) error
}{
	"path":     {parse: func(_ *Policy, r *rule) error { return r.setGlob(parsePath, (*glob).matchPath) }},
	"not-path": {parse: parseNotPath},
	"name":     {parse: parseName},
	"not-name": {parse: parseName},
	"vermagic": {parse: func(_ *Policy, r *rule) error { return r.setGlob(parseText, (*glob).matchText) }},
	"license":  {parse: func(_ *Policy, r *rule) error { r.setExact(); return nil }},
	"hash":     {parse: parseHash},

	"list":        {single: true, parse: parseList},
	"list-sha256": {single: true, parse: parseListSum},
	"max-modules": {single: true, parse: parseMaxModules},
	"expires":     {single: true, parse: parseExpires},
}

// Parse reads the text of a policy. The name is that of its file, for errors, which name the
// line too: "NAME:LINE: what is wrong". Where the policy names a list ([Policy.List]), call
// [Policy.SetList] next: until then it refuses every module.
func Parse(name string, in io.Reader) (*Policy, error) {
	text, err := io.ReadAll(io.LimitReader(in, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(text) > maxSize {
		return nil, fmt.Errorf("%s: the policy has more than %d bytes", name, maxSize)
	}
	p := &Policy{name: name, rules: make(map[string][]rule)}
	n, err := p.parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", name, n, err)
	}
	return p, nil
}

// parse returns the number of the line that is wrong.
func (p *Policy) parse(text []byte) (n int, err error) {
	begun, seen := false, make(map[ruleID]int)
	for line := range bytes.Lines(text) {
		n++
		r, err := parseLine(n, line)
		switch {
		case err != nil:
			return n, err
		case r.keyword == "":
			continue
		case !begun && (r.keyword != "policy" || r.value != version):
			return n, fmt.Errorf("not a policy: its first line is %q, apart from comments", "policy "+version)
		case !begun:
			begun = true
			continue
		}
		if err := p.add(r, seen); err != nil {
			return n, err
		}
	}
	if !begun {
		return max(n, 1), fmt.Errorf("the file is empty: the first line of a policy is %q", "policy "+version)
	}
	return n, p.complete()
}

// parseLine splits a line into keyword and value. Both are empty in a line without a rule.
func parseLine(n int, line []byte) (rule, error) {
	r := rule{line: n}
	text, whole := bytes.CutSuffix(line, []byte("\n"))
	switch {
	case !utf8.Valid(text) || bytes.ContainsRune(text, utf8.RuneError):
		return r, errors.New("the line is not UTF-8")
	case bytes.ContainsFunc(text, isControl):
		return r, errors.New("the line has a control character, such as the carriage return of a DOS file")
	case len(text) > maxLine:
		return r, fmt.Errorf("the line has more than %d bytes", maxLine)
	case !whole:
		return r, errors.New("the file is cut off: its last line has no line feed")
	}
	for i, c := range text {
		if c == '#' && (i == 0 || isSpace(rune(text[i-1]))) {
			text = text[:i]
			break
		}
	}
	words := strings.TrimFunc(string(text), isSpace)
	if i := strings.IndexFunc(words, isSpace); i >= 0 {
		r.keyword, r.value = words[:i], strings.TrimFunc(words[i:], isSpace)
	} else {
		r.keyword = words
	}
	if strings.ContainsRune(r.value, '\t') {
		return r, errors.New("the value has a tab in it")
	}
	return r, nil
}

func isControl(r rune) bool {
	return unicode.IsControl(r) && r != '\t' || r == '\u2028' || r == '\u2029'
}

func isSpace(r rune) bool { return r == ' ' || r == '\t' }

// ruleID is what no two rules have in common: the keyword, with the value if others may
// have the keyword too.
type ruleID struct{ keyword, value string }

// add adds a rule, and its line to the rules that were seen.
func (p *Policy) add(r rule, seen map[ruleID]int) error {
	k, known := keywords[r.keyword]
	switch {
	case r.keyword == "policy":
		return errors.New("a second line policy: two files in one")
	case !known:
		return fmt.Errorf("unknown keyword %q: want one of %s", r.keyword, strings.Join(keywordNames(), ", "))
	case r.value == "":
		return fmt.Errorf("%s without a value", r.keyword)
	}
	id := ruleID{r.keyword, r.value}
	if k.single {
		id.value = ""
	}
	if line := seen[id]; line > 0 {
		return fmt.Errorf("%s is in line %d already", r.keyword, line)
	}
	seen[id] = r.line
	if err := k.parse(p, &r); err != nil {
		return fmt.Errorf("%s: %w", r.keyword, err)
	}
	p.rules[r.keyword] = append(p.rules[r.keyword], r)
	return nil
}

func keywordNames() []string {
	return slices.Sorted(maps.Keys(keywords))
}

// complete refuses a policy that allows everything, or nothing, by what it does not say.
func (p *Policy) complete() error {
	switch {
	case !p.has("path") && !p.has("name") && !p.has("list"):
		return errors.New(`the policy does not say which modules it allows: want path, name or list ("path **" is every path)`)
	case p.listSum != "" && p.list == "":
		return errors.New("list-sha256 without a list")
	}
	return nil
}

func (r *rule) setExact() { r.match = func(value string) bool { return value == r.value } }

func (r *rule) setGlob(parse func(string) (*glob, error), match func(*glob, string) bool) error {
	g, err := parse(r.value)
	r.match = func(value string) bool { return match(g, value) }
	return err
}

func parseNotPath(_ *Policy, r *rule) error {
	if r.value == string(anyParts) {
		return errors.New("** is every path: the policy allows nothing")
	}
	return r.setGlob(parsePath, (*glob).matchPath)
}

func parseName(_ *Policy, r *rule) error {
	g, err := parseText(moduleName(r.value))
	switch {
	case err != nil:
		return err
	case strings.Contains(r.value, "/"):
		return errors.New("a name has no slash: path is for paths")
	case strings.HasSuffix(r.value, ".ko"):
		return errors.New("the name of a module has no suffix .ko")
	case r.keyword == "not-name" && r.value == "*":
		return errors.New("* is every name: the policy allows nothing")
	}
	r.match = func(name string) bool { return g.matchText(moduleName(name)) }
	return nil
}

func parseHash(_ *Policy, r *rule) error {
	if _, err := cms.DigestByName(r.value); err != nil {
		return err
	}
	r.setExact()
	return nil
}

func parseList(p *Policy, r *rule) error {
	if path.Clean(r.value) != r.value {
		return fmt.Errorf("%q is not in its shortest form, %s", r.value, path.Clean(r.value))
	}
	p.list = r.value
	return nil
}

func parseListSum(p *Policy, r *rule) error {
	sum, err := hex.DecodeString(r.value)
	if err != nil || len(sum) != sha256.Size || hex.EncodeToString(sum) != r.value {
		return errors.New("want 64 hexadecimal digits, with small letters, as sha256sum prints them")
	}
	p.listSum = r.value
	return nil
}

func parseMaxModules(p *Policy, r *rule) (err error) {
	p.modules, err = strconv.Atoi(r.value)
	if err != nil || p.modules < 1 || p.modules > maxModules || strconv.Itoa(p.modules) != r.value {
		return fmt.Errorf("want a number of modules from 1 to %d", maxModules)
	}
	return nil
}

func parseExpires(p *Policy, r *rule) (err error) {
	for _, layout := range []string{time.DateOnly, "2006-01-02T15:04:05Z"} {
		if p.expires, err = time.Parse(layout, r.value); err == nil {
			return nil
		}
	}
	return errors.New("want a day such as 2027-06-30, or a time such as 2027-06-30T12:00:00Z, in UTC")
}

// List returns the file with the hash list that the policy names, or "". The path is
// relative to the directory of the policy.
func (p *Policy) List() string { return p.list }

// SetList sets what the file of List holds: its text, and the hashes in it, as package
// hashlist reads them. A text that does not have the SHA-256 that the policy demands is an
// error, as is a list without a module.
func (p *Policy) SetList(text []byte, hashes [][sha256.Size]byte) error {
	sum := sha256.Sum256(text)
	switch {
	case p.list == "":
		return fmt.Errorf("%s names no hash list", p.name)
	case p.listSum != "" && p.listSum != hex.EncodeToString(sum[:]):
		return p.wrong("list-sha256", "the SHA-256 of %s is %x", p.list, sum)
	case len(hashes) == 0:
		return p.wrong("list", "%s lists no module: the policy allows nothing", p.list)
	}
	p.hashes = make(map[[sha256.Size]byte]bool, len(hashes))
	for _, hash := range hashes {
		p.hashes[hash] = true
	}
	return nil
}

// wrong is the error of what the rule with a keyword names.
func (p *Policy) wrong(keyword, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s: "+format, append([]any{p.name, p.rules[keyword][0].line, keyword}, args...)...)
}
