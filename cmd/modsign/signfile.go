package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/internal/perjob"
	"github.com/modsign/modsign/internal/terminal"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/keygen/keystore"
	"github.com/modsign/modsign/sign"
)

// A signProgram is a program that takes the arguments of sign-file.
type signProgram struct {
	name    string
	options string // the letters
	usage   string
}

var (
	kernelSignFile = &signProgram{
		name: "sign-file", options: "dpks",
		usage: `Usage: sign-file [-dpk] <hash algo> <key> <x509> <module> [<dest>]
       sign-file -s [-dpk] <raw sig> <hash algo> <x509> <module> [<dest>]
`,
	}
	kmodsign = &signProgram{
		name: "kmodsign", options: "dpkDs",
		usage: `Usage: kmodsign [-dpkD] <hash algo> <key> <x509> <module> [<dest>]
`,
	}
)

const signFileHelp = `Sign-file is the kernel's scripts/sign-file, option for option: it signs one file,
whatever its content, in place or into <dest>. A link named sign-file to modsign is the
same program, so such a link at scripts/sign-file serves a kernel tree.

  -d  write <module>.p7s, the signature alone, and leave the module
  -p  write <module>.p7s too
  -k  name the certificate by its subject key identifier
  -s  append the ready-made signature in <raw sig>

Options may stand anywhere, unless POSIXLY_CORRECT is set. An encrypted private key
needs its passphrase in KBUILD_SIGN_PIN.

Modsign behaves like this under every name that begins or ends with sign-file. As
kmodsign, Ubuntu's name, it knows one option more:

  -D  write to <dest> only what has to follow the module, and leave the module

It differs from the kernel's program in seven ways:
  - It replaces an old signature. The kernel's signs it as a part of the module.
  - If <dest> is the module under another name, it signs in place. The kernel's
    destroys the module.
  - If <module> is a symbolic link, the link stays, and it signs the module behind
    it. The kernel's replaces the link with a signed copy. Links such as those of
    weak-updates still lead to the same module. To sign a copy, give a <dest>.
  - It warns of a private key that others can read, once per build or other job.
  - With an ML-DSA key it signs the module itself. The kernel's signs attributes if its
    OpenSSL is older than 4.0, and most kernels reject that (docs/mldsa.md).
  - It reports an error in one line. The kernel's prints OpenSSL's errors.
  - It rejects some keys and certificates that the kernel's accepts: RSA keys of
    other sizes than 1024, 1536, 2048, 3072 and 4096 bits, RSA-PSS, DSA, elliptic
    curves other than P-256, P-384 and P-521 (P-192, P-224, secp256k1, Brainpool)
    or with explicit parameters, ML-DSA keys without their seed, keys encrypted with
    Camellia or ARIA, certificates with an empty issuer, and hashes that no kernel
    verifies, such as md5.`

// signFileExit ends the help. The exit codes are the kernel's.
const signFileExit = `Exit status:
    0  done
    1  an error
    2  the command line is wrong
  134  killed by SIGABRT (128+6): out of memory or threads, or a bug`

func newSignFileCommand(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:                   "sign-file [-dpk] HASH KEY X509 MODULE [DEST]",
		Short:                 "Sign one file as the kernel's scripts/sign-file does",
		Long:                  signFileHelp,
		Annotations:           map[string]string{"exit": signFileExit},
		DisableFlagParsing:    true,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
				return cmd.Help()
			}
			return exitStatus(kernelSignFile.run(args, u.Stderr))
		},
	}
}

// signFileArgs is a command line of sign-file.
type signFileArgs struct {
	save, detached, keyID, raw, trailer bool
	positional                          []string
}

