package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
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
	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/keygen/agent"
)

func newAgentCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Look after the one-time key of a kernel's build",
		Long: `Agent is about the process that holds the one-time key of an object tree in its
memory (modsign kbuild enable has make start it): how it is, how to end it, and
what it left. It signs for its user and for root, and ends, and the key with it,
when it is told to forget the key, after make clean, after the allowed number of
installs, at the end of its lifetime, or when the object tree is gone.`,
		Example: `  modsign agent status
  modsign agent forget build
  modsign agent receipt build/.modsign/receipt-0123456789abcdef.json`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAgentStatusCommand(u), newAgentForgetCommand(u), newAgentReceiptCommand(u), newAgentServeCommand(u))
	return cmd
}

// memoryOpen is said where memory_hidden is false.
const memoryOpen = "other processes of its user could open the agent's memory while it started"

// treeArg has a command take the object tree as its argument, as it does with
// --objtree.
func treeArg(objtree *string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) > 1:
			return usagef("unexpected argument %q", args[1])
		case len(args) == 1 && cmd.Flags().Changed("objtree"):
			return usagef("%q and --objtree both name the object tree: give one", args[0])
		case len(args) == 1:
			*objtree = args[0]
		}
		return nil
	}
}

// interruptible does what may wait for another process. A signal does not wait.
func interruptible(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func dialAgent(objtree string) (*agent.Client, error) {
	return agent.Dial(filepath.Join(objtree, kbuildrun.Dir))
}

type jsonAgent struct {
	Type string `json:"message_type"` // agent
	agent.Status
}

func newAgentStatusCommand(u *ui) *cobra.Command {
	var objtree string
	cmd := &cobra.Command{
		Use:   "status [DIR]",
		Short: "Show how the key agent of an object tree is",
		Long: `Status shows the key agent of an object tree, DIR or here. Without an agent it
says why, and exits with 1.`,
		Args: treeArg(&objtree),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var client *agent.Client
			var s agent.Status
			err := interruptible(cmd.Context(), func() (err error) {
				if client, err = dialAgent(objtree); err == nil {
					s, err = client.Status()
				}
				return err
			})
			if err != nil {
				return err
			}
			defer client.Close()
			if u.json {
				u.object(jsonAgent{"agent", s})
				return nil
			}
			field := func(name, format string, args ...any) { u.result("%-16s%s", name+":", fmt.Sprintf(format, args...)) }
			field("pid", "%d", s.PID)
			field("key", "%s", s.Algorithm)
			field("certificate", "%q, SHA-256 %s", client.Certificate().Subject.CommonName, s.Certificate)
			field("born", "%s", s.Born.Format(time.RFC3339))
			field("ends", "%s at the latest", s.Ends.Format(time.RFC3339))
			allowed := "any number allowed"
			if s.InstallsAllowed > 0 {
				allowed = fmt.Sprintf("%d allowed", s.InstallsAllowed)
			}
			field("installs", "%d, %s", s.Installs, allowed)
			field("signatures", "%d", s.Signatures)
			field("memory_locked", "%t", s.MemoryLocked)
			field("memory_hidden", "%t", s.MemoryHidden)
			if !s.MemoryHidden {
				u.say("warning: %s", memoryOpen)
			}
			if s.Warning != "" {
				u.say("warning: %s", s.Warning)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&objtree, "objtree", ".", "the object tree: `DIR`")
	flags.BoolVar(&u.json, "json", false, "write one JSON object")
	return cmd
}

func newAgentForgetCommand(u *ui) *cobra.Command {
	var objtree string
	cmd := &cobra.Command{
		Use:   "forget [DIR]",
		Short: "Destroy the one-time key of an object tree",
		Long: `Forget ends the key agent of an object tree, DIR or here, and returns when the key
is gone and its receipt is written. Without an agent it says why, and exits with 1.`,
		Args: treeArg(&objtree),
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := interruptible(cmd.Context(), func() error {
				client, err := dialAgent(objtree)
				if err != nil {
					return err
				}
				defer client.Close()
				return client.Forget()
			})
			if err != nil {
				return err
			}
			u.say("the one-time key of %s is gone; its receipt is in %s", objtree, filepath.Join(objtree, kbuildrun.Dir))
			return nil
		},
	}
	cmd.Flags().StringVar(&objtree, "objtree", ".", "the object tree: `DIR`")
	return cmd
}

type jsonReceipt struct {
	Type string `json:"message_type"` // receipt
	*agent.Receipt
	Modules int `json:"modules"`
}

func newAgentReceiptCommand(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "receipt {FILE | DIR} [PATH...]",
		Short: "Check what a key agent left of its key",
		Long: `Receipt checks the receipt that a key agent left at its end, .modsign/receipt-*.json
in the object tree, and shows it. For an object tree, DIR, it takes the newest one
there. The receipt is signed by the key as its last act. With modules, or folders of them, it also checks that the key signed exactly these and
nothing else, by the SHA-256 of the list of all digests that it signed.

Compare the certificate's SHA-256 with that of the certificate in the kernel. An
RSA receipt can be made by the agent alone. For an ECDSA key that does not hold:
who was allowed to use the agent could have had it sign a receipt of their own.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no receipt: name its file, or the object tree")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return showReceipt(cmd.Context(), u, args[0], args[1:]) },
	}
	cmd.Flags().BoolVar(&u.json, "json", false, "write one JSON object")
	return cmd
}

func showReceipt(ctx context.Context, u *ui, path string, roots []string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if path, err = agent.NewestReceipt(filepath.Join(path, kbuildrun.Dir)); err != nil {
			return err
		}
		u.note("%s:", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := agent.ReadReceipt(f)
	if err == nil {
		err = r.Check()
	}
	if err != nil {
		return &failure{code: exitRefused, err: errors.New(describe(path, err))}
	}
	modules := 0
	if len(roots) > 0 {
		if modules, err = matchReceipt(ctx, r, roots); err != nil {
			return err
		}
	}
	if u.json {
		u.object(jsonReceipt{"receipt", r, modules})
		return nil
	}
	field := func(name, format string, args ...any) { u.result("%-16s%s", name+":", fmt.Sprintf(format, args...)) }
	field("key", "%s", r.Algorithm)
	field("certificate", "SHA-256 %s", r.CertificateSHA256)
	field("born", "%s", r.Born.Format(time.RFC3339))
	field("died", "%s", r.Died.Format(time.RFC3339))
	field("reason", "%s", r.Reason)
	field("signatures", "%d", r.Signatures)
	field("digests", "SHA-256 %s", r.DigestsSHA256)
	field("installs", "%d", r.Installs)
	field("memory_locked", "%t", r.MemoryLocked)
	field("memory_hidden", "%t", r.MemoryHidden)
	if !r.MemoryHidden {
		u.note("%s", memoryOpen)
	}
	if strings.HasPrefix(r.Algorithm, "ecdsa:") {
		u.note("receipt is good, as far as that of an ECDSA key goes: who was allowed to use the agent could have had it sign another one")
	} else {
		u.note("receipt is good")
	}
	if len(roots) > 0 {
		u.note("the key signed exactly %s, and nothing else", plural(modules, "module"))
	}
	return nil
}

// matchReceipt checks that the modules are those that the key signed, and returns
// how many they are.
func matchReceipt(ctx context.Context, r *agent.Receipt, roots []string) (int, error) {
	found, err := module.FindLoadable(nil, roots)
	if err != nil {
		return 0, err
	}
	entries := found.Entries
	cert, err := r.X509()
	if err != nil {
		return 0, err
	}
	signer, err := cms.ParseCertificate(cert.Raw)
	if err != nil {
		return 0, err
	}
	digests := make(agent.Digests)
	for _, e := range entries {
		if err := addDigest(ctx, digests, e, cms.NewKeyring(signer)); err != nil {
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			_, untrusted := errors.AsType[*cms.Error](err)
			_, malformed := errors.AsType[*module.FormatError](err)
			if untrusted || malformed || err == module.ErrNotSigned {
				return 0, &failure{code: exitRefused, err: fmt.Errorf("%s is not signed by the key of this receipt: %w", e.Path, err)}
			}
			return 0, errors.New(describe(e.Path, err))
		}
	}
	if digests.SHA256() != r.DigestsSHA256 {
		return 0, &failure{code: exitRefused, err: fmt.Errorf("the key did not sign exactly these %s, but others too, or them in another form (unstripped, say)", plural(len(entries), "module"))}
	}
	return len(entries), nil
}

// addDigest adds the digest that the signature of a module is over.
func addDigest(ctx context.Context, digests agent.Digests, e module.Entry, keys *cms.Keyring) error {
	m, err := e.Open(ctx, module.Limits{})
	if err != nil {
		return err
	}
	defer m.Close()
	layer, err := module.Check(m, m.Size, module.TypePKCS7)
	if err != nil {
		return err
	}
	signature, err := layer.Signature(m)
	if err != nil {
		return err
	}
	message, err := cms.Parse(signature)
	if err != nil {
		return err
	}
	_, err = message.Check(func(h crypto.Hash) ([]byte, error) {
		sum := h.New()
		_, err := io.Copy(sum, module.Reader(ctx, m.Payload(layer.Offset)))
		digests.Add(h, sum.Sum(nil))
		return sum.Sum(nil), err
	}, keys, nil)
	return err
}

// agentStart is how a key agent is started: the flags of modsign agent serve.
type agentStart struct {
	Dir      string // of certificate, socket and receipt
	Tree     string // the object tree
	KeyType  string // as keygen --type; empty: the profile's, or rsa:4096
	Hash     string // of the certificate's signature; empty: the profile's, or sha512
	Genkey   string // the profile, an x509.genkey; may be empty
	Keep     string // installs=N; empty: any number
	Lifetime time.Duration
	Profile  string
}

// parseKeep reads --keep: after how many installs the key is destroyed, 0 for any
// number.
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

func newAgentServeCommand(u *ui) *cobra.Command {
	var o agentStart
	cmd := &cobra.Command{
		Use:    "serve",
		Short:  "Be a key agent",
		Hidden: true,
		Args:   noArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return o.serve(cmd.Context(), u) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Dir, "dir", "", "serve in `DIR`")
	flags.StringVar(&o.Tree, "tree", "", "end when `DIR` is gone")
	flags.StringVar(&o.KeyType, "key-type", "", "the `TYPE` of key, as in keygen --type")
	flags.StringVar(&o.Hash, "hash", "", "`NAME` of the hash that the certificate is signed with")
	flags.StringVar(&o.Genkey, "genkey", "", "take the profile from `FILE`, an x509.genkey")
	flags.StringVar(&o.Profile, "profile", "", "`TEXT` for agent status")
	addAgentEnd(flags, &o.Keep, &o.Lifetime)
	cobra.MarkFlagRequired(flags, "dir")
	cobra.MarkFlagRequired(flags, "tree")
	return cmd
}

// agentReady is what an agent writes when it answers.
const agentReady = "ready"

// serve is the key agent, in its own process. Until it answers, it speaks to who
// started it over stdout and stderr; after that to nobody.
func (o *agentStart) serve(interrupt context.Context, u *ui) error {
	hideFromStart(u)
	if err := closeInherited(); err != nil {
		return err
	}
	installs, err := parseKeep(o.Keep)
	if err != nil {
		return err
	}
	profile := keygenOptions{keyType: o.KeyType, hash: o.Hash, config: o.Genkey}
	template, algorithm, err := profile.template()
	if err != nil {
		return err
	}
	// The terminal may go, and who started it too.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(interrupt))
	defer cancel(nil)
	defer context.AfterFunc(interrupt, func() { cancel(errors.New("a signal")) })()
	return agent.Serve(ctx, agent.Options{
		Algorithm:  algorithm,
		Template:   template,
		Dir:        o.Dir,
		Tree:       o.Tree,
		Installs:   installs,
		Lifetime:   o.Lifetime,
		Profile:    o.Profile,
		RuntimeDir: os.Getenv("XDG_RUNTIME_DIR"),
	}, func() error {
		if _, err := fmt.Println(agentReady); err != nil {
			return err
		}
		return silence()
	})
}

// closeInherited closes the descriptors that came from who started this process:
// all that close at no exec, as none of its own do. A pipe that make reads would
// not end before this process does.
func closeInherited() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
	return nil
}

// silence gives stdin, stdout and stderr up.
func silence() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("cannot let go of descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// startAgent starts a key agent, and returns when it answers. It lives on when
// this program ends, in a session of its own.
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
	said, says, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer said.Close()
	cmd := &exec.Cmd{
		Path: program,
		// Not os.Args[0], which may be sign-file.
		Args: []string{"modsign", "agent", "serve", "--dir", o.Dir, "--tree", o.Tree, "--key-type", o.KeyType, "--hash", o.Hash,
			"--genkey", o.Genkey, "--keep", o.Keep, "--lifetime", o.Lifetime.String(), "--profile", o.Profile},
		Dir:    "/",
		Stdout: says,
		Stderr: says,
		// Where the socket goes, and the settings of Go's runtime; no PIN.
		Env: slices.DeleteFunc(os.Environ(), func(v string) bool {
			return !strings.HasPrefix(v, "XDG_RUNTIME_DIR=") && !strings.HasPrefix(v, "GO")
		}),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	says.Close()
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // so that it leaves no zombie if it ends before this program
		close(ended)
	}()
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()

	lines := bufio.NewScanner(said)
	var last string
	for lines.Scan() {
		if lines.Text() == agentReady && stop() { // else it has been told to end
			return agent.Dial(o.Dir)
		}
		if !strings.HasPrefix(lines.Text(), "modsign: hint: ") {
			last = strings.TrimPrefix(lines.Text(), "modsign: ")
		}
	}
	if ctx.Err() != nil {
		<-ended // it has been told to, and has its socket to remove
		return nil, context.Cause(ctx)
	}
	return nil, errors.New(cmp.Or(last, "the key agent ended before it answered"))
}
