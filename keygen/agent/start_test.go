package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
)

// startedProcess is an agent for Start. A second line of its output is its error.
func startedProcess() {
	var o Options
	err := json.Unmarshal([]byte(os.Getenv("AGENT_OPTIONS")), &o)
	if err == nil {
		err = CloseInherited()
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