// parse parses a command line as GNU getopt does for the option letters: letters may be
// bundled, and options may follow other arguments unless POSIXLY_CORRECT is set.
func (p *signProgram) parse(args []string, posix bool) (signFileArgs, error) {
	var a signFileArgs
	for i, arg := range args {
		if arg == "--" {
			a.positional = append(a.positional, args[i+1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			a.positional = append(a.positional, arg)
			if posix {
				a.positional = append(a.positional, args[i+1:]...)
				break
			}
			continue
		}
		for _, option := range arg[1:] {
			if !strings.ContainsRune(p.options, option) {
				return a, fmt.Errorf("invalid option -- '%c'", option)
			}
			switch option {
			case 'd':
				a.detached = true
			case 'p':
				a.save = true
			case 'k':
				a.keyID = true
			case 's':
				a.raw = true
			case 'D':
				a.trailer = true
			}
		}
	}
	if n := len(a.positional); n != 4 && n != 5 {
		missing := ""
		if n == 3 && !a.raw {
			missing = ": the first is the hash, such as sha512"
		}
		return a, fmt.Errorf("%s, want 4 or 5%s", plural(n, "argument"), missing)
	}
	if a.trailer && len(a.positional) == 4 {
		return a, errors.New("-D needs a <dest>: it would write over the module")
	}
	return a, nil
}

// run runs the program and returns its exit code.
func (p *signProgram) run(args []string, stderr io.Writer) int {
	_, posix := os.LookupEnv("POSIXLY_CORRECT")
	a, err := p.parse(args, posix)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n%s", p.name, err, p.usage)
		return exitUsage
	}
	warn := func(format string, args ...any) { fmt.Fprintf(stderr, p.name+": "+format+"\n", args...) }
	if err := a.run(warn); err != nil {
		warn("%s", terminal.Printable(inOneLine(err)))
		return exitError
	}
	return exitDone
}

func (a *signFileArgs) run(warn func(string, ...any)) (err error) {
	ctx := context.Background()      // a signal kills sign-file, as it kills the kernel's
	args := append(a.positional, "") // no <dest> is an empty one
	if a.raw {
		sig, err := readAtMost(args[0], 1<<20)
		if err != nil {
			return err
		}
		// As in the kernel's, the hash and the certificate are ignored.
		return sign.File(ctx, nil, args[3], args[4], sign.FileOptions{Signature: sig, Trailer: a.trailer})
	}
	hashName, keyPath, certPath, module, dest := args[0], args[1], args[2], args[3], args[4]
	if _, err := os.Stat(module); err != nil {
		return err
	}
	switch {
	case certPath == "": // an agent's or a key's file has one, but the kernel's program opens this
		return errors.New("the name of the certificate's file is empty")
	case isSameFile(dest, keyPath) || isSameFile(dest, certPath):
		return fmt.Errorf("%s: the destination is the file of the key or certificate, which would be lost", dest)
	}
	keepSecrets()
	pair, err := signFileKey(ctx, keyPath, certPath, warn)
	if err != nil {
		return err
	}
	defer closeKey(pair, &err)
	hash, err := cms.HashByName(hashName)
	if err != nil {
		return err
	}
	signer, err := newSigner(pair, certPath, sign.SignerOptions{Hash: hash, UseKeyID: a.keyID})
	if err != nil {
		return err
	}
	return sign.File(ctx, signer, module, dest, sign.FileOptions{Save: a.save, Detached: a.detached, Trailer: a.trailer})
}

// signFileKey loads the key of sign-file. A build calls it once for each module, with the
// certificate certs/signing_key.x509 in its object tree: the agent of that tree may have
// opened a key with a URI once for all of them.
func signFileKey(
	ctx context.Context, keyPath, certPath string, warn func(string, ...any),
) (*keygen.Pair, error) {
	load := keygen.LoadOptions{Passphrase: buildPIN, KeyOf: agent.KeyOf}
	if keystore.IsURI(keyPath) {
		if dir := filepath.Dir(certPath); filepath.Base(dir) == "certs" {
			if pair := kbuildrun.HeldFor(filepath.Dir(dir), certPath); pair != nil {
				return pair, nil
			}
		}
		// About a key's file, the kernel's program says nothing.
		load.Note = func(text string) { warn("%s", terminal.Printable(text)) }
	}
	pair, err := loadKey(ctx, keyPath, certPath, load)
	if insecure, ok := errors.AsType[*keygen.LoadError](err); ok && errors.Is(err, keygen.ErrInsecure) {
		// The kernel's program signs with it, so this one has to; but it warns.
		if perjob.First(os.Getenv("XDG_RUNTIME_DIR"), keyPath) {
			warn("warning: %s: %s (%s, or sign the tree with modsign sign --allow-insecure-key)",
				terminal.Printable(insecure.Path), insecure.Err, terminal.Printable(keyHint(err)))
		}
		load.AllowInsecure = true
		pair, err = keygen.Load(keyPath, certPath, load)
	}
	return pair, err
}
