package agent

import (
	"crypto"
	"crypto/rsa"
	"os"
	"slices"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// TestSpied has a spy of the agent's own user open the memory of every new
// process. It gets the key of an agent that closes its memory when it runs already,
// and nothing of one that is closed from the start.
func TestSpied(t *testing.T) {
	testmod.Slow(t, "compiles a program that reads the memory of others")
	program := testmod.BuildSpy(t)
	for name, user := range testmod.SpiedUsers(t) {
		t.Run(name, func(t *testing.T) { spiedAgent(t, program, user) })
	}
}

func spiedAgent(t *testing.T, program string, user []string) {
	// As often as it takes to win once, and then as often again.
	const tries = 50
	won := 0
	for i := 1; won == 0; i++ {
		status, _, prime := spyOn(t, "open agent", program, user)
		if prime {
			won = i
		} else if i == tries {
			t.Fatalf("the spy got nothing of %d open agents: it is no test", tries)
		}
		if status.MemoryHidden {
			t.Error("an open agent says that its memory is hidden")
		}
	}
	for range 2*won + 3 {
		status, open, prime := spyOn(t, "agent", program, user)
		if prime {
			t.Fatal("the spy has a prime of the key")
		}
		if open != "" || !status.MemoryHidden {
			t.Errorf("open to the agent's own user: %q; memory_hidden is %t", open, status.MemoryHidden)
		}
	}
	t.Logf("the spy won at try number %d, and lost %d tries", won, 2*won+3)
}

// spyOn starts an agent before the eyes of a spy. It returns what the agent says of
// itself, what of it is open to its user, and whether the spy has its key.
func spyOn(t *testing.T, mode, program string, user []string) (status Status, open string, prime bool) {
	t.Helper()
	spy := testmod.StartSpy(t, program, user)
	cmd, o := agentCommand(t, func(o *Options) { o.Algorithm = keygen.RSA2048 })
	if os.Geteuid() == 0 && len(user) > 2 { // not root
		for _, dir := range []string{o.Tree, o.Dir, o.RuntimeDir} {
			if err := os.Chown(dir, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd.Env[0] = "AGENT_TEST=" + mode
	cmd.Path, cmd.Args = user[0], append(slices.Clone(user), "/proc/self/exe")
	run := startNobody(t, cmd, o)
	agent := run.dial(t)
	mustSign(t, agent.Pair().Signer, sum("x"), crypto.SHA256)
	status, err := agent.Status()
	if err != nil {
		t.Fatal(err)
	}
	open, memory := spy.Report(t, run.pid)
	if err := agent.Forget(); err != nil {
		t.Fatal(err)
	}
	run.wait(t)
	if receipt := run.receipt(t); receipt.MemoryHidden != status.MemoryHidden {
		t.Errorf("%s: memory_hidden is %t in the receipt and %t in the status", mode, receipt.MemoryHidden,
			status.MemoryHidden)
	}
	return status, open, testmod.FindPrime(memory, agent.Certificate().PublicKey.(*rsa.PublicKey).N) != nil
}
