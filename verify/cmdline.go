package verify

import (
	"strconv"
	"strings"
)

// parameter is one parameter of a kernel's command line.
type parameter struct {
	name  string // with _ for -, which are the same to the kernel
	value string
	given bool   // it has a value
	text  string // without quotes, for people
}

// parameters takes a command line apart as the kernel does (next_arg in lib/cmdline.c,
// parse_args in kernel/params.c). Quotes hold spaces together, those around a parameter or a
// value are removed, and what follows -- is for init.
func parameters(cmdline string) (all []parameter) {
	cmdline, _, _ = strings.Cut(cmdline, "\x00")
	for {
		start := 0
		for start < len(cmdline) && isSpace(cmdline[start]) {
			start++
		}
		if cmdline = cmdline[start:]; cmdline == "" {
			return all
		}
		var word string
		word, cmdline = nextWord(cmdline)
		p := parseParameter(word)
		if p.text == "--" {
			return all
		}
		all = append(all, p)
	}
}

// nextWord returns what is in front of the first space that is not in quotes.
func nextWord(s string) (word, rest string) {
	quoted := false
	for i := range len(s) {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case isSpace(s[i]) && !quoted:
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// parseParameter takes a word apart. The kernel removes a quote at the end once, be it for the
// quote in front of the word or for that in front of the value.
func parseParameter(word string) parameter {
	word, quoted := strings.CutPrefix(word, `"`)
	p := parameter{}
	equals := -1
	if len(word) > 1 { // a word does not begin with =
		equals = strings.IndexByte(word[1:], '=') + 1
	}
	if equals <= 0 {
		if quoted {
			word = strings.TrimSuffix(word, `"`)
		}
		p.name = word
	} else {
		value, opened := strings.CutPrefix(word[equals+1:], `"`)
		if opened || quoted {
			value = strings.TrimSuffix(value, `"`)
		}
		p.name, p.value, p.given = word[:equals], value, true
	}
	p.text = p.name
	if p.given {
		p.text += "=" + p.value
	}
	p.name = strings.ReplaceAll(p.name, "-", "_")
	return p
}

// isSpace is the kernel's isspace, of Latin-1.
func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' || c == 0xa0 }

// kstrtobool reads a truth value. ok is false for what is none (lib/kstrtox.c). Linux 7.2 also
// takes e and d, for enable and disable.
func kstrtobool(s string) (on, ok bool) {
	switch {
	case s == "":
	case strings.ContainsAny(s[:1], "yYtT1"):
		return true, true
	case strings.ContainsAny(s[:1], "nNfF0"):
		return false, true
	case strings.ContainsAny(s[:1], "oO") && len(s) > 1 && strings.ContainsAny(s[1:2], "nN"):
		return true, true
	case strings.ContainsAny(s[:1], "oO") && len(s) > 1 && strings.ContainsAny(s[1:2], "fF"):
		return false, true
	}
	return false, false
}

// bool reads a parameter that is on without a value.
func (p parameter) bool() (on, ok bool) {
	if !p.given {
		return true, true
	}
	return kstrtobool(p.value)
}

// enforced returns the parameter that has the kernel enforce signatures. Another one cannot take
// that back (param_set_bool_enable_only).
func enforced(params []parameter) (parameter, bool) {
	for _, p := range params {
		if on, ok := p.bool(); p.name == "module.sig_enforce" && on && ok {
			return p, true
		}
	}
	return parameter{}, false
}

// loadsNone returns the parameter with which the kernel loads no module: nomodule, or a sysctl
// that it sets before it starts init (do_sysctl_args in fs/proc/proc_sysctl.c).
func loadsNone(params []parameter) (found parameter, ok bool) {
	for _, p := range params {
		if on, valid := p.bool(); p.name == "nomodule" && valid {
			found, ok = p, on
		}
	}
	for _, p := range params {
		if n, err := strconv.ParseInt(p.value, 0, 32); err != nil || n != 1 {
			continue // it can be set to 1 alone
		}
		if name, _, _ := strings.Cut(p.text, "="); strings.ReplaceAll(name, "/", ".") == "sysctl.kernel.modules_disabled" {
			return p, true
		}
	}
	return found, ok
}

// forbidden returns the names of modules in the last module_blacklist=.
func forbidden(params []parameter) (names []string) {
	for _, p := range params {
		if p.name == "module_blacklist" && p.given {
			names = strings.Split(p.value, ",")
		}
	}
	return names
}
