package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/keygen/agent"
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
	template, algorithm, err := readProfile(o.Genkey, "key-type", o.KeyType, hashFlag(o.Hash))
	if err != nil {
		return err
	}
	// The terminal may go, and the starting process too.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(interrupt))
	defer cancel(nil)
	defer context.AfterFunc(interrupt, func() { cancel(errors.New("a signal")) })()
	err = agent.Serve(ctx, agent.Options{
		Algorithm:  algorithm,
		Template:   template,
		Dir:        o.Dir,
		Tree:       o.Tree,
		Installs:   installs,
		Lifetime:   o.Lifetime,
		Profile:    o.Profile,
		RuntimeDir: os.Getenv("XDG_RUNTIME_DIR"),
	}, func() error { return agent.Detach(os.Stdout) })
	if errors.Is(err, agent.ErrServed) {
		return withHint(err, "modsign agent forget ends it")
	}
	return err
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
