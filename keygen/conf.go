package keygen

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/modsign/modsign/internal/keyfile"
)

// The syntax of OpenSSL's configuration files, config(5), as
// crypto/conf/conf_def.c of OpenSSL 3.0 reads it:
//
//	line       = [ "[" section "]" | [section "::"] name "=" value ] [ "#" comment ]
//
// A backslash at the end continues a line. Names stand in the section above
// them, or before the first one in the section "default", where a name is looked
// up that its own section lacks. A name that is given again in its section
// replaces the earlier one and takes its place at the end. In values, '...',
// "..." and `...` quote, a backslash escapes (\n, \r, \b and \t as in C), and
// $name, ${name}, $(name), with section:: before the name or not, stand for the
// value of a name above.
//
// Refused are .include and .pragma, the environment ($ENV::name), and quotes
// without an end, which OpenSSL closes at the end of the line.
//
// An error has the number of the line and no word of it that is not known: these
// files may hold passwords, and a private key may be given for one.

const (
	// A genkey file has a few hundred bytes. The second bound, on all values
	// together, is for those that double by expansion.
	maxConfSize      = 64 << 10
	maxConfExpansion = 1 << 20
)

// conf is a configuration file.
type conf struct {
	sections map[string]*confSection
	expanded int // bytes of all values
}

// confSection holds the names of a section in order. A name that was given
// again leaves an entry without a name behind.
type confSection struct {
	entries []confEntry
	index   map[string]int
}

type confEntry struct {
	name, value string
	line        int
}

// errorf is an error about the line of the entry.
func (e confEntry) errorf(format string, args ...any) error {
	return fmt.Errorf("line %d: %w", e.line, fmt.Errorf(format, args...))
}

// get looks a name up as OpenSSL does: in the section, then in "default".
func (c *conf) get(section, name string) (confEntry, bool) {
	for _, section := range []string{section, "default"} {
		if s := c.sections[section]; s != nil {
			if i, ok := s.index[name]; ok {
				return s.entries[i], true
			}
		}
	}
	return confEntry{}, false
}

func (c *conf) section(name string) *confSection {
	s := c.sections[name]
	if s == nil {
		s = &confSection{index: make(map[string]int)}
		c.sections[name] = s
	}
	return s
}

func (s *confSection) set(e confEntry) {
	if i, ok := s.index[e.name]; ok {
		s.entries[i] = confEntry{}
	}
	s.index[e.name] = len(s.entries)
	s.entries = append(s.entries, e)
}

func parseConf(r io.Reader) (*conf, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxConfSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfSize {
		return nil, fmt.Errorf("file has more than %d bytes: it is no x509.genkey", maxConfSize)
	}
	data = keyfile.TrimBOM(data)

	c := &conf{sections: make(map[string]*confSection)}
	section := "default"
	c.section(section)
	lines := strings.Split(string(data), "\n")
	for i := 0; i < len(lines); i++ {
		at := confEntry{line: i + 1}
		line := strings.TrimRight(lines[i], "\r")
		for i+1 < len(lines) && strings.HasSuffix(line, `\`) && !strings.HasSuffix(line, `\\`) {
			i++
			line = line[:len(line)-1] + strings.TrimRight(lines[i], "\r")
		}
		if strings.ContainsRune(line, 0) {
			return nil, at.errorf("NUL byte: this is no text file")
		}
		line, err := cutComment(line)
		if err != nil {
			return nil, at.errorf("%w", err)
		}
		if line == "" {
			continue
		}
		if header, ok := strings.CutPrefix(line, "["); ok {
			name, rest, ok := strings.Cut(header, "]")
			if name = trimSpace(name); !ok || rest != "" || name == "" || strings.ContainsAny(name, "$\\\"'`") {
				return nil, at.errorf("not a section: it is written [name]")
			}
			section = name
			c.section(section)
			continue
		}
		if strings.HasPrefix(line, ".include") || strings.HasPrefix(line, ".pragma") {
			return nil, at.errorf("%s is not supported: put everything into one file", line[:len(".include")])
		}
		name, raw, ok := strings.Cut(line, "=")
		name = trimSpace(name)
		into := section
		if other, rest, ok := strings.Cut(name, "::"); ok {
			into, name = other, rest
		}
		if !ok || name == "" || into == "" || strings.IndexFunc(into+name, notInNames) >= 0 {
			return nil, at.errorf("not of the form name = value")
		}
		value, err := c.expand(into, trimSpace(raw))
		if err != nil {
			return nil, at.errorf("%w", err)
		}
		if c.expanded += len(value); c.expanded > maxConfExpansion {
			return nil, at.errorf("values have more than %d bytes together", maxConfExpansion)
		}
		c.section(into).set(confEntry{name: name, value: value, line: at.line})
	}
	return c, nil
}

