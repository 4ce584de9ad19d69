package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/keygen/audit"
	"github.com/modsign/modsign/sign"
)

type signOptions struct {
	keyOptions
	signingOptions
	more          struct{ keys, certs, hashes []string } // all but the first
	hash          hashFlag
	keyID         bool
	attributes    bool
	add           bool
	oneTime       bool
	keyType       string
	certOut       string
	detached      bool
	debug         debugFlags
	refuseUnsplit string
	policy        policyFlag
	audit         auditFlag
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

A module can carry the signatures of several keys in one message, as when a key is
replaced, or when a vendor and an owner both sign. Repeat --key to sign with several
keys, with one --cert for each or none, and one --hash for all or one for each. --add
keeps the signers of a signed module and adds the new one, or replaces its older
signature; a module without a signature is simply signed. A kernel loads the module if
it trusts one signer. It rejects the module if it has revoked one, or knows the key of
one whose signature is wrong; --add does not check this, see modsign verify. All
signers must be named in the same way, with --key-id or without.

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

A key of ML-DSA signs the module itself, which Linux 7.0 and later take, and --hash only
names a hash: sha512, unless you name another. --mldsa-attrs signs the SHA-512 of the
module in signed attributes instead, in the form of sign-file with OpenSSL 3.5 and 3.6.
Only kernels with CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA take that; modsign
verify --mldsa-attrs judges like one.

--rsa batch signs eight modules at once with an RSA key, on processors with AVX-512
IFMA. Every signature is checked, but the code is younger than Go's own: for a key that
lives on, choose it yourself. One-time keys use it wherever they can.

--policy FILE says what may be signed with the key. Sign checks all modules before it
signs the first, names those that the policy refuses, and then signs none. A policy
has lines such as these; docs/policy.md describes all of them:

  policy 1
  path **/kernel/drivers/net/**
  not-path **/staging/**
  vermagic 6.12.0-4-* SMP *
  license GPL
  max-modules 200
  expires 2027-06-30

--audit FILE gets a line of JSON for each signature, which is on disk before the module
is replaced. If it cannot be written, the run ends.

--sync says when modules are flushed to disk: tree is one syncfs at the end, file is
an fsync before each rename, none leaves it to the system. --hash takes the names of
CONFIG_MODULE_SIG_HASH.`,
		Example: `  modsign sign --key certs/signing_key.pem /tmp/stage/lib/modules
  modsign sign --one-time --output signed modules
  modsign sign --add --key owner.pem /lib/modules/6.12.0-1-amd64/updates
  modsign sign --key mok.pem --cert mok.der --installed 6.12.0-1-amd64 --force-untrusted
  modsign sign --key key.pem --hash sha256 --detached --output sigs modules
  modsign sign --key key.pem --split-debug root/usr/lib/debug --compress xz root/lib/modules`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.keyOptions.addFlags(flags)
	repeat(flags, "key", &o.key, &o.more.keys, "sign with the private key in `FILE`, or by its URI (repeatable)")
	repeat(flags, "cert", &o.cert, &o.more.certs, "certificate `FILE`, one for each key (default: the key's file)")
	flags.BoolVar(&o.oneTime, "one-time", false, "make a key, sign with it, keep only its certificate")
	flags.BoolVar(&o.add, "add", false, "keep other signers of signed modules (short for --existing add)")
	flags.StringVar(&o.certOut, "cert-out", "", "with --one-time: write the certificate to `FILE`")
	flags.StringVar(&o.keyType, "key-type", "", "with --one-time: `TYPE` of the key (default: rsa:4096)")
	o.installedOptions.addFlags(flags)
	o.addFlags(flags, u)
	repeat(flags, "hash", (*string)(&o.hash), &o.more.hashes, flags.Lookup("hash").Usage)
	o.addForceUntrusted(flags)
	return cmd
}

// addFlags adds the flags of all commands that sign trees.
func (o *signOptions) addFlags(flags *pflag.FlagSet, u *ui) {
	o.hash.addFlag(flags)
	addKeyID(flags, &o.keyID)
	addAttributes(flags, &o.attributes)
	o.addRSA(flags)
	o.existing.addFlag(flags)
	flags.BoolVar(&o.detached, "detached", false, "write NAME.ko.p7s beside each module, leave the module")
	flags.BoolVar(&o.debug.strip, "strip-debug", false, "remove debug information first, as strip --strip-debug does")
	o.debug.addSplit(flags)
	o.policy.addFlag(flags)
	o.audit.addFlag(flags)
	flags.StringVar(&o.refuseUnsplit, "refuse-unsplit", "", "fail if `DIR` lacks the debug file of a module")
	o.compress.addFlag(flags)
	o.treeOptions.addFlags(flags, u)
}

// check refuses what makes no sense together.
func (o *signOptions) check(args []string) error {
	if err := checkOutput("--cert-out", o.certOut, args...); err != nil {
		return err
	}
	if err := checkOutput("--audit", string(o.audit), o.recordless(args)...); err != nil {
		return err
	}
	keys, adds := len(o.more.keys)+1, o.add || o.existing == "add"
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
	case o.add && o.existing != "add" && o.existing != "replace":
		return usagef("--add is short for --existing add: it excludes --existing %s", o.existing)
	case adds && o.detached:
		return usagef("--detached leaves modules as they are: it excludes --add and --existing add")
	case adds && o.debug.removes():
		return usagef("old signatures do not match a module that is stripped: " +
			"--strip-debug and --split-debug exclude --add and --existing add")
	case len(o.more.certs)+1 != keys && (keys > 1 && o.cert != "" || len(o.more.certs) > 0):
		return usagef("%d --key and %d --cert: give one --cert for each --key, in the same order, or none",
			keys, len(o.more.certs)+1)
	case len(o.more.hashes) > 0 && len(o.more.hashes)+1 != keys:
		return usagef("%d --key and %d --hash: give one --hash for each --key, in the same order, or one for all",
			keys, len(o.more.hashes)+1)
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
	keys, err := o.keys(p.kernel)
	if err != nil {
		return err
	}
	var log *audit.Log
	if !o.dryRun { // which signs nothing
		if log, err = o.audit.open(); err != nil {
			return err
		}
	}
	defer log.Close()
	for _, key := range keys {
		if key.pair, err = o.pair(ctx, u, key.options); err != nil {
			return err
		}
		recordIn(log, key.pair)
		defer closeKey(key.pair, &err)
	}
	said, err := o.accept(u, p.kernel, keys)
	if err != nil {
		return err
	}
	signer, how, err := o.signer(keys)
	if err != nil {
		return err
	}
	draft, err := signer.Draft()
	if err != nil {
		return err
	}
	if err := p.kernel.reads(draft); err != nil {
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
	w := work{ui: u, verb: "signing", options: p.options, how: how, xattr: true,
		inPlace: p.source.Output == "" && !o.detached}
	for _, key := range keys {
		w.said = append(w.said, key.options.notes.all()...)
	}
	w.said = append(w.said, said...)
	if p.options.Policy != nil { // before the certificate of a one-time key is written
		if err := checkPolicy(ctx, u, tree, signer, p.options); err != nil {
			return err
		}
	}
	do := func() error {
		return w.do(ctx, func(options sign.Options) (sign.Summary, error) { return tree.Sign(ctx, signer, options) })
	}
	if o.oneTime && !o.dryRun {
		err = o.withCert(ctx, &w, keys[0].pair, p.source.Roots, do)
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
	if o.add {
		o.existing = "add"
	}
	p, err := o.signingOptions.plan(args)
	if err != nil {
		return p, err
	}
	if p.options.Policy, err = o.policy.read(); err != nil {
		return p, err
	}
	p.options.Detached = o.detached
	p.options.DebugOptions, err = o.debug.options()
	return p, err
}

// recordless are the files and directories that must not be the record of signatures.
func (o *signOptions) recordless(args []string) []string {
	return slices.Concat([]string{o.key, o.cert, o.passphraseFile, o.certOut, string(o.policy)}, o.more.keys, o.more.certs,
		args)
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
