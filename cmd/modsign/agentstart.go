package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/keygen/keystore"
)

func newAgentStartCommand(u *ui) *cobra.Command {
	var key keyOptions
	var policy policyFlag
	var objtree string
	var lifetime time.Duration
	var one oneTimeAgent
	cmd := &cobra.Command{
		Use:   "start {--key FILE | --one-time} [DIR]",
		Short: "Hold a key open for an object tree",
		Long: `Open a key once and start a key agent that holds it for the object tree DIR, by
default the current directory. The key can be any that modsign sign takes: a file, or
a key in a token or a service by its URI. Start asks for the passphrase or PIN, if the
key has one. The agent opens the key itself, so that start returns when the key is open.

DIR/.modsign/certificate.pem then stands for the key in every command. In a kernel's
build whose CONFIG_MODULE_SIG_KEY is the URI of the key, make modules_install uses the
agent, and so does each sign-file that a package goal such as bindeb-pkg calls, if
certs/signing_key.x509 is the agent's certificate.

Every process of this user, and root, can sign with the key until the agent ends: at
modsign agent forget, at the end of its lifetime, when DIR is gone, or when the key is
lost. make clean does not end it. The receipt that it leaves is not signed, because the
key lives on.

With --one-time the agent makes a key of its own, which is never in a file and is
destroyed when the agent ends: its last act is a receipt, which modsign receipt
checks. DIR is then any directory, on the machine that signs for the builder with
modsign sign-digests: docs/review.md. In a kernel's build with the hook, make starts
such an agent by itself.

--policy FILE limits what the agent signs: see docs/policy.md. Each client tells the
path of the module, and the agent cannot check it; with a list of hashes and
--hash sha256, it signs nothing else. The agent cannot see the modules, so that it
takes no policy with vermagic or license.`,
		Example: `  modsign agent start --key 'pkcs11:token=kernel;object=modules' --passphrase-file pin build
  modsign agent start --key key.pem --policy kernel.policy --lifetime 2h
  modsign agent start --one-time --type ecdsa:p384 signer
  modsign sign --key build/.modsign/certificate.pem modules`,
		Args: treeArg(&objtree),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return startAgent(cmd.Context(), u, objtree, &key, one, policy, lifetime)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	key.addFlags(flags)
	flags.BoolVar(&one.wanted, "one-time", false, "make a key that is destroyed when the agent ends")
	flags.StringVar(&one.keyType, "type", "", "`TYPE` of the one-time key, as in keygen (default rsa:4096)")
	policy.addFlag(flags)
	flags.Lookup("policy").Usage = "sign only what the policy in `FILE` allows"
	flags.DurationVar(&lifetime, "lifetime", 24*time.Hour, "end the agent after `DURATION`")
	addObjtree(flags, &objtree)
	return cmd
}

// oneTimeAgent are the flags of an agent that makes its own key.
type oneTimeAgent struct {
	wanted  bool
	keyType string
}

func startAgent(
	ctx context.Context, u *ui, objtree string, key *keyOptions, one oneTimeAgent, policy policyFlag,
	lifetime time.Duration,
) error {
	switch {
	case one.wanted && key.key != "":
		return usagef("--one-time makes a key, and --key takes one: give one")
	case one.wanted && key.cert != "":
		return usagef("--one-time makes a certificate, and --cert takes one: give one")
	case !one.wanted && one.keyType != "":
		return usagef("--type is for --one-time")
	case !one.wanted && key.key == "":
		return usagef("no key: give --key FILE, or --one-time")
	}
	if keystore.IsURI(key.key) && keystore.Redact(key.key) != key.key {
		return usagef("--key: the agent would keep the PIN of this URI in the list of processes: use --passphrase-file")
	}
	if one.wanted {
		one.keyType = cmp.Or(one.keyType, "rsa:4096")
		if _, err := keygen.ParseAlgorithm(one.keyType); err != nil {
			return usagef("--type: %v", err)
		}
	}
	if lifetime <= 0 {
		return usagef("--lifetime: %v is not positive", lifetime)
	}
	dir := filepath.Join(objtree, kbuildrun.Dir)
	if other, err := agent.Dial(dir); err == nil { // before somebody types a PIN
		defer other.Close()
		if !other.Kept() {
			return withHint(fmt.Errorf("%s: %w", dir, agent.ErrServed),
				"modsign agent forget ends it and destroys its one-time key: install the modules of its kernel first")
		}
		return served(dir)
	}
	keepSecrets()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	wanted := kbuildrun.Agent{
		Dir: dir, Tree: filepath.Dir(dir), Lifetime: lifetime,
		Key: key.key, Cert: key.cert, AllowInsecure: key.allowInsecure, Policy: string(policy),
	}
	var client *agent.Client
	var said []string
	if one.wanted {
		wanted.KeyType = one.keyType
		client, err = wanted.Start(ctx, os.Environ())
	} else {
		client, said, err = wanted.Hold(ctx, os.Environ(), func() ([]byte, error) {
			return key.passphrase(ctx, u, key.key)
		})
	}
	if failed, ok := errors.AsType[*agent.StartError](err); ok {
		hint, err := kbuildrun.SaidBy(failed)
		if hint != "" {
			err = withHint(err, "%s", hint)
		}
		return err
	}
	if err != nil {
		return err
	}
	defer client.Close()
	for _, line := range said {
		u.Note("%s", strings.TrimPrefix(line, "modsign: "))
	}
	holds := "holds"
	if one.wanted {
		holds = "has made a one-time key and holds"
	}
	u.Say("the key agent of %s %s %q for %v; %s stands for the key",
		objtree, holds, client.Certificate().Subject.CommonName, lifetime, filepath.Join(objtree, kbuildrun.Certificate))
	return nil
}
