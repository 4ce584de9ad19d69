package agent

import (
	"bufio"
	"bytes"
	"crypto"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// TestWidth checks that a client has no more requests under way than an agent and its own
// descriptors have room for, and no fewer than few processors need.
func TestWidth(t *testing.T) {
	for _, c := range []struct{ procs, batch, descriptors, want int }{
		{2, 0, 1 << 20, 4}, {2, 1, 1 << 20, 4}, {2, 8, 1 << 20, 36}, {4, 8, 1 << 20, 56},
		{24, 0, 1 << 20, 48}, {24, 8, 1 << 20, 64}, {128, 0, 1 << 20, 64}, {128, 8, 1 << 20, 64},
		{24, 8, 1024, 64}, {24, 8, 64, 16}, {24, 8, 3, 1}, {2, 0, 40, 4},
	} {
		if got := width(c.procs, c.batch, c.descriptors); got != c.want {
			t.Errorf("%d processors, batches of %d, %d descriptors: %d, want %d", c.procs, c.batch, c.descriptors, got, c.want)
		}
	}
	if n := width(128, 8, 1<<20); 4*n > maxConnections {
		t.Errorf("%d requests of a client, and an agent has only %d connections", n, maxConnections)
	}
}

// TestBatchOfAgent checks that a client learns from the agent whether it signs in batches.
func TestBatchOfAgent(t *testing.T) {
	for _, batch := range []int{0, 8} {
		s := &server{cert: testmod.NewKey(t, "rsa:2048").Certificate, batch: batch}
		if got := s.answer(wireRequest{Op: "certificate"}).Batch; got != batch {
			t.Errorf("batches of %d: the agent says %d", batch, got)
		}
		if got := (remoteKey{&Client{cert: s.cert, batch: batch}}).BatchSize(); got != max(1, batch) {
			t.Errorf("batches of %d: the key says %d", batch, got)
		}
	}
}

// TestMoreRequestsThanConnections has clients with more requests at once than the agent
// has connections. Each gets its answer, and the agent signs none of them twice.
func TestMoreRequestsThanConnections(t *testing.T) {
	testmod.Slow(t, "it makes hundreds of signatures")
	t.Parallel()
	for name, c := range map[string]struct {
		start   func(*exec.Cmd, Options) *agentRun
		clients int
		wide    int
	}{
		"connections": {func(cmd *exec.Cmd, o Options) *agentRun { return startCommand(t, cmd, o) }, 3, maxConnections / 2},
		"descriptors": {func(cmd *exec.Cmd, o Options) *agentRun {
			cmd.Path, cmd.Args = testmod.Program(t, "prlimit", "util-linux"),
				[]string{"prlimit", "--nofile=40:40", "/proc/self/exe"}
			return startNobody(t, cmd, o)
		}, 2, maxCalls},
	} {
		t.Run(name, func(t *testing.T) {
			run := c.start(agentCommand(t, func(o *Options) { o.Algorithm = keygen.ECDSAP256 }))
			var group sync.WaitGroup
			requests := 2 * c.wide
			for i := range c.clients {
				agent := run.dial(t)
				agent.calls, agent.idle = make(chan struct{}, c.wide), make(chan *clientConn, c.wide)
				signer := agent.Pair().Signer
				for j := range requests {
					group.Go(func() {
						digest := sum(fmt.Sprint(i, j))
						signature, err := signer.Sign(nil, digest, crypto.SHA256)
						if err != nil || !cms.Verifies(agent.cert.PublicKey, crypto.SHA256, digest, signature) {
							t.Errorf("wrong signature, or none: %v", err)
						}
					})
				}
			}
			group.Wait()
			agent := run.dial(t)
			if err := agent.Forget(); err != nil {
				t.Error(err)
			}
			run.wait(t)
			if n := run.checkGone(t, "forgotten").Signatures; n != c.clients*requests {
				t.Errorf("the receipt counts %d signatures, want %d", n, c.clients*requests)
			}
		})
	}
}

// TestGivingWay checks which connection gives way: a silent one, whose request is not done
// then, and never one that waits for an answer.
func TestGivingWay(t *testing.T) {
	conns := connSet{max: 2}
	open := make([]net.Conn, 4)
	for i := range open {
		open[i], _ = net.Pipe()
	}
	conns.add(open[0])
	conns.add(open[1])
	if !conns.take(open[1]) {
		t.Fatal("a connection is not there")
	}
	conns.add(open[2])
	if conns.take(open[0]) {
		t.Error("the request of a connection that gave way is done")
	}
	if _, err := open[0].Write([]byte("x")); err == nil {
		t.Error("a connection that gave way is open")
	}
	if !conns.take(open[2]) {
		t.Error("a new connection gave way")
	}
	added := make(chan struct{})
	go func() {
		conns.add(open[3])
		close(added)
	}()
	select {
	case <-added:
		t.Error("there is room among connections that wait for an answer")
	default:
	}
	conns.answered(open[1])
	<-added
	if conns.take(open[1]) || !conns.take(open[3]) {
		t.Error("another connection than the idle one gave way")
	}
}

// TestHangups has a peer that hangs up on three connections without an answer: the client
// sends the request again. It does not after half an answer: that request may be done.
func TestHangups(t *testing.T) { // alone: where many others work, it may give up
	run := startAgent(t, nil)
	agent := run.dial(t)
	socket := agent.socket
	agent.Close()
	listener, err := net.Listen("unix", run.RuntimeDir+"/other.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	agent.socket = listener.Addr().String()
	go func() {
		for i := 0; ; i++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if i < 3 {
				conn.Read(make([]byte, 1)) // the rest is lost
			} else {
				bufio.NewReader(conn).ReadSlice('\n')
				conn.Write([]byte(`{"sig`))
			}
			conn.Close()
		}
	}()
	_, err = agent.Status()
	if err == nil || !strings.Contains(err.Error(), "it died without a receipt") {
		t.Errorf("after half an answer: %v", err)
	}
	agent.socket = socket
	if _, err := agent.Status(); err != nil {
		t.Error(err)
	}
}

// TestAnswerIsWhole makes room in the middle of an answer, which its client still gets.
func TestAnswerIsWhole(t *testing.T) {
	s := &server{cert: testmod.NewKey(t, "rsa:2048").Certificate, conns: connSet{max: 1}}
	ours, theirs := net.Pipe()
	s.conns.add(theirs)
	go s.converse(theirs)
	if err := writeLine(ours, wireRequest{Op: "certificate"}); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 1)
	if _, err := ours.Read(line); err != nil {
		t.Fatal(err)
	}
	s.conns.makeRoom()
	rest, err := bufio.NewReader(ours).ReadBytes('\n')
	var response wireResponse
	if err == nil {
		err = decodeStrict(append(line, rest...), &response)
	}
	if err != nil || !bytes.Equal(response.Certificate, s.cert.Raw) {
		t.Errorf("the answer has no certificate, error %v", err)
	}
	ours.Close()
}
