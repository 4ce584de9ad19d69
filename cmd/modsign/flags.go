package main

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/sign"
)

// The flags that several commands have, each with the same name and words everywhere.

func addJSON(flags *pflag.FlagSet, u *ui) {
	flags.BoolVar(&u.JSON, "json", false, "write one JSON object per line to stdout")
}

func addQuiet(flags *pflag.FlagSet, u *ui) {
	flags.BoolVarP(&u.Quiet, "quiet", "q", false, "print only results and errors")
}

func addOutputFile(flags *pflag.FlagSet, file *string, what string) {
	flags.StringVarP(file, "output", "o", "", "write "+what+" to `FILE` instead of stdout")
}

// addChoice adds a flag with a few values. The usage marks the default one.
func addChoice(flags *pflag.FlagSet, p *string, name, value, usage string) {
	flags.StringVar(p, name, value, usage)
	flags.Lookup(name).DefValue = "" // else the usage would have it twice
}

func addObjtree(flags *pflag.FlagSet, dir *string) {
	flags.StringVar(dir, "objtree", ".", "object tree `DIR`, where the kernel is built")
}

func addWait(flags *pflag.FlagSet, wait *bool) {
	flags.BoolVar(wait, "wait", false, "wait if another run has locked the modules")
}

func addKeyID(flags *pflag.FlagSet, keyID *bool) {
	flags.BoolVar(keyID, "key-id", false, "name the certificate by subject key identifier (sign-file -k)")
}

func addAttributes(flags *pflag.FlagSet, attributes *bool) {
	flags.BoolVar(attributes, "mldsa-attrs", false, "sign with signed attributes, as sign-file does with OpenSSL 3.5")
}

// jobsFlag is --jobs. 0 is the default of the packages.
type jobsFlag int

func (j *jobsFlag) addFlag(flags *pflag.FlagSet) {
	flags.IntVarP((*int)(j), "jobs", "j", 0, "process `N` modules at once (default: twice the processors)")
}

func (j jobsFlag) check() error {
	if j < 0 {
		return usagef("--jobs: invalid value \"%d\": want a number of modules", j)
	}
	return nil
}

// hashFlag is --hash: the name of a hash, or nothing.
type hashFlag string

func (h *hashFlag) addFlag(flags *pflag.FlagSet) {
	flags.StringVar((*string)(h), "hash", "", "`NAME` of the hash (default: the kernel's, or sha512)")
}

// or returns the hash that was asked for, or the default.
func (h hashFlag) or(byDefault crypto.Hash) (crypto.Hash, error) {
	if h == "" {
		return byDefault, nil
	}
	hash, err := cms.HashByName(string(h))
	if err != nil {
		return 0, usagef("--hash: %v", err)
	}
	return hash, nil
}

// ofKernel returns the hash that was asked for, or the one that the kernel was configured
// with, if there is a kernel, or the default of the kernel's build.
func (h hashFlag) ofKernel(kernel *kernel) (crypto.Hash, error) {
	if h == "" && kernel != nil {
		config, err := kernel.Config()
		if err != nil {
			return 0, err
		}
		h = hashFlag(config.SigHash())
	}
	return h.or(crypto.SHA512)
}

// existingFlag is --existing.
type existingFlag string

func (e *existingFlag) addFlag(flags *pflag.FlagSet) {
	addChoice(flags, (*string)(e), "existing", "replace", "`POLICY` if signed: replace (default), skip, refuse or add")
}

func (e existingFlag) existing() (sign.Existing, error) {
	existing, err := sign.ParseExisting(string(e))
	if err != nil {
		return existing, usagef("--existing: %v", err)
	}
	return existing, nil
}

// repeated is a flag that may be given several times: the first value goes to where it goes
// for commands with one of them.
type repeated struct {
	first *string
	more  *[]string
	given bool
}

// repeat lets a flag be repeated.
func repeat(flags *pflag.FlagSet, name string, first *string, more *[]string, usage string) {
	f := flags.Lookup(name)
	f.Value, f.Usage = &repeated{first: first, more: more}, usage
}

func (r *repeated) Type() string   { return "string" }
func (r *repeated) String() string { return *r.first }

func (r *repeated) Set(value string) error {
	if r.given {
		*r.more = append(*r.more, value)
	} else {
		*r.first, r.given = value, true
	}
	return nil
}

// compressFlag is --compress.
type compressFlag string

func (c *compressFlag) addFlag(flags *pflag.FlagSet) {
	flags.StringVar((*string)(c), "compress", "", "leave all modules in `FORMAT`: none, gz, xz or zst")
}

func (c compressFlag) apply(source *sign.Source) error {
	if c == "" {
		return nil
	}
	format, err := sign.ParseFormat(string(c))
	if err != nil {
		return usagef("--compress: %v", err)
	}
	source.Compress, source.Recompress = format, true
	return nil
}

// choice reports whether a flag has the second of its two values.
func choice(flag, value, no, yes string) (bool, error) {
	if value != no && value != yes {
		return false, usagef("--%s: invalid value %q: want %s or %s", flag, value, no, yes)
	}
	return value == yes, nil
}

// parseMode reads the mode of a file; an empty one is nil.
func parseMode(text string) (*fs.FileMode, error) {
	if text == "" {
		return nil, nil
	}
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > 0o777 {
		return nil, usagef("--mode: invalid value %q: want an octal mode such as 0644", text)
	}
	m := fs.FileMode(mode)
	return &m, nil
}

func addMaxSize(flags *pflag.FlagSet, max *size) {
	*max = 2 << 30
	flags.Var(max, "max-module-size", "reject modules above `SIZE` when decompressed")
}

// size is a flag in bytes; K, M, G and T after it are powers of 1024.
type size int64

func (s *size) Type() string { return "SIZE" }

func (s *size) String() string {
	for i, unit := range []string{"T", "G", "M", "K"} {
		if n := int64(1) << (40 - 10*i); *s != 0 && int64(*s)%n == 0 {
			return fmt.Sprintf("%d%s", int64(*s)/n, unit)
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *size) Set(value string) error {
	number, shift := strings.ToUpper(value), 0
	for i, unit := range []string{"K", "M", "G", "T"} {
		if rest, ok := strings.CutSuffix(strings.TrimSuffix(number, "IB"), unit); ok {
			number, shift = rest, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return errors.New("want a size such as 512M or 2G")
	}
	*s = size(n << shift)
	return nil
}

// once is a flag that may be given once: a second value would take the place of the first,
// and nobody would see that the first does nothing.
type once struct{ value *string }

func (o once) String() string {
	if o.value == nil { // the zero value, for pflag
		return ""
	}
	return *o.value
}

func (o once) Set(value string) error {
	if *o.value != "" {
		return fmt.Errorf("given twice, first as %q: want one file", *o.value)
	}
	*o.value = value
	return nil
}

func (once) Type() string { return "string" }
