package main

import (
	"context"
	"crypto"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/sign"
)

func newKbuildMakeCommand(u *ui) *cobra.Command {
	var d kbuildrun.Driver
	cmd := &cobra.Command{
		Use:    "make --objtree DIR [--extmod DIR] -- [GOAL...]",
		Short:  "Do what the hook calls modsign for",
		Hidden: true,
		Long: `The hook calls make from within make. Make passes the goals on to the kernel's
Makefile, one after the other, with the certificate of a one-time key for goals that
may link a kernel. It installs and signs the modules of modules_install. The flags and variables of
the calling make come in MAKEFLAGS, as for any make below make.`,
		RunE: func(cmd *cobra.Command, goals []string) error { return kbuildMake(cmd.Context(), u, d, goals) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	addObjtree(flags, &d.Objtree)
	flags.StringVar(&d.ExtMod, "extmod", "", "directory `DIR` of an external module")
	flags.StringVar(&d.Make, "make", "make", "`PROGRAM` to call as make")
	flags.StringVar(&d.Program, "program", "", "`FILE` of the program modsign")
	addAgentEnd(flags, &d.Keep, &d.Lifetime)
	return cmd
}

func kbuildMake(ctx context.Context, u *ui, d kbuildrun.Driver, goals []string) error {
	d.Flags = kbuildrun.ParseMakeFlags(os.Getenv("MAKEFLAGS"))
	u.Quiet = d.Flags.Silent
	d.System, d.Front = thisSystem(u), kbuildFront{u}
	return fromDriver(d.Run(ctx, goals))
}

// thisSystem is what the driver may use of this process.
func thisSystem(u *ui) kbuildrun.System {
	return kbuildrun.System{
		Environ: os.Environ(), LookupEnv: os.LookupEnv,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		PIN: buildPIN,
		LoadKey: func(ctx context.Context, key, cert string) (*keygen.Pair, error) {
			keepSecrets()
			return loadKey(ctx, key, cert, keygen.LoadOptions{
				Passphrase: buildPIN, KeyOf: agent.KeyOf, Note: func(text string) { u.Note("%s", text) },
			})
		},
	}
}

// fromDriver gives an error of the driver its exit code and its hint.
func fromDriver(err error) error {
	if code, said := kbuildrun.StatusOf(err); said {
		return exitStatus(code)
	}
	if e, ok := errors.AsType[*kbuildrun.HintError](err); ok {
		return withHint(err, "%s", e.Hint)
	}
	return noHashes(err)
}

// Status is the exit code, for fromDriver.
func (e exitStatus) Status() int { return int(e) }

// kbuildFront has the words for what the driver does.
type kbuildFront struct{ *ui }

func (f kbuildFront) Sign(
	ctx context.Context, key *keygen.Pair, hash crypto.Hash, o sign.Options, pass kbuildrun.Pass,
) error {
	w := work{ui: f.ui, verb: "signing", how: signedWith(key.Certificate, hash), options: o}
	return w.do(ctx, pass)
}

func (f kbuildFront) Prove(ctx context.Context, o sign.Options, pass kbuildrun.Pass) error {
	w := work{ui: f.ui, verb: "proving", options: o}
	return w.do(ctx, pass)
}

func (f kbuildFront) Hash(
	ctx context.Context, source hashlist.Source, o hashlist.BuildOptions,
) (*hashlist.Built, error) {
	return buildHashes(ctx, f.ui, source, o)
}

func (f kbuildFront) Embedded(e *kbuildrun.Embedding) { noteEmbedded(f.ui, e) }

func (f kbuildFront) Unsigned(extmod string, why error) {
	f.Say("%s is installed unsigned: %s; a kernel that requires signatures rejects it until "+
		"modsign sign --key FILE signs it", extmod, inOneLine(why))
}

func (f kbuildFront) Rejected(r hashlist.Result) {
	if r.Err != nil {
		f.Say("%s", describe(r.Path, r.Err))
	} else {
		f.Say("%s: %s", r.Name, r)
	}
}
