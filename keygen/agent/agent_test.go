package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// The test binary is also the agent, and a client of another user, in processes
// of their own.
func TestMain(m *testing.M) {
	switch os.Getenv("AGENT_TEST") {
	case "agent":
		if err := Hide(os.Args, os.Environ()); err != nil {
			fmt.Fprintln(os.Stderr, "hide:", err)
		}
		agentProcess()
	case "open agent":
		agentProcess()
	case "started agent":
		startedProcess()
	case "client":
		clientProcess()
	default:
		os.Exit(m.Run())
	}
}

// agentProcess serves with the options in its environment. It says that it is
// ready on stdout, and how it ended on stderr.
func agentProcess() {
	var o Options
	if err := json.Unmarshal([]byte(os.Getenv("AGENT_OPTIONS")), &o); err != nil {
		panic(err)
	}
	if err := holdKey(&o); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	go func() { <-terminate; cancel(errors.New("a signal")) }()
	err := Serve(ctx, o, func() error { _, err := fmt.Println("ready"); return err })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// clientProcess loads the key of the agent in the directory AGENT_DIR, signs, and
// prints what went wrong.
func clientProcess() {
	pair, err := keygen.Load(filepath.Join(os.Getenv("AGENT_DIR"), certificateName), "", keygen.LoadOptions{KeyOf: KeyOf})
	if err == nil {
		digest := sha256.Sum256([]byte("x"))
		_, err = pair.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	fmt.Print(err)
}

// agentCommand is an agent in a new directory. It keeps away from a test's own directory,
// whose name may be too long for a socket.
func agentCommand(t *testing.T, change func(*Options)) (*exec.Cmd, Options) {
	t.Helper()
	tree, err := os.MkdirTemp("", "modsign-agent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tree) })
	o := Options{
		Algorithm: keygen.ECDSAP384, Template: keygen.DefaultTemplate(), Lifetime: time.Hour, Profile: "a profile",
		Tree: tree, Dir: filepath.Join(tree, ".modsign"), RuntimeDir: filepath.Join(tree, "run"),
	}
	for dir, mode := range map[string]os.FileMode{o.Dir: 0o755, o.RuntimeDir: 0o700} {
		if err := os.Mkdir(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(&o)
	}
	options := encodeOptions(o)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"AGENT_TEST=agent", "AGENT_OPTIONS=" + string(options), "GORACE=atexit_sleep_ms=10",
		"GOCOVERDIR=" + os.Getenv("GOCOVERDIR")}
	return cmd, o
}

// encodeOptions is what a process can be told of the options.
func encodeOptions(o Options) []byte {
	encoded, err := json.Marshal(struct {
		Options
		Key, Allow, Ending *struct{} // these hide the ones of Options
	}{Options: o})
	if err != nil {
		panic(err)
	}
	return encoded
}

// agentRun is an agent's process.
type agentRun struct {
	Options
	pid    int
	exited chan struct{}
	stderr string // when it has exited
}

// startCommand starts an agent and waits until it is ready.
func startCommand(t *testing.T, cmd *exec.Cmd, o Options) *agentRun {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	run := &agentRun{Options: o, pid: cmd.Process.Pid, exited: make(chan struct{})}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	go func() {
		cmd.Wait()
		run.stderr = stderr.String()
		close(run.exited)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-run.exited
	})
	if line != "ready\n" {
		<-run.exited
		t.Fatalf("agent is not ready: %s", run.stderr)
	}
	return run
}

func startAgent(t *testing.T, change func(*Options)) *agentRun {
	t.Helper()
	cmd, o := agentCommand(t, change)
	return startCommand(t, cmd, o)
}

func (r *agentRun) dial(t *testing.T) *Client {
	t.Helper()
	agent, err := Dial(r.Dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Close() })
	return agent
}

// wait waits for the end of the process.
func (r *agentRun) wait(t *testing.T) {
	t.Helper()
	select {
	case <-r.exited:
	case <-time.After(time.Minute):
		t.Fatal("agent does not end")
	}
}

// receipt reads the one receipt.
func (r *agentRun) receipt(t *testing.T) *Receipt {
	t.Helper()
	receipts, _ := filepath.Glob(filepath.Join(r.Dir, "receipt-*.json"))
	if len(receipts) != 1 {
		t.Fatalf("receipts: %v", receipts)
	}
	dir, err := dirfd.OpenOwn(r.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	receipt, err := checkedReceipt(dir, filepath.Base(receipts[0]))
	if err != nil {
		t.Fatal(err)
	}
	if name := "receipt-" + receipt.CertificateSHA256[:16] + ".json"; filepath.Base(receipts[0]) != name {
		t.Errorf("receipt is %s, want %s", receipts[0], name)
	}
	return receipt
}

// checkGone checks what an agent leaves, and what is said of it.
func (r *agentRun) checkGone(t *testing.T, reason string) *Receipt {
	t.Helper()
	receipt := r.receipt(t)
	if receipt.Reason != reason {
		t.Errorf("reason is %q, want %q", receipt.Reason, reason)
	}
	for _, path := range []string{filepath.Join(r.Dir, socketName), filepath.Join(r.RuntimeDir, "*.sock")} {
		if left, _ := filepath.Glob(path); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	}
	want := fmt.Sprintf("the one-time key is gone: %s at %s", reason, receipt.Died.Format(time.RFC3339))
	_, err := Dial(r.Dir)
	checkNoAgent(t, err, want)
	_, err = keygen.Load(filepath.Join(r.Dir, certificateName), "", keygen.LoadOptions{KeyOf: KeyOf})
	checkNoAgent(t, err, want)
	return receipt
}

func checkNoAgent(t *testing.T, err error, want string) {
	t.Helper()
	if none, ok := errors.AsType[*UnavailableError](err); !ok || !strings.Contains(none.Reason, want) {
		t.Errorf("error is %v, want a UnavailableError with %q", err, want)
	}
}

func sum(data string) []byte {
	s := sha256.Sum256([]byte(data))
	return s[:]
}

func mustSign(t *testing.T, signer crypto.Signer, digest []byte, h crypto.SignerOpts) {
	t.Helper()
	if _, err := signer.Sign(nil, digest, h); err != nil {
		t.Fatal(err)
	}
}

// TestAgent is the life of an agent: certificate, signatures, status, receipt.
func TestAgent(t *testing.T) {
	t.Parallel()
	openssl, sortProgram := testmod.Program(t, "openssl", "openssl"), testmod.Program(t, "sort", "coreutils")
	for _, algorithm := range []keygen.Algorithm{keygen.RSA2048, keygen.ECDSAP384} {
		t.Run(algorithm.String(), func(t *testing.T) {
			t.Parallel()
			run := startAgent(t, func(o *Options) { o.Algorithm = algorithm })
			agent := run.dial(t)
			path := filepath.Join(run.Dir, certificateName)
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
			pair, err := keygen.Load(path, "", keygen.LoadOptions{KeyOf: KeyOf})
			if err != nil {
				t.Fatal(err)
			}
			if !pair.Certificate.Equal(agent.Certificate()) {
				t.Error("Load and Dial have different certificates")
			}

			digests := make(Digests)
			var lines []byte
			for i, name := range []string{"sha1", "sha224", "sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"} {
				h, err := cms.HashByName(name)
				if err != nil {
					t.Fatal(err)
				}
				digest := h.New()
				fmt.Fprint(digest, i)
				for _, signer := range []crypto.Signer{pair.Signer, agent.Pair().Signer} {
					mustSign(t, signer, digest.Sum(nil), h)
				}
				digests.Add(h, digest.Sum(nil))
				lines = fmt.Appendf(lines, "%s:%x\n", name, digest.Sum(nil))
			}
			for _, bad := range []struct {
				digest []byte
				opts   crypto.SignerOpts
				want   string
			}{
				{sum("x")[1:], crypto.SHA256, "digest of 31 bytes: sha256 has 32"},
				{make([]byte, 16), crypto.MD5, `unknown hash "md5"`},
				{make([]byte, 28), crypto.SHA512_224, "unknown hash"},
				{sum("x"), crypto.Hash(0), "unknown hash"},
				{sum("x"), &rsa.PSSOptions{Hash: crypto.SHA256}, "PSS"},
			} {
				if _, err := pair.Signer.Sign(nil, bad.digest, bad.opts); err == nil || !strings.Contains(err.Error(), bad.want) {
					t.Errorf("error is %v, want one with %q", err, bad.want)
				}
			}
			if err := pair.WritePEM(io.Discard); err == nil {
				t.Error("the agent's key could be written")
			}

			status, err := agent.Status()
			if err != nil {
				t.Fatal(err)
			}
			want := Status{
				PID: run.pid, Algorithm: algorithm.String(), Certificate: fingerprint(pair.Certificate), Profile: "a profile",
				Born: status.Born, Ends: status.Born.Add(time.Hour), Signatures: 16, MemoryLocked: status.MemoryLocked,
				MemoryHidden: true, Warning: status.Warning,
			}
			if status != want {
				t.Errorf("status is\n%+v, want\n%+v", status, want)
			}
			if age := time.Since(status.Born); age < 0 || age > time.Minute {
				t.Errorf("born at %v", status.Born)
			}

			if err := agent.Forget(); err != nil {
				t.Fatal(err)
			}
			// Whose connection is closed, has lost its memory.
			if maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", run.pid)); err == nil && len(maps) > 0 {
				t.Error("after Forget the process has memory still")
			}
			run.wait(t)
			if run.stderr != "" {
				t.Errorf("agent says %s", run.stderr)
			}
			receipt := run.checkGone(t, "forgotten")
			if receipt.Signatures != 16 || receipt.DigestsSHA256 != digests.SHA256() ||
				receipt.Algorithm != algorithm.String() || !receipt.Born.Equal(status.Born) ||
				receipt.MemoryLocked != status.MemoryLocked || !receipt.MemoryHidden {
				t.Errorf("receipt is %+v", receipt)
			}
			for _, signer := range []crypto.Signer{pair.Signer, agent.Pair().Signer} {
				_, err := signer.Sign(nil, sum("x"), crypto.SHA256)
				checkNoAgent(t, err, "forgotten at")
			}
			checkNoAgent(t, agent.Forget(), "forgotten at")
			checkNoAgent(t, agent.Installed(), "forgotten at")

			// What the documentation says of the file, done by other programs.
			public := filepath.Join(run.Tree, "public.pem")
			testmod.Run(t, openssl, "x509", "-in", path, "-noout", "-pubkey", "-out", public)
			padding := ""
			if algorithm != keygen.ECDSAP384 {
				padding = "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:64 -sigopt rsa_mgf1_md:sha512"
			}
			testmod.Run(t, "sh", "-ec", fmt.Sprintf(`cd %s
				head -n -2 .modsign/receipt-*.json >signed
				sed -n 's/^  "signature": "\(.*\)"$/\1/p' .modsign/receipt-*.json | openssl base64 -d -A >signature
				openssl dgst -sha512 -verify public.pem %s -signature signature signed`, run.Tree, padding))
			cmd := exec.Command("sh", "-c", "LC_ALL=C "+sortProgram+" -u | sha256sum")
			cmd.Stdin = bytes.NewReader(slices.Concat(lines, lines))
			if out, err := cmd.Output(); err != nil || !strings.HasPrefix(string(out), receipt.DigestsSHA256) {
				t.Errorf("the list of digests has the SHA-256 %s (%v), and the receipt %s", out, err, receipt.DigestsSHA256)
			}
		})
	}
}

// TestConcurrent counts signatures that come all at once.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	const workers, each = 8, 500
	run := startAgent(t, func(o *Options) { o.Algorithm = keygen.ECDSAP256 })
	agent := run.dial(t)
	signer := agent.Pair().Signer
	digests := make(Digests)
	var group sync.WaitGroup
	for i := range workers {
		for j := range each {
			digests.Add(crypto.SHA256, sum(fmt.Sprint(i, j)))
		}
		group.Go(func() {
			for j := range each {
				if _, err := signer.Sign(nil, sum(fmt.Sprint(i, j)), crypto.SHA256); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if err := agent.Forget(); err != nil {
		t.Fatal(err)
	}
	if r := run.checkGone(t, "forgotten"); r.Signatures != workers*each || r.DigestsSHA256 != digests.SHA256() {
		t.Errorf("%d signatures of %s, want %d of %s", r.Signatures, r.DigestsSHA256, workers*each, digests.SHA256())
	}
}

// TestForgetAmongSignatures forgets while others sign: what they got is in the
// receipt, and what they did not get is explained.
func TestForgetAmongSignatures(t *testing.T) {
	t.Parallel()
	run := startAgent(t, nil)
	digests := make(Digests)
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range 8 {
		agent := run.dial(t)
		group.Go(func() {
			for j := 0; ; j++ {
				digest := sum(fmt.Sprint(i, j))
				if _, err := agent.Pair().Signer.Sign(nil, digest, crypto.SHA256); err != nil {
					checkNoAgent(t, err, "the one-time key is gone: forgotten at")
					return
				}
				mu.Lock()
				digests.Add(crypto.SHA256, digest)
				mu.Unlock()
			}
		})
	}
	for agent := run.dial(t); ; {
		if status, err := agent.Status(); err != nil {
			t.Fatal(err)
		} else if status.Signatures > 20 {
			break
		}
	}
	if err := run.dial(t).Forget(); err != nil {
		t.Fatal(err)
	}
	group.Wait()
	if r := run.checkGone(t, "forgotten"); r.Signatures != len(digests) || r.DigestsSHA256 != digests.SHA256() {
		t.Errorf("the receipt has %d signatures, and %d were got", r.Signatures, len(digests))
	}
}

// TestEnds has the other ends.
func TestEnds(t *testing.T) {
	t.Parallel()
	t.Run("installs", func(t *testing.T) {
		t.Parallel()
		run := startAgent(t, func(o *Options) { o.Installs = 2 })
		agent := run.dial(t)
		for i := range 2 {
			if status, err := agent.Status(); err != nil || status.Installs != i || status.InstallsAllowed != 2 {
				t.Fatalf("status is %+v (%v)", status, err)
			}
			mustSign(t, agent.Pair().Signer, sum("x"), crypto.SHA256)
			if err := agent.Installed(); err != nil {
				t.Fatal(err)
			}
		}
		checkNoAgent(t, agent.Installed(), "2 installs done at")
		run.wait(t)
		if r := run.checkGone(t, "2 installs done"); r.Installs != 2 || r.Signatures != 2 {
			t.Errorf("receipt is %+v", r)
		}
	})
	t.Run("lifetime", func(t *testing.T) {
		t.Parallel()
		run := startAgent(t, func(o *Options) { o.Lifetime = 500 * time.Millisecond })
		run.wait(t)
		run.checkGone(t, "lifetime of 500ms over")
	})
	t.Run("signal", func(t *testing.T) {
		t.Parallel()
		run := startAgent(t, nil)
		syscall.Kill(run.pid, syscall.SIGTERM)
		run.wait(t)
		run.checkGone(t, "ended by a signal")
	})
	t.Run("kill", func(t *testing.T) {
		t.Parallel()
		run := startAgent(t, nil)
		agent := run.dial(t)
		syscall.Kill(run.pid, syscall.SIGKILL)
		run.wait(t)
		_, err := agent.Pair().Signer.Sign(nil, sum("x"), crypto.SHA256)
		checkNoAgent(t, err, "it died without a receipt: it was killed or it crashed")
		_, err = Dial(run.Dir)
		checkNoAgent(t, err, "it died without a receipt")
		_, err = keygen.Load(filepath.Join(run.Dir, certificateName), "", keygen.LoadOptions{KeyOf: KeyOf})
		checkNoAgent(t, err, "it died without a receipt")
		// The next one takes its place, and takes its socket away.
		cmd, _ := agentCommand(t, nil)
		options := encodeOptions(run.Options)
		cmd.Env[1] = "AGENT_OPTIONS=" + string(options)
		next := startCommand(t, cmd, run.Options)
		if sockets, _ := filepath.Glob(filepath.Join(run.RuntimeDir, "*")); len(sockets) != 1 {
			t.Errorf("sockets: %v", sockets)
		}
		if err := next.dial(t).Forget(); err != nil {
			t.Error(err)
		}
	})
	for name, remove := range map[string]func(*agentRun) string{
		"tree":       func(r *agentRun) string { return r.Tree },
		"dir":        func(r *agentRun) string { return r.Dir },
		"runtime":    func(r *agentRun) string { return r.RuntimeDir },
		"agent.sock": func(r *agentRun) string { return filepath.Join(r.Dir, socketName) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run := startAgent(t, nil)
			removed := remove(run)
			// Another one of the same name is not the same.
			if err := os.Rename(removed, removed+".away"); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(removed + ".away")
			if name == "tree" || name == "dir" {
				if err := os.Mkdir(removed, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			run.wait(t)
			switch name {
			case "tree", "dir":
				if left, err := os.ReadDir(removed); err != nil || len(left) > 0 {
					t.Errorf("a strange directory holds %v (%v)", left, err)
				}
			case "runtime":
				socket := regexp.MustCompile(`/modsign-\w+\.sock removed$`)
				if r := run.receipt(t); !socket.MatchString(r.Reason) {
					t.Errorf("reason is %q", r.Reason)
				}
			default:
				run.checkGone(t, removed+" removed")
			}
		})
	}
}

// TestUsers has nobody refused, at every door that could be left open, and
// root let in to nobody's agent, whose memory cannot be locked.
func TestUsers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		testmod.Missing(t, "a second user", "run the tests as root")
	}
	const nobody = 65534
	as := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return cmd
	}
	client := func(dir string) string {
		cmd := as(exec.Command("/proc/self/exe"))
		cmd.Env = []string{"AGENT_TEST=client", "AGENT_DIR=" + dir, "GORACE=atexit_sleep_ms=10"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return string(out)
	}

	run := startAgent(t, nil)
	if err := os.Chmod(run.Tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if out := client(run.Dir); !strings.Contains(out,
		"it belongs to uid 0, and takes orders of that user and of root alone") {
		t.Errorf("behind a closed directory: %s", out)
	}
	socket, err := os.Readlink(filepath.Join(run.Dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket is %v (%v)", info, err)
	}
	os.Chmod(run.RuntimeDir, 0o777)
	os.Chmod(socket, 0o666)
	if out := client(run.Dir); !strings.Contains(out,
		"refused: the key agent of uid 0 takes orders of that user and of root alone") {
		t.Errorf("at an open socket: %s", out)
	}
	if status, err := run.dial(t).Status(); err != nil || status.Signatures != 0 {
		t.Errorf("after that %+v (%v)", status, err)
	}

	cmd, o := agentCommand(t, nil)
	for _, dir := range []string{o.Tree, o.Dir, o.RuntimeDir} {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	// A limit, as users have one, which Go's runtime is far beyond.
	cmd = as(cmd)
	cmd.Path = testmod.Program(t, "prlimit", "util-linux")
	cmd.Args = []string{"prlimit", "--memlock=8388608:8388608", "/proc/self/exe"}
	theirs := startNobody(t, cmd, o)
	agent := theirs.dial(t)
	signer := agent.Pair().Signer
	for i := range 200 {
		mustSign(t, signer, sum(fmt.Sprint(i)), crypto.SHA256)
	}
	status, err := agent.Status()
	if err != nil || status.MemoryLocked {
		t.Errorf("status is %+v (%v)", status, err)
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil {
		t.Fatal(err)
	}
	if swap := bytes.Count(swaps, []byte("\n")) > 1; swap != (status.Warning != "") {
		t.Errorf("warning is %q, with the swaps\n%s", status.Warning, swaps)
	}
	if out := client(theirs.Dir); out != "<nil>" {
		t.Errorf("the agent's own user: %s", out)
	}

	// Root does not take the word of somebody else's server.
	_, o = agentCommand(t, nil)
	socket, err = os.Readlink(filepath.Join(theirs.Dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(socket, filepath.Join(o.Dir, socketName)); err != nil {
		t.Fatal(err)
	}
	_, err = Dial(o.Dir)
	checkNoAgent(t, err, "the process that answers belongs to uid 65534, which is neither the directory's owner nor root")

	if err := agent.Forget(); err != nil {
		t.Error(err)
	}
	if r := theirs.checkGone(t, "forgotten"); r.MemoryLocked || r.Signatures != 201 {
		t.Errorf("receipt is %+v", r)
	}
}

// startNobody starts an agent through a program that has to find the test binary,
// in whose directory only we may look: as descriptor 3.
func startNobody(t *testing.T, cmd *exec.Cmd, o Options) *agentRun {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd.ExtraFiles = []*os.File{self}
	cmd.Args[len(cmd.Args)-1] = "/proc/self/fd/3"
	return startCommand(t, cmd, o)
}

// TestWrites has strace list the files that an agent writes.
func TestWrites(t *testing.T) {
	t.Parallel()
	strace := testmod.Program(t, "strace", "strace")
	if os.Geteuid() != 0 {
		testmod.Missing(t, "a look into the memory of an undumpable process", "run the tests as root")
	}
	cmd, o := agentCommand(t, nil)
	log := filepath.Join(t.TempDir(), "log")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path, cmd.Args = strace, []string{"strace", "-f", "-y", "-e",
		"trace=open,openat,openat2,creat,memfd_create,rename,renameat,renameat2,symlinkat,linkat", "-o", log, self}
	run := startCommand(t, cmd, o)
	agent := run.dial(t)
	mustSign(t, agent.Pair().Signer, sum("x"), crypto.SHA256)
	if err := agent.Forget(); err != nil {
		t.Fatal(err)
	}
	run.wait(t)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var wrote []string
	opened := regexp.MustCompile(`(open|creat|memfd)\w*\(`)
	// A name beside the directory that it is in, where it is not a whole path.
	name := regexp.MustCompile(`(?:\d+<([^>]+)>, )?"([^"]+)"`)
	path := func(found []string) string {
		if strings.HasPrefix(found[1], "/") {
			return filepath.Join(found[1], found[2])
		}
		return found[2]
	}
	for line := range strings.Lines(string(text)) {
		names := name.FindAllStringSubmatch(line, 2)
		switch {
		case strings.Contains(line, " resumed>"): // its names stand where it began
		case opened.MatchString(line) && !strings.Contains(line, "O_RDONLY") && !strings.Contains(line, `"/dev/`):
			wrote = append(wrote, "open "+path(names[0]))
		case strings.Contains(line, "rename"), strings.Contains(line, "link"):
			wrote = append(wrote, "name "+path(names[len(names)-1]))
		}
	}
	temp := regexp.QuoteMeta(filepath.Join(run.Dir, ".modsign-")) + `[0-9A-Za-z-]+\.tmp`
	want := []string{
		`open agent\.test`, // the program, in memory
		"open " + temp, "name " + regexp.QuoteMeta(filepath.Join(run.Dir, certificateName)),
		"name " + temp, "name " + regexp.QuoteMeta(filepath.Join(run.Dir, socketName)),
		"open " + temp, "name " + regexp.QuoteMeta(filepath.Join(run.Dir, "receipt-")) + `[0-9a-f]{16}\.json`,
	}
	if !regexp.MustCompile("^" + strings.Join(want, "\n") + "$").MatchString(strings.Join(wrote, "\n")) {
		t.Errorf("it wrote\n%s", strings.Join(wrote, "\n"))
	}
}

// TestMemory looks at what the system says of the process.
func TestMemory(t *testing.T) {
	t.Parallel()
	run := startAgent(t, nil)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", run.pid))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("limits are\n%s", limits)
	}
	// The files of an undumpable process belong to root, whoever it is of.
	if os.Geteuid() != 0 {
		if f, err := os.Open(fmt.Sprintf("/proc/%d/mem", run.pid)); err == nil {
			f.Close()
			t.Error("its memory can be read")
		}
	}
	status, err := run.dial(t).Status()
	if err != nil {
		t.Fatal(err)
	}
	about, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", run.pid))
	if err != nil {
		t.Fatal(err)
	}
	locked := regexp.MustCompile(`(?m)^VmLck:\s+[1-9]`).Match(about)
	if locked != status.MemoryLocked {
		t.Errorf("memory_locked is %t, and the kernel says\n%s", status.MemoryLocked, about)
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(run.pid, unix.RLIMIT_MEMLOCK, nil, &limit); err != nil {
		t.Fatal(err)
	}
	if locked && limit.Cur != unix.RLIM_INFINITY {
		t.Errorf("memory is locked under a limit of %d", limit.Cur)
	}
}

// TestOneAgent has two agents for a directory, and directories without any.
func TestOneAgent(t *testing.T) {
	t.Parallel()
	run := startAgent(t, nil)
	cmd, _ := agentCommand(t, nil)
	options := encodeOptions(run.Options)
	cmd.Env[1] = "AGENT_OPTIONS=" + string(options)
	if out, err := cmd.CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "a key agent already serves this directory") {
		t.Errorf("a second one: %v, %s", err, out)
	}
	mustSign(t, run.dial(t).Pair().Signer, sum("x"), crypto.SHA256)

	// Another certificate in the place of the agent's: nothing is signed.
	path, other := filepath.Join(run.Dir, certificateName), testmod.NewKey(t, "ecdsa:p256")
	own, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, other.CertPEM, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := run.dial(t).Pair().Signer.Sign(nil, sum("x"), crypto.SHA256); !errors.Is(err, keygen.ErrMismatch) {
		t.Errorf("with another certificate.pem: %v", err)
	}
	if _, err := keygen.Load(path, "", keygen.LoadOptions{KeyOf: KeyOf}); !errors.Is(err, keygen.ErrMismatch) {
		t.Errorf("Load of another certificate.pem: %v", err)
	}
	_, otherCert := other.Files(t)
	if err := os.WriteFile(path, own, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := keygen.Load(path, otherCert, keygen.LoadOptions{KeyOf: KeyOf}); !errors.Is(err, keygen.ErrMismatch) {
		t.Errorf("Load with another certificate: %v", err)
	}
	der := filepath.Join(t.TempDir(), "cert.der")
	if err := os.WriteFile(der, run.dial(t).Certificate().Raw, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := keygen.Load(path, der, keygen.LoadOptions{KeyOf: KeyOf}); err != nil {
		t.Errorf("Load with the certificate elsewhere too: %v", err)
	}

	_, err = Dial(t.TempDir())
	checkNoAgent(t, err, "none was started")
	// A certificate's file where no agent was is just that.
	if _, err := keygen.Load(otherCert, "", keygen.LoadOptions{KeyOf: KeyOf}); err == nil ||
		!strings.Contains(err.Error(), "no private key: file is a certificate") {
		t.Errorf("Load of a certificate: %v", err)
	}
}

// TestRuntimeDir has directories that a socket must not be in.
func TestRuntimeDir(t *testing.T) {
	base, err := os.MkdirTemp("", "modsign-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	own := filepath.Join(base, "own")
	open, link, deep := filepath.Join(base, "open"), filepath.Join(base, "link"), filepath.Join(base,
		strings.Repeat("x", 80))
	for _, err := range []error{os.Mkdir(own, 0o700), os.Mkdir(open, 0o755), os.Symlink(own, link),
		os.Mkdir(deep, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fallback := sharedRuntimeDir()
	for dir, want := range map[string]string{
		own: own, own + "/": own,
		"": fallback, open: fallback, link: fallback, link +
			"/": fallback, deep: fallback, "relative": fallback, filepath.Join(base, "none"): fallback,
	} {
		if got, random, err := runtimeDir(dir); err != nil || got != want || random {
			t.Errorf("for %q the directory is %q (%v), want %q", dir, got, err, want)
		}
	}
	for path, want := range map[string]string{open: "its mode is 0755", link: "is not a directory"} {
		if err := checkPrivate(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// FuzzRequests has an agent read anything at all. Whatever comes, it answers in
// lines of JSON, hangs up, and can sign for the next.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		"{\"op\":\"certificate\"}\n",
		"{\"op\":\"sign\",\"hash\":\"sha256\",\"digest\":\"ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=\"}\n{\"op\":\"status\"}\n",
		"{\"op\":\"sign\",\"hash\":\"sha512\",\"digest\":\"\"}\n",
		"{\"op\":\"sign\",\"hash\":\"mldsa65-mu\",\"digest\":\"" + strings.Repeat("A", 86) + "==\"}\n",
		"{\"op\":\"installed\"}\n{\"op\":\"installed\"}\n{\"op\":\"status\"}\n",
		"{\"op\":\"forget\"}\n{\"op\":\"status\"}\n",
		"{\"op\":\"forget\"}", "{\"op\":1}\n", "{\"op\":\"status\",\"more\":1}\n", "{}{}\n", "null\n", "\n",
		"GET / HTTP/1.1\r\n\r\n",
	} {
		f.Add([]byte(seed), uint16(0))
	}
	f.Add([]byte("\n"), uint16(maxRequest+1)) // x, as often
	pair, err := keygen.Generate(keygen.ECDSAP256, keygen.DefaultTemplate())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, requests []byte, long uint16) {
		requests = append(bytes.Repeat([]byte("x"), int(long)), requests...)
		s := &server{
			// A receipt, for which there is not a directory, would wait for the disk.
			Options: Options{Dir: "/nonexistent", Installs: 2, Lifetime: time.Hour}, key: pair.Signer, cert: pair.Certificate,
			digests: make(Digests), ended: make(chan struct{}), listener: closedListener{},
		}
		ours, theirs := net.Pipe()
		s.conns.add(theirs)
		go func() {
			s.converse(theirs)
			theirs.Close()
		}()
		go func() {
			ours.Write(requests)
			ours.Write([]byte("\n\x00\n")) // after which it hangs up in any case
		}()
		answers, err := io.ReadAll(ours)
		if err != nil {
			t.Fatal(err)
		}
		ours.Close()
		for line := range bytes.Lines(answers) {
			var response wireResponse
			if err := decodeStrict(line, &response); err != nil {
				t.Errorf("answer %q: %v", line, err)
			}
		}
		_, err = s.sign(wireRequest{Hash: "sha256", Digest: sum("x")})
		select {
		case <-s.ended:
			if err != errGone {
				t.Errorf("after the end: %v", err)
			}
		default:
			if err != nil {
				t.Errorf("the next signature: %v", err)
			}
		}
	})
}

// closedListener is the listener of an agent that nobody dials.
type closedListener struct{ net.Listener }

func (closedListener) Close() error { return nil }

// TestConnections checks that requests one after the other use the same connection, and
// that many at once have one each.
func TestConnections(t *testing.T) {
	t.Parallel()
	agent := startAgent(t, nil).dial(t)
	signer := agent.Pair().Signer
	for i := range 5 {
		if _, err := signer.Sign(nil, sum(fmt.Sprint(i)), crypto.SHA256); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(agent.idle); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	var group sync.WaitGroup
	for i := range 4 * cap(agent.calls) {
		group.Go(func() {
			digest := sum(fmt.Sprint(i))
			signature, err := signer.Sign(nil, digest, crypto.SHA256)
			if err != nil || !cms.Verifies(agent.cert.PublicKey, crypto.SHA256, digest, signature) {
				t.Errorf("wrong signature, or none: %v", err)
			}
		})
	}
	group.Wait()
	if n := len(agent.idle); n > cap(agent.calls) {
		t.Errorf("%d connections, at most %d are of use", n, cap(agent.calls))
	}
	if err := agent.Close(); err != nil || len(agent.idle) != 0 {
		t.Errorf("%d connections after the end, error %v", len(agent.idle), err)
	}
}
