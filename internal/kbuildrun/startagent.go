package kbuildrun

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/modsign/modsign/internal/childenv"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
)

// An Agent is the key agent that a build needs, in the words of modsign agent serve. With a
// Key, which has a file or a URI, it holds that key, and makes none.
type Agent struct {
	Dir      string // of certificate, socket and receipt
	Tree     string // the object tree
	KeyType  string // empty for the type of the profile
	Hash     string // of the certificate's signature
	Genkey   string // file of the profile, an x509.genkey; may be empty
	Keep     string
	Lifetime time.Duration
	Profile  string // tells one configuration of the key from another

	Key, Cert     string
	AllowInsecure bool   // accept a key's file that others can read
	Policy        string // file
}

// Start starts the agent as another process of this program, which has this environment, and
// makes its directory.
// It returns when the agent answers. The agent outlives this process.
func (a Agent) Start(ctx context.Context, environ []string) (*agent.Client, error) {
	for _, path := range []*string{&a.Dir, &a.Tree, &a.Genkey} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		*path = absolute
	}
	if err := a.makeDir(); err != nil {
		return nil, err
	}
	// Where the socket goes, and the settings of Go's runtime; no PIN.
	cmd, err := a.command(slices.DeleteFunc(slices.Clone(environ), func(v string) bool {
		return !strings.HasPrefix(v, "XDG_RUNTIME_DIR=") && !strings.HasPrefix(v, "GO")
	}))
	if err != nil {
		return nil, err
	}
	client, err := agent.Start(ctx, cmd, a.Dir)
	if failed, ok := errors.AsType[*agent.StartError](err); ok {
		return nil, saidBy(failed)
	}
	return client, err
}

// Hold starts an agent that holds a key, and makes its directory. The agent has this
// environment without the PIN, as tokens and services are configured there; it asks for the
// passphrase if it needs one. Said is what it says about the key.
func (a Agent) Hold(
	ctx context.Context, environ []string, passphrase keygen.Passphrase,
) (client *agent.Client, said []string, err error) {
	if err := a.makeDir(); err != nil {
		return nil, nil, err
	}
	cmd, err := a.command(childenv.WithoutPIN(environ))
	if err != nil {
		return nil, nil, err
	}
	return agent.StartHolding(ctx, cmd, a.Dir, passphrase)
}

// makeDir makes the agent's directory in its tree, if it is not there.
func (a Agent) makeDir() error {
	tree, err := dirfd.Open(a.Tree)
	if err != nil {
		return err
	}
	defer tree.Close()
	dir, err := tree.MakeDir(Dir)
	if err != nil {
		return err
	}
	return dir.Close()
}

// command is the process of the agent.
func (a Agent) command(environ []string) (*exec.Cmd, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return &exec.Cmd{Path: program, Args: a.args(), Env: environ}, nil
}

// args are the arguments of modsign agent serve. The name is not that of this process,
// which may be sign-file.
func (a Agent) args() []string {
	args := []string{"modsign", "agent", "serve", "--lifetime", a.Lifetime.String()}
	for _, flag := range [][2]string{
		{"--dir", a.Dir}, {"--tree", a.Tree}, {"--key-type", a.KeyType}, {"--hash", a.Hash}, {"--genkey", a.Genkey},
		{"--keep", a.Keep}, {"--profile", a.Profile}, {"--key", a.Key}, {"--cert", a.Cert}, {"--policy", a.Policy},
	} {
		if flag[1] != "" {
			args = append(args, flag[:]...)
		}
	}
	if a.AllowInsecure {
		args = append(args, "--allow-insecure-key")
	}
	return args
}

// saidBy is the error of a modsign that ended, without its hints: they are for who runs it.
func saidBy(failed *agent.StartError) error {
	_, err := SaidBy(failed)
	return err
}

// SaidBy is the error of a modsign that ended, with its hint, if there is one.
func SaidBy(failed *agent.StartError) (hint string, err error) {
	err = failed
	for _, line := range failed.Output {
		line = strings.TrimPrefix(line, "modsign: ")
		if said, ok := strings.CutPrefix(line, "hint: "); ok {
			hint = said
			continue
		}
		hint, err = "", failed
		if line != "" {
			err = errors.New(line)
		}
	}
	return hint, err
}
