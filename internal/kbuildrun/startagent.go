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

	"github.com/modsign/modsign/keygen/agent"
)

// An Agent is the key agent that a build needs, in the words of modsign agent serve.
type Agent struct {
	Dir      string // of certificate, socket and receipt
	Tree     string // the object tree
	KeyType  string // empty for the type of the profile
	Hash     string // of the certificate's signature
	Genkey   string // file of the profile, an x509.genkey; may be empty
	Keep     string
	Lifetime time.Duration
	Profile  string // tells one configuration of the key from another
}

// Start starts the agent as another process of this program, which has this environment.
// It returns when the agent answers. The agent outlives this process.
func (a Agent) Start(ctx context.Context, environ []string) (*agent.Client, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for _, path := range []*string{&a.Dir, &a.Tree, &a.Genkey} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	client, err := agent.Start(ctx, &exec.Cmd{
		Path: program,
		Args: a.args(),
		// Where the socket goes, and the settings of Go's runtime; no PIN.
		Env: slices.DeleteFunc(slices.Clone(environ), func(v string) bool {
			return !strings.HasPrefix(v, "XDG_RUNTIME_DIR=") && !strings.HasPrefix(v, "GO")
		}),
	}, a.Dir)
	if failed, ok := errors.AsType[*agent.StartError](err); ok {
		return nil, saidBy(failed)
	}
	return client, err
}

// args are the arguments of modsign agent serve. The name is not that of this process,
// which may be sign-file.
func (a Agent) args() []string {
	args := []string{"modsign", "agent", "serve", "--lifetime", a.Lifetime.String()}
	for _, flag := range [][2]string{
		{"--dir", a.Dir}, {"--tree", a.Tree}, {"--key-type", a.KeyType}, {"--hash", a.Hash}, {"--genkey", a.Genkey},
		{"--keep", a.Keep}, {"--profile", a.Profile},
	} {
		if flag[1] != "" {
			args = append(args, flag[:]...)
		}
	}
	return args
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
