package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/modsign/modsign/internal/terminal"
	"github.com/modsign/modsign/verify"
)

// modsignVerifyName is the name under which modsign is SUSE's program, of the package
// pesign-obs-integration.
const modsignVerifyName = "modsign-verify"

// Exit codes of modsign-verify. SUSE's program has those up to 3, and any greater one for
// other errors.
const (
	signatureGood     = 0
	signatureBad      = 1
	certificateAbsent = 2
	moduleNotSigned   = 3
	signatureUnknown  = 255
)

const modsignVerifyUsage = `Usage: modsign-verify [-v] [-q] [--certificate <x509> | --cert-dir <dir>] <module>
`

const modsignVerifyHelp = modsignVerifyUsage + `
Check the signature of a module against one certificate, or all in a directory (default:
/etc/uefi/certs). The names of options may be shortened.

`

// modsignVerifyExit ends the help.
const modsignVerifyExit = `Exit status:
    0  good signature
    1  bad signature
    2  certificate not found
    3  module not signed
  255  another error`

// certDir is where SUSE installs the certificates of its kernels and modules.
const certDir = "/etc/uefi/certs"

// modsignVerifyArgs is a command line of modsign-verify.
type modsignVerifyArgs struct {
	help         bool
	verbose      int // 1 if neither -v nor -q is given
	cert, dir    string
	module       string
	out, message io.Writer
}

// modsignVerify runs the program and returns its exit code.
func modsignVerify(args []string, stdout, stderr io.Writer) int {
	a, err := parseModsignVerify(args)
	a.out, a.message = stdout, stderr
	switch {
	case err != nil:
		a.say(0, "%v", err)
		fmt.Fprint(stderr, modsignVerifyUsage)
		return signatureUnknown
	case a.help:
		return a.result(signatureGood, "%s%s", modsignVerifyHelp, modsignVerifyExit)
	}
	return a.run()
}

// parseModsignVerify parses a command line as SUSE's program does, with Perl's Getopt::Long:
// one hyphen or two before a name, which may be shortened and in capitals, its value behind
// "=" or in the next argument, and options anywhere.
func parseModsignVerify(args []string) (modsignVerifyArgs, error) {
	a := modsignVerifyArgs{verbose: 1}
	var positional []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			positional = append(positional, args...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			positional = append(positional, arg)
			continue
		}
		given, value, hasValue := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		name, err := modsignVerifyOption(given)
		if err != nil {
			return a, err
		}
		switch takes := strings.HasPrefix(name, "cert"); {
		case takes && !hasValue && len(args) == 0:
			return a, fmt.Errorf("option %s needs a value", name)
		case takes && !hasValue:
			value, args = args[0], args[1:]
		case !takes && hasValue:
			return a, fmt.Errorf("option %s takes no value", name)
		}
		switch name {
		case "certificate":
			a.cert = value
		case "cert-dir":
			a.dir = value
		case "q", "quiet":
			a.verbose = max(a.verbose-1, 0)
		case "v", "verbose":
			a.verbose++
		case "h", "help":
			a.help = true
		}
	}
	switch {
	case a.help:
	case len(positional) > 1:
		return a, errors.New("more than one module is given")
	case len(positional) == 0 || positional[0] == "":
		return a, errors.New("no module is given")
	case a.cert != "" && a.dir != "":
		return a, errors.New("--certificate and --cert-dir exclude each other")
	default:
		a.module = positional[0]
	}
	return a, nil
}

// modsignVerifyOption returns the option that a name, perhaps shortened, means.
func modsignVerifyOption(given string) (string, error) {
	given = strings.ToLower(given)
	var found []string
	for _, name := range []string{"certificate", "cert-dir", "q", "quiet", "v", "verbose", "h", "help"} {
		switch {
		case name == given:
			return name, nil
		case strings.HasPrefix(name, given):
			found = append(found, name)
		}
	}
	switch {
	case len(found) == 0 || given == "":
		return "", fmt.Errorf("unknown option %.40q", given)
	case len(found) > 1:
		return "", fmt.Errorf("option %q is short for several: %s", given, strings.Join(found, ", "))
	}
	return found[0], nil
}

// say writes a message of a level: 0 always, 1 unless -q is given, 2 with -v.
func (a *modsignVerifyArgs) say(level int, format string, args ...any) {
	if a.verbose >= level {
		fmt.Fprintf(a.message, "%s: %s\n", modsignVerifyName, terminal.Printable(fmt.Sprintf(format, args...)))
	}
}

// result writes a line to stdout and returns the code, unless the line cannot be written.
func (a *modsignVerifyArgs) result(code int, format string, args ...any) int {
	if _, err := fmt.Fprintf(a.out, format+"\n", args...); err != nil {
		a.say(0, "%v", err)
		return signatureUnknown
	}
	return code
}

func (a *modsignVerifyArgs) run() int {
	keys := new(verify.Keyring)
	if a.cert != "" {
		if err := keys.AddFile(a.cert); err != nil {
			a.say(0, "%s", inOneLine(err))
			return signatureUnknown
		}
	} else if code := a.readDir(keys); code != 0 {
		return code
	}
	r := verify.File(context.Background(), keys, a.module)
	name := terminal.Printable(a.module)
	if r.Signer != "" {
		a.say(2, "signed by %s", r.Signer)
	}
	for _, s := range r.Signers {
		a.say(2, "%s with %s", s.Algorithm, s.Hash)
		if s.Source != "" {
			a.say(2, "the certificate is in %s", s.Source)
		}
	}
	switch {
	// A file of another kind may be signed in the same way, and this program judges the signature.
	case r.Verdict == verify.Trusted, r.Verdict == verify.Malformed && r.Cause == syscall.ENOEXEC:
		return a.result(signatureGood, "%s: good signature", name)
	case r.Verdict == verify.BadSignature:
		return a.result(signatureBad, "%s: bad signature", name)
	case r.Verdict == verify.UnknownKey:
		return a.result(certificateAbsent, "certificate not found")
	case r.Verdict == verify.NotSigned:
		return a.result(moduleNotSigned, "%s: module not signed", name)
	}
	a.say(0, "%s", refusal(r))
	return signatureUnknown
}

// readDir reads the certificates in the directory. It returns 0, or an exit code if there are
// none.
func (a *modsignVerifyArgs) readDir(keys *verify.Keyring) int {
	dir := cmp.Or(a.dir, certDir)
	if a.dir == "" {
		a.say(2, "the certificates are those in %s", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		a.say(0, "%v", err)
		return certificateAbsent
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		info, err := os.Stat(path)
		if strings.HasPrefix(entry.Name(), ".") || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if err == nil {
			err = keys.AddFile(path)
		}
		if err != nil {
			a.say(1, "warning: %s", inOneLine(err))
		}
	}
	if keys.Len() == 0 {
		a.say(0, "%s: no certificate found", dir)
		return certificateAbsent
	}
	return 0
}
