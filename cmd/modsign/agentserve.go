package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/keygen/agent"
)

// agentStart holds the flags of modsign agent serve, the process of a key agent.
type agentStart struct {
	Dir      string // of certificate, socket and receipt
	Tree     string // the object tree
	KeyType  string // as keygen --type; empty: the profile's, or rsa:4096
	Hash     string // of the certificate's signature; empty: the profile's, or sha512
	Genkey   string // the certificate's profile, an x509.genkey; may be empty
	Keep     string // installs=N; empty: any number
	Lifetime time.Duration
	Profile  string // text for agent status
}

func newAgentServeCommand(u *ui) *cobra.Command {
	var o agentStart
	cmd := &cobra.Command{
		Use:    "serve",
		Short:  "Run a key agent",
		Hidden: true,
		Args:   noArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return o.serve(cmd.Context(), u) },
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

// args is the command line that sets these options.
func (o *agentStart) args() []string {
	return []string{"agent", "serve", "--dir", o.Dir, "--tree", o.Tree, "--key-type", o.KeyType, "--hash", o.Hash,
		"--genkey", o.Genkey, "--keep", o.Keep, "--lifetime", o.Lifetime.String(), "--profile", o.Profile}
}

// serve is the key agent, in its own process. Until it answers, it writes its errors to
// standard error, which the starting process reads.
func (o *agentStart) serve(interrupt context.Context, u *ui) error {
	hideFromStart(u)
	if err := agent.CloseInherited(); err != nil {
		return err
	}
	installs, err := parseKeep(o.Keep)
	if err != nil {
		return err
	}
	template, algorithm, err := readProfile(o.Genkey)
	if err != nil {
		return err
	}
	if algorithm, err = keyType("key-type", o.KeyType, algorithm); err != nil {
		return err
	}
	if template.Hash, err = hashFlag(o.Hash).or(template.Hash); err != nil {
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

// startAgent starts a key agent and returns when it answers. The agent outlives this
// program.
func startAgent(ctx context.Context, o agentStart) (*agent.Client, error) {
	for _, path := range []*string{&o.Dir, &o.Tree, &o.Genkey} {
		if *path == "" {
			continue
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	client, err := agent.Start(ctx, &exec.Cmd{
		Path: program,
		Args: append([]string{"modsign"}, o.args()...), // not os.Args[0], which may be sign-file
		// Where the socket goes, and the settings of Go's runtime; no PIN.
		Env: slices.DeleteFunc(os.Environ(), func(v string) bool {
			return !strings.HasPrefix(v, "XDG_RUNTIME_DIR=") && !strings.HasPrefix(v, "GO")
		}),
	}, o.Dir)
	if failed, ok := errors.AsType[*agent.StartError](err); ok {
		return nil, saidBy(failed)
	}
	return client, err
}

// saidBy is the error of a modsign that ended, without its hints: they are for who runs it.
func saidBy(failed *agent.StartError) error {
	for _, line := range slices.Backward(failed.Output) {
		if text := strings.TrimPrefix(line, "modsign: "); !strings.HasPrefix(text, "hint: ") {
			return errors.New(text)
		}
	}
	return failed
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
		return 0, usagef("--keep: %q is not of the form installs=N, N at least 1", keep)
	}
	return installs, nil
}
