package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/sign/policy"
)

func newAgentServeCommand(u *ui) *cobra.Command {
	var o kbuildrun.Agent
	cmd := &cobra.Command{
		Use:    "serve",
		Short:  "Run a key agent",
		Hidden: true,
		Args:   noArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return serveAgent(cmd.Context(), u, o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Dir, "dir", "", "serve in `DIR`")
	flags.StringVar(&o.Tree, "tree", "", "end when `DIR` is gone")
	flags.StringVar(&o.KeyType, "key-type", "", "key `TYPE`, as in keygen --type")
	flags.StringVar(&o.Hash, "hash", "", "hash `NAME` for the certificate's signature")
	flags.StringVar(&o.Genkey, "genkey", "", "certificate profile `FILE`, an x509.genkey")
	flags.StringVar(&o.Profile, "profile", "", "`TEXT` for agent status")
	flags.StringVar(&o.Key, "key", "", "hold the private key in `FILE`, or with a URI")
	flags.StringVar(&o.Cert, "cert", "", "certificate `FILE` of that key")
	flags.BoolVar(&o.AllowInsecure, "allow-insecure-key", false, "accept a private key that others can access")
	flags.StringVar(&o.Policy, "policy", "", "sign only what the policy in `FILE` allows")
	addAgentEnd(flags, &o.Keep, &o.Lifetime)
	cobra.MarkFlagRequired(flags, "dir")
	cobra.MarkFlagRequired(flags, "tree")
	return cmd
}

// serveAgent is the key agent, in its own process. Until it answers, it writes its errors to
// standard error, which the starting process reads.
func serveAgent(interrupt context.Context, u *ui, o kbuildrun.Agent) error {
	hideFromStart(u)
	if err := agent.CloseInherited(); err != nil {
		return err
	}
	installs, err := parseKeep(o.Keep)
	if err != nil {
		return err
	}
	allow, err := policyOfAgent(policyFlag(o.Policy))
	if err != nil {
		return err
	}
	template, algorithm, err := readProfile(o.Genkey, "key-type", o.KeyType, hashFlag(o.Hash))
	if err != nil {
		return err
	}
	// The terminal may go, and the starting process too.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(interrupt))
	defer cancel(nil)
	defer context.AfterFunc(interrupt, func() { cancel(errors.New("a signal")) })()
	var key *keygen.Pair
	var ending func()
	if o.Key != "" {
		if key, ending, err = heldKey(ctx, u, o); err != nil {
			return err
		}
	}
	err = agent.Serve(ctx, agent.Options{
		Algorithm:  algorithm,
		Template:   template,
		Key:        key,
		Ending:     ending,
		Allow:      allow,
		Dir:        o.Dir,
		Tree:       o.Tree,
		Installs:   installs,
		Lifetime:   o.Lifetime,
		Profile:    o.Profile,
		RuntimeDir: os.Getenv("XDG_RUNTIME_DIR"),
	}, func() error { return agent.Detach(os.Stdout) })
	if errors.Is(err, agent.ErrServed) {
		return served(o.Dir)
	}
	return err
}

// served is the error about a directory that has an agent.
func served(dir string) error {
	return withHint(fmt.Errorf("%s: %w", dir, agent.ErrServed), "modsign agent forget ends it")
}

// heldKey opens the key that the agent holds, while the process that started the agent waits
// and can ask for its passphrase. At the end of the agent, ending gives it keyGrace for the
// signatures under way.
func heldKey(ctx context.Context, u *ui, o kbuildrun.Agent) (key *keygen.Pair, ending func(), err error) {
	keepSecrets()
	open, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	key, err = loadKey(open, o.Key, o.Cert, keygen.LoadOptions{
		AllowInsecure: o.AllowInsecure,
		Passphrase:    func() ([]byte, error) { return agent.AskPassphrase(os.Stdout, os.Stdin) },
		Note:          func(text string) { u.Note("%s", text) },
	})
	if err != nil {
		end(nil)
		return nil, nil, nameInsecureFlag(err)
	}
	if !stop() { // a signal has come
		key.Close()
		return nil, nil, context.Cause(ctx)
	}
	ending = func() { time.AfterFunc(keyGrace, func() { end(errors.New("the key agent ends")) }) }
	return key, ending, nil
}

// keyGrace is less than a client waits for an answer.
const keyGrace = 5 * time.Second

// policyOfAgent returns what judges the signatures of an agent, or nil without a policy. The
// count of max-modules is that of the agent's life.
func policyOfAgent(flag policyFlag) (func(string, crypto.Hash, []byte) error, error) {
	p, err := flag.read()
	if p == nil || err != nil {
		return nil, err
	}
	if err := p.CheckManifest(crypto.SHA256); err != nil {
		return nil, withHint(fmt.Errorf("%w: an agent sees digests alone", err),
			"modsign sign --policy reads the modules")
	}
	var mu sync.Mutex
	signed := 0
	return func(path string, hash crypto.Hash, digest []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if path == "" {
			return fmt.Errorf("refused: %s judges modules by their paths, and the client tells none", p.Name())
		}
		if err := p.CheckRun(time.Now(), hash, signed+1); err != nil {
			return err
		}
		m := policy.Module{Path: path}
		if hash == crypto.SHA256 {
			m.SHA256 = digest
		}
		if err := p.Check(&m); err != nil {
			return err
		}
		signed++
		return nil
	}, nil
}

// parseKeep reads --keep: the number of installs after which the key is destroyed, 0 for
// no limit.
func parseKeep(keep string) (installs int, err error) {
	if keep == "" {
		return 0, nil
	}
	number, ok := strings.CutPrefix(keep, "installs=")
	installs, err = strconv.Atoi(number)
	if !ok || err != nil || installs < 1 {
		return 0, usagef("--keep: invalid value %q: want installs=N, N at least 1", keep)
	}
	return installs, nil
}
