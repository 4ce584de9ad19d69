package main

import (
	"cmp"
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/rsabatch"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

type signOptions struct {
	keyOptions
	signingOptions
	hash          hashFlag
	keyID         bool
	oneTime       bool
	keyType       string
	certOut       string
	detached      bool
	debug         debugFlags
	refuseUnsplit string
}

func newSignCommand(u *ui) *cobra.Command {
	var o signOptions
	cmd := &cobra.Command{
		Use:   "sign {--key FILE | --one-time} {PATH... | --installed [KVER]}",
		Short: "Sign modules, or all modules of a tree",
		Long: `Sign signs kernel modules: the files that you name, and every *.ko, *.ko.gz, *.ko.xz
and *.ko.zst below the directories that you name. It appends, byte for byte, what the
kernel's sign-file appends. It signs the content of compressed modules and compresses
them again.

Sign replaces a module whole or not at all, and keeps its mode, owner, times, hard
links and extended attributes. --xattr safe drops security.ima and security.evm, which
attest the old bytes; --xattr keep keeps them. If a module fails, it signs the others
and exits with status 3.

It does not follow symbolic links below a directory: it counts them, and names the
modules behind them that it does not sign. If --compress renames a module, links to it
in the tree get the new name too.

With --one-time it makes a key, signs with it, drops it, and keeps only the certificate:
modsign-one-time.x509 in the output directory or in the first PATH, unless --cert-out
names another file. modsign keygen --help lists the types of keys.

With --installed, the kernel must have the certificate built in. --force-untrusted
accepts one that is enrolled by other means, such as a machine owner key. A
certificate that no kernel loads is an error in any case.

Sign can do all that a distribution does when it installs a kernel, in the only order
that works: remove old signatures, remove debug information, sign, compress. With
--split-debug DIR the debug information of NAME.ko goes to
DIR/lib/modules/KVER/.../NAME.ko.debug, with a link from DIR/.build-id: debuggers find
it if DIR is usr/lib/debug of the installed system.

--rsa batch signs eight modules at once with an RSA key, on processors with AVX-512
IFMA. Every signature is checked, but the code is younger than Go's own: for a key that
lives on, choose it yourself. One-time keys use it wherever they can.

--sync says when modules are flushed to disk: tree is one syncfs at the end, file is
an fsync before each rename, none leaves it to the system. --hash takes the names of
CONFIG_MODULE_SIG_HASH.`,
		Example: `  modsign sign --key certs/signing_key.pem /tmp/stage/lib/modules
  modsign sign --one-time --output signed modules
  modsign sign --key mok.pem --cert mok.der --installed 6.12.0-1-amd64 --force-untrusted
  modsign sign --key key.pem --hash sha256 --detached --output sigs modules
  modsign sign --key key.pem --split-debug root/usr/lib/debug --compress xz root/lib/modules`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.keyOptions.addFlags(flags)
	flags.BoolVar(&o.oneTime, "one-time", false, "make a key, sign with it, keep only its certificate")
	flags.StringVar(&o.certOut, "cert-out", "", "with --one-time: write the certificate to `FILE`")
	flags.StringVar(&o.keyType, "key-type", "", "with --one-time: `TYPE` of the key (default: rsa:4096)")
	o.installedOptions.addFlags(flags)
	o.addFlags(flags, u)
	o.addForceUntrusted(flags)
	return cmd
}

// addFlags adds the flags of all commands that sign trees.
func (o *signOptions) addFlags(flags *pflag.FlagSet, u *ui) {
	o.hash.addFlag(flags)
	addKeyID(flags, &o.keyID)
	o.addRSA(flags)
	o.existing.addFlag(flags)
	flags.BoolVar(&o.detached, "detached", false, "write NAME.ko.p7s beside each module, leave the module")
	flags.BoolVar(&o.debug.strip, "strip-debug", false, "remove debug information first, as strip --strip-debug does")
	o.debug.addSplit(flags)
	flags.StringVar(&o.refuseUnsplit, "refuse-unsplit", "", "fail if `DIR` lacks the debug file of a module")
	o.compress.addFlag(flags)
	o.treeOptions.addFlags(flags, u)
}

// check refuses what makes no sense together.
func (o *signOptions) check(args []string) error {
	if err := checkOutput("--cert-out", o.certOut, args...); err != nil {
		return err
	}
	switch {
	case o.oneTime && o.key != "":
		return usagef("--one-time and --key exclude each other")
	case o.oneTime && o.rsa == "batch":
		return usagef("--rsa batch goes with --key: a one-time key signs in batches wherever it can")
	case o.oneTime && (o.cert != "" || o.passphraseFile != ""):
		return usagef("--cert and --passphrase-file go with --key")
	case !o.oneTime && o.key == "":
		return usagef("no key: give --key FILE (modsign keygen makes one), or --one-time")
	case !o.oneTime && (o.certOut != "" || o.keyType != ""):
		return usagef("--cert-out and --key-type go with --one-time")
	case o.oneTime && o.installed != "" && isRoot(cmp.Or(o.root, "/")):
		return usagef("--one-time with --installed would sign this machine's own modules with a key that no kernel knows")
	case o.detached && (o.debug.removes() || o.compress != ""):
		return usagef("--detached leaves modules as they are: it excludes --strip-debug, --split-debug and --compress")
	}
	return o.installedOptions.check("sign", args)
}

// isRoot reports whether a directory is the root directory of this machine.
func isRoot(dir string) bool {
	given, err1 := os.Stat(dir)
	root, err2 := os.Stat("/")
	return err1 == nil && err2 == nil && os.SameFile(given, root)
}

// run refuses all that it can before it loads the key, and the key before it writes.
func (o *signOptions) run(ctx context.Context, u *ui, args []string) (err error) {
	if o.oneTime {
		hideFromStart(u)
	}
	p, err := o.plan(args)
	if err != nil {
		return err
	}
	hash, err := o.hash.ofKernel(p.kernel)
	if err != nil {
		return err
	}
	pair, err := o.pair(ctx, u)
	if err != nil {
		return err
	}
	defer closeKey(pair, &err)
	said, err := p.kernel.accept(u, o.certFile(), pair.Certificate, o.forceUntrusted)
	if err != nil {
		return err
	}
	signer, err := newSigner(pair, o.certFile(), hash, o.keyID)
	if err != nil {
		return err
	}
	tree, err := openTree(ctx, u, p.source, o.wait)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := o.checkUnsplit(ctx, tree); err != nil {
		return err
	}
	w := work{ui: u, verb: "signing", options: p.options, said: append(o.notes.all(), said...), xattr: true}
	w.how = signedWith(pair.Certificate, hash)
	do := func() error {
		return w.do(ctx, func(options sign.Options) (sign.Summary, error) { return tree.Sign(ctx, signer, options) })
	}
	if o.oneTime && !o.dryRun {
		err = o.withCert(ctx, &w, pair, p.source.Roots, do)
	} else {
		err = do()
	}
	if !o.detached && (err == nil || errors.Is(err, exitStatus(exitSome))) {
		p.kernel.outdated(u, p.source, w.summary)
	}
	return err
}

// plan is what the flags say.
func (o *signOptions) plan(args []string) (signPlan, error) {
	if err := o.check(args); err != nil {
		return signPlan{}, err
	}
	p, err := o.signingOptions.plan(args)
	if err != nil {
		return p, err
	}
	p.options.Detached = o.detached
	p.options.DebugOptions, err = o.debug.options()
	return p, err
}

// checkUnsplit checks --refuse-unsplit.
func (o *signOptions) checkUnsplit(ctx context.Context, tree *sign.Tree) error {
	if o.refuseUnsplit != "" && o.debug.split == "" {
		options := sign.ReadOptions{Jobs: int(o.jobs), MaxSize: int64(o.maxSize)}
		if err := refuseUnsplit(ctx, tree, o.refuseUnsplit, options); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// pair loads the key, or makes the one-time key.
func (o *signOptions) pair(ctx context.Context, u *ui) (*keygen.Pair, error) {
	if !o.oneTime {
		return o.load(ctx, u)
	}
	template, algorithm, err := readProfile("", "key-type", o.keyType, "")
	if err != nil {
		return nil, err
	}
	keepSecrets()
	pair, err := keygen.Generate(algorithm, template)
	if err != nil {
		return nil, err
	}
	pair.Signer = rsabatch.Signer(pair.Signer, warning(u))
	return pair, nil
}
