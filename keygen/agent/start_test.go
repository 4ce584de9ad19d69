package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// startedProcess is an agent for Start. A second line of its output is its error.
func startedProcess() {
	var o Options
	err := json.Unmarshal([]byte(os.Getenv("AGENT_OPTIONS")), &o)
	if err == nil {
		err = CloseInherited()
	}
	if err == nil && os.Getenv("AGENT_KEY") != "" {
		fmt.Fprintln(os.Stderr, "a note")
		o.Key, err = keygen.Load(os.Getenv("AGENT_KEY"), os.Getenv("AGENT_CERT"), keygen.LoadOptions{
			Passphrase: func() ([]byte, error) { return AskPassphrase(os.Stdout, os.Stdin) },
		})
	}
	if err == nil {
		err = Serve(context.Background(), o, func() error { return Detach(os.Stdout) })
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "first line\n%v\n", err)
		os.Exit(1)
	}
}

func TestStart(t *testing.T) {
	t.Parallel()
	cmd, o := agentCommand(t, nil)
	cmd.Env[0] = "AGENT_TEST=started agent"
	client, err := Start(t.Context(), cmd, o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if status, err := client.Status(); err != nil || status.PID != cmd.Process.Pid {
		t.Errorf("status is %+v (%v), want process %d", status, err, cmd.Process.Pid)
	}
	if err := client.Forget(); err != nil {
		t.Error(err)
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	cmd, o := agentCommand(t, func(o *Options) { o.Lifetime = -time.Hour })
	cmd.Env[0] = "AGENT_TEST=started agent"
	_, err := Start(t.Context(), cmd, o.Dir)
	failed, ok := errors.AsType[*StartError](err)
	if !ok || len(failed.Output) != 2 || failed.Output[0] != "first line" || err.Error() != failed.Output[1] {
		t.Errorf("error is %#v", err)
	}

	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	cmd, o = agentCommand(t, nil)
	if _, err := Start(ctx, cmd, o.Dir); !errors.Is(err, cause) {
		t.Errorf("after the end of the context: %v", err)
	}
}

// TestStartHolding starts an agent with an encrypted key. The passphrase is asked for once,
// and goes to the process alone.
func TestStartHolding(t *testing.T) {
	t.Parallel()
	const secret = "horse-battery = staple"
	key := testmod.NewKey(t, "ecdsa:p256")
	keyFile, certFile := key.Files(t)
	encrypted := keyFile + ".encrypted"
	testmod.Run(t, testmod.Program(t, "openssl", "openssl"), "pkcs8", "-topk8", "-in", keyFile, "-out", encrypted,
		"-passout", "pass:"+secret)
	if err := os.Chmod(encrypted, 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(path, passphrase string, refusal error) (*Client, []string, int, error) {
		t.Helper()
		cmd, o := agentCommand(t, nil)
		cmd.Env[0] = "AGENT_TEST=started agent"
		cmd.Env = append(cmd.Env, "AGENT_KEY="+path, "AGENT_CERT="+certFile)
		asked := 0
		client, said, err := StartHolding(t.Context(), cmd, o.Dir, func() ([]byte, error) {
			asked++
			return []byte(passphrase), refusal
		})
		return client, said, asked, err
	}
	for path, want := range map[string]int{encrypted: 1, keyFile: 0} {
		client, said, asked, err := start(path, secret, nil)
		if err != nil {
			t.Fatal(err)
		}
		if asked != want || !slices.Equal(said, []string{"a note"}) || !client.Certificate().Equal(key.Certificate) {
			t.Errorf("asked %d times, and said %q", asked, said)
		}
		if err := client.Forget(); err != nil {
			t.Error(err)
		}
		client.Close()
	}

	_, _, asked, err := start(encrypted, "wrong", nil)
	if failed, ok := errors.AsType[*StartError](err); !ok || asked != 1 {
		t.Errorf("wrong passphrase: asked %d times: %v", asked, err)
	} else if text := fmt.Sprint(failed.Output); strings.Contains(text, "wrong-") || !strings.Contains(text, encrypted) {
		t.Errorf("wrong passphrase: %s", text)
	}
	_, _, _, err = start(encrypted, "", keygen.ErrNoPassphrase)
	if failed, ok := errors.AsType[*StartError](err); !ok || !strings.Contains(failed.Error(), encrypted) {
		t.Errorf("no passphrase: %v", err)
	}
	refusal := errors.New("interrupted")
	if _, _, _, err = start(encrypted, "", refusal); err != refusal {
		t.Errorf("interrupted at the prompt: %v", err)
	}
}
