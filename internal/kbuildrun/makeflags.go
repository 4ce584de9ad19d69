package kbuildrun

import (
	"strconv"
	"strings"
)

// MakeFlags is what make tells the programs that it runs, in the environment variable
// MAKEFLAGS.
type MakeFlags struct {
	Silent    bool // -s
	DryRun    bool // -n
	KeepGoing bool // -k
	Touch     bool // -t
	Question  bool // -q

	Jobs int // -j: 0 if not given, -1 without a limit

	// Vars are the variables of the command line. A reference to another variable, as in
	// X=$(Y), stays as it is.
	Vars map[string]string
}

// ParseMakeFlags reads the value of MAKEFLAGS, as GNU make 4.0 to 4.4 write it:
//
//	ks -j4 --jobserver-auth=3,4 --no-print-directory -- X=a\ b Y:=c
//
// The first word is letters without a dash; it is missing if the text begins with a blank.
// A backslash protects the next character, and a dollar is doubled. Options that it does
// not know it skips.
func ParseMakeFlags(s string) MakeFlags {
	flags := MakeFlags{Vars: make(map[string]string)}
	words := splitMakeFlags(strings.ReplaceAll(s, "$$", "$"))
	if len(words) > 0 && words[0][0] != '-' && !strings.Contains(words[0], "=") {
		words[0] = "-" + words[0]
	}
	jobserver, options := false, true
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		switch {
		case !options || word[0] != '-':
			flags.define(word)
		case word == "--":
			options = false
		case strings.HasPrefix(word, "--jobserver-"):
			jobserver = true
		case strings.HasPrefix(word, "--"):
			flags.long(word[2:])
		default:
			next := ""
			if len(words) > 0 {
				next = words[0]
			}
			if flags.letters(word[1:], next) && len(words) > 0 {
				words = words[1:]
			}
		}
	}
	// Make 4.0 and 4.1 pass -j to a make that shares their limit.
	if jobserver && flags.Jobs < 0 {
		flags.Jobs = 0
	}
	return flags
}

// splitMakeFlags splits at blanks and removes the backslashes. No word is empty.
func splitMakeFlags(s string) []string {
	var words []string
	var word strings.Builder
	end := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
		}
		word.Reset()
	}
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == ' ' || s[i] == '\t':
			end()
			continue
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		word.WriteByte(s[i])
	}
	end()
	return words
}

// letters reads options of one letter each, and reports whether the last one takes the
// next word as its argument.
func (f *MakeFlags) letters(s, next string) (takesNext bool) {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case 's':
			f.Silent = true
		case 'n':
			f.DryRun = true
		case 'k':
			f.KeepGoing = true
		case 'S':
			f.KeepGoing = false
		case 't':
			f.Touch = true
		case 'q':
			f.Question = true
		case 'j':
			const digits = "0123456789"
			if i == len(s)-1 && next != "" && strings.Trim(next, digits) == "" {
				f.jobs(next)
				return true
			}
			rest := strings.TrimLeft(s[i+1:], digits)
			f.jobs(s[i+1 : len(s)-len(rest)])
			i = len(s) - len(rest) - 1
		case 'C', 'E', 'I', 'W', 'f', 'o':
			return i == len(s)-1
		case 'O', 'l': // the rest is the argument, if there is one
			return false
		}
	}
	return false
}

// long reads an option without its dashes. Make writes a letter if there is one, but users
// put long names into MAKEFLAGS.
func (f *MakeFlags) long(s string) {
	name, value, _ := strings.Cut(s, "=")
	switch name {
	case "silent", "quiet":
		f.Silent = true
	case "no-silent":
		f.Silent = false
	case "dry-run", "just-print", "recon":
		f.DryRun = true
	case "keep-going":
		f.KeepGoing = true
	case "no-keep-going", "stop":
		f.KeepGoing = false
	case "touch":
		f.Touch = true
	case "question":
		f.Question = true
	case "jobs":
		f.jobs(value)
	}
}

func (f *MakeFlags) jobs(number string) {
	if number == "" {
		f.Jobs = -1
	} else if n, err := strconv.Atoi(number); err == nil && n > 0 {
		f.Jobs = n
	}
}

// define reads NAME=text, which make expands on use, or NAME:=value, which is expanded.
func (f *MakeFlags) define(word string) {
	name, value, ok := strings.Cut(word, "=")
	name, expanded := strings.CutSuffix(name, ":")
	if !ok || name == "" {
		return
	}
	if !expanded {
		value = strings.ReplaceAll(value, "$$", "$")
	}
	f.Vars[name] = value
}