// notInNames reports whether names and sections before :: cannot hold the
// character.
func notInNames(r rune) bool { return !isWord(r) && !strings.ContainsRune("!%&*+,-./;?@^~|", r) }

func isWord(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_'
}

// trimSpace trims what the file format calls space: Unicode has more, which
// belongs to the value.
func trimSpace(s string) string { return strings.Trim(s, " \t\r\n") }

// cutComment takes the comment and the space around off a line.
func cutComment(line string) (string, error) {
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '#':
			return trimSpace(line[:i]), nil
		case '\\':
			i++
		case '\'', '"', '`':
			n := quoted(line[i:])
			if n < 0 {
				return "", fmt.Errorf("quote %c has no end: close it, or write \\%c", line[i], line[i])
			}
			i += n - 1
		}
	}
	return trimSpace(line), nil
}

// quoted returns the length of the quotation that s begins with, both quotes
// included, or -1 when it has no end.
func quoted(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case s[0]:
			return i + 1
		case '\\':
			i++
		}
	}
	return -1
}

// expand takes quotes and escapes off a value and puts the values of variables
// in.
func (c *conf) expand(section, raw string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '\'', '"', '`':
			n := quoted(raw[i:])
			if n < 0 {
				// The comment was cut by the same rule: there is an end.
				return "", errors.New("quote has no end")
			}
			for j := i + 1; j < i+n-1; j++ {
				if raw[j] == '\\' {
					j++
				}
				out.WriteByte(raw[j])
			}
			i += n - 1
		case '\\':
			if i++; i == len(raw) {
				break
			}
			b := raw[i]
			if k := strings.IndexByte("nrbt", b); k >= 0 {
				b = "\n\r\b\t"[k]
			}
			out.WriteByte(b)
		case '$':
			value, n, err := c.variable(section, raw[i:])
			if err != nil {
				return "", err
			}
			out.WriteString(value)
			i += n - 1
		default:
			out.WriteByte(raw[i])
		}
		if out.Len() > maxConfExpansion {
			return "", fmt.Errorf("value has more than %d bytes", maxConfExpansion)
		}
	}
	return out.String(), nil
}

// variable returns the value of the variable that s begins with, and the length
// of its name with all that belongs to it.
func (c *conf) variable(section, s string) (value string, n int, err error) {
	word := func(s string) string {
		if end := strings.IndexFunc(s, func(r rune) bool { return !isWord(r) }); end >= 0 {
			return s[:end]
		}
		return s
	}
	rest := s[1:]
	closing := ""
	switch {
	case strings.HasPrefix(rest, "{"):
		closing, rest = "}", rest[1:]
	case strings.HasPrefix(rest, "("):
		closing, rest = ")", rest[1:]
	}
	name := word(rest)
	rest = rest[len(name):]
	if after, ok := strings.CutPrefix(rest, "::"); ok {
		section, name = name, word(after)
		rest = after[len(name):]
	}
	rest, ok := strings.CutPrefix(rest, closing)
	if !ok {
		return "", 0, fmt.Errorf("variable has no closing %s", closing)
	}
	if section == "ENV" {
		return "", 0, errors.New("$ENV: the environment is not read: write the value itself")
	}
	e, ok := c.get(section, name)
	if !ok {
		return "", 0, errors.New("variable is not set above (a dollar sign is written \\$)")
	}
	return e.value, len(s) - len(rest), nil
}
