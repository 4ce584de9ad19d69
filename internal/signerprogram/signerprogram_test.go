package signerprogram

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/testmod"
)

// patient are times that no test waits for.
var patient = Times{
	Silence: time.Hour, Again: time.Hour, Linger: time.Hour, End: time.Hour, Pause: time.Hour, Kill: time.Hour,
}

// hello is the beginning of a program in sh that signs whatever it is asked for.
const hello = "#!/bin/sh\nread -r hello\n" + `echo '{"message_type":"hello","version":1}'` + "\n"

// sign is the rest of it. It answers with the base64 of "sig".
const sign = `while read -r request; do
	id=${request#*'"id":'}
	echo "{\"id\":${id%%,*},\"signature\":\"c2ln\"}"
done
`

// program writes a program, and returns its path.
func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "signer")
	// A process that another test forks meanwhile would hold the file open for writing,
	// and Linux starts no such file.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// remarks are what Note was told.
type remarks struct {
	mu   sync.Mutex
	all  []string
	news chan struct{}
}

func newRemarks() *remarks { return &remarks{news: make(chan struct{}, 1)} }

func (r *remarks) note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, text)
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func (r *remarks) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// await waits until n remarks match.
func (r *remarks) await(t *testing.T, n int, pattern string) {
	t.Helper()
	want := regexp.MustCompile(pattern)
	for {
		found := 0
		for _, text := range r.list() {
			if want.MatchString(text) {
				found++
			}
		}
		if found >= n {
			return
		}
		select {
		case <-r.news:
		case <-time.After(time.Minute):
			t.Fatalf("%d remarks %q, want %d: %q", found, pattern, n, r.list())
		}
	}
}

// start starts a program that is to say hello.
func start(t *testing.T, ctx context.Context, text string, o Options) (*Program, *remarks) {
	t.Helper()
	r := newRemarks()
	o.Note = r.note
	if o.Times == (Times{}) {
		o.Times = patient
	}
	p, err := Start(ctx, program(t, text), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, r
}

func request(i int) *Request {
	path := fmt.Sprintf("%d.ko", i)
	return &Request{Hash: "sha256", Digest: []byte{byte(i >> 8), byte(i)}, IsModule: true, Path: path, Size: 9}
}

// signAll makes n requests at once, and returns what came of them.
func signAll(p *Program, n int, r func(int) *Request) (signatures [][]byte, errs []error) {
	signatures, errs = make([][]byte, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { signatures[i], errs[i] = p.Sign(r(i)) })
	}
	all.Wait()
	return signatures, errs
}

// TestSign has a program answer in the opposite order, five at a time, one of them with a
// refusal.
func TestSign(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "python3", "python3")
	p, notes := start(t, t.Context(), `#!/usr/bin/env python3
import base64, json, os, sys
hello = json.loads(sys.stdin.readline())
assert hello["message_type"] == "hello" and hello["protocol"] == "modsign-signer" and hello["version"] == 1
print(json.dumps({"message_type": "hello", "version": 1, "max_in_flight": 5, "more": hello}), flush=True)
requests = []
for line in sys.stdin:
    requests.append(json.loads(line))
    if len(requests) == 5:
        for r in reversed(requests):
            if r["path"] == "7.ko":
                r["error"] = "not this one"
            else:
                r["signature"] = base64.b64encode(bytes.fromhex(r["digest"] + "ff")).decode()
            print(json.dumps(r))
        sys.stdout.flush()
        requests = []
assert not requests
print("\tbye \x1b[2J", os.environ, file=sys.stderr)
sys.stderr.write("x" * 1000000 + "\n\n\nno end")
`, Options{Certificate: []byte("certificate"), Env: []string{"COLOUR=blue", "PATH=" + os.Getenv("PATH")}})
	if p.InFlight() != 5 {
		t.Errorf("%d requests in flight", p.InFlight())
	}
	signatures, errs := signAll(p, 20, request)
	for i := range signatures {
		want := string(request(i).Digest) + "\xff"
		if i == 7 {
			if errs[i] == nil || errs[i].Error() != "the program refuses: not this one" {
				t.Errorf("%d: %v", i, errs[i])
			}
		} else if errs[i] != nil || string(signatures[i]) != want {
			t.Errorf("%d: %q, %v", i, signatures[i], errs[i])
		}
	}
	if p.Lost() {
		t.Error("a refusal ended it")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Sign(request(1)); err == nil || !p.Lost() {
		t.Error("signed after Close")
	}
	said := notes.list()
	if len(said) != 3 || !strings.Contains(said[0], "COLOUR") || strings.Contains(said[0], "HOME") ||
		!strings.HasPrefix(said[0], p.name+":  bye \ufffd[2J environ(") || said[2] != p.name+": no end" {
		t.Errorf("it said %q", said)
	}
	if len(said[1]) != len(p.name)+2+maxWords {
		t.Errorf("a long line became one of %d", len(said[1]))
	}
}

// TestRequests looks at what a program reads.
func TestRequests(t *testing.T) {
	t.Parallel()
	seen := filepath.Join(t.TempDir(), "seen")
	p, _ := start(t, t.Context(), "#!/bin/sh\ntee "+seen+` | {
read -r hello
echo '{"message_type":"hello","version":1}'
`+sign+`}`, Options{Certificate: []byte{0x30}, Env: os.Environ()})
	if p.InFlight() != defaultInFlight {
		t.Errorf("%d in flight", p.InFlight())
	}
	for _, r := range []*Request{request(1), {Hash: "sha3-512", Digest: []byte{0xff}}} {
		if signature, err := p.Sign(r); err != nil || string(signature) != "sig" {
			t.Errorf("%q, %v", signature, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	got, err := os.ReadFile(seen)
	want := string(helloLine([]byte{0x30})) + string(request(1).line(1)) +
		`{"message_type":"digest","id":2,"hash":"sha3-512","digest":"ff"}` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("%v: it read\n%swant\n%s", err, got, want)
	}
}

// TestNotStarted has names of what is no program.
func TestNotStarted(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := put("plain", "#!/bin/sh\n", 0o644)
	t.Setenv("PATH", ".:"+os.Getenv("PATH"))
	t.Chdir(dir)
	put("here", "#!/bin/sh\n", 0o755)
	for _, test := range []struct{ name, err, hint string }{
		{"modsign-no-such", "no program of this name is in PATH", "exec:./modsign-no-such"},
		{"sh -c true", "no program of this name is in PATH, and a program gets no arguments", "give sh alone"},
		{"here", "the program lies in the current directory", "exec:./here"},
		{dir + "/none", "the program cannot be started: no such file or directory", ""},
		{dir, "a directory is no program", ""},
		{plain, "the program cannot be started: it is not executable", "chmod +x " + plain},
		{put("it's", "", 0o644), "not executable", "chmod +x '" + dir + `/it'\''s'`},
		{put("text", "no program\n", 0o755), "the program cannot be started: unknown format", "#!/bin/sh"},
		{put("lost", "#!/no/such/shell\n", 0o755), "the interpreter in its first line does not exist", ""},
		{put("nul", "#!/bin/sh\n", 0o755) + "\x00", "the program cannot be started: invalid argument", ""},
	} {
		p, err := Start(t.Context(), test.name, Options{Note: func(s string) { t.Errorf("note: %s", s) }, Times: patient})
		if p != nil || err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("%q: %v, want %q", test.name, err, test.err)
			continue
		}
		hint := ""
		if e, ok := errors.AsType[*keyfile.HintError](err); ok {
			hint = e.Hint
		}
		if !strings.Contains(hint, test.hint) || test.hint == "" && hint != "" {
			t.Errorf("%q: hint %q, want %q", test.name, hint, test.hint)
		}
	}
}

// TestNoHello has programs that end or go wrong before their hello.
func TestNoHello(t *testing.T) {
	t.Parallel()
	short := patient
	short.Linger, short.Pause, short.Kill = time.Millisecond, time.Millisecond, time.Millisecond
	for _, test := range []struct {
		name, text, want string
		times            Times
	}{
		{"exit", "exit 3", "^the program has ended before its hello: exit status 3$", patient},
		{"exit 0", "exit", "^the program has ended before its hello: exit status 0$", patient},
		{"words", "echo first >&2; printf 'no  token\\n\\n' >&2; exit 1",
			`^the program has ended before its hello: exit status 1: "no  token"$`, patient},
		{"signal", "kill -9 $$", "^the program has ended before its hello: signal: killed$", patient},
		{"usage", "echo usage: signer FILE; cat", `^line 1 of the program's output is not a JSON object: "usage: signer FILE"$`,
			patient},
		{"echo", "exec cat", `^line 1 of the program's output has version 1`, patient},
		{"version", `echo '{"message_type":"hello","version":9}'; exec sleep 1000`,
			`^line 1 of the program's output has version 9 of the protocol: this modsign speaks version 1: `, short},
		{"empty", "echo; cat", `^line 1 of the program's output is empty: ""$`, patient},
		{"long", "exec cat /dev/zero", `^line 1 of the program's output is longer than 65536 bytes: "\x{fffd}+"$`, short},
		{"no end", `printf '{"message_type":'`, `^the program has ended before its hello: exit status 0$`, patient},
		{"closed", "exec >&-; exec sleep 1000", "^the program has closed its standard output, but goes on running$", short},
		{"deaf", "exec <&-; exec sleep 1000", "^the program has closed its standard input, but goes on running$", short},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.name == "echo" {
				test.want = `^line 1 of the program's output `
			}
			p, err := Start(t.Context(), program(t, "#!/bin/sh\n"+test.text+"\n"), Options{
				Certificate: bytes.Repeat([]byte{1}, 200_000), // more than a pipe holds
				Note:        func(string) {}, Env: os.Environ(), Times: test.times,
			})
			if p != nil || err == nil || !regexp.MustCompile(test.want).MatchString(err.Error()) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
}

// TestFaults has programs that go wrong at the second of two requests: the first one has
// its signature.
func TestFaults(t *testing.T) {
	t.Parallel()
	short := patient
	short.Linger, short.Pause, short.Kill = time.Millisecond, time.Millisecond, time.Millisecond
	const first = `read -r request; echo '{"id":1,"signature":"c2ln"}'; read -r request` + "\n"
	const rest = "\nexec cat >/dev/null\n" // until the end of its standard input
	for _, test := range []struct {
		name, text, want string
		times            Times
	}{
		{"exit", "echo out of paper >&2; exit 7",
			`^the program has ended without an answer to 1 request: exit status 7: "out of paper"$`, patient},
		{"exit 0", "exit 0", "^the program has ended without an answer to 1 request: exit status 0$", patient},
		{"signal", "kill -SEGV $$", "^the program has ended without an answer to 1 request: signal: segmentation fault", patient},
		{"garbage", "echo DEBUG: slot 0" + rest, `^line 3 of the program's output is not a JSON object: "DEBUG: slot 0"$`, patient},
		{"empty", "echo" + rest, `^line 3 of the program's output is empty: ""$`, patient},
		{"utf8", `printf '\377\n'` + rest, "^line 3 of the program's output is not UTF-8: \"\ufffd\"$", patient},
		{"unasked", `echo '{"id":3,"signature":"c2ln"}'` + rest,
			`^line 3 of the program's output is an answer to request 3, which does not exist: `, patient},
		{"unasked 0", `echo '{"id":0,"signature":"c2ln"}'` + rest,
			`^line 3 of the program's output is an answer to request 0, which does not exist: `, patient},
		{"twice", `echo '{"id":1,"signature":"c2ln"}'` + rest,
			`^line 3 of the program's output is a second answer to request 1: `, patient},
		{"type", `echo '{"message_type":"progress","id":2}'` + rest,
			`^line 3 of the program's output has the unknown message_type "progress": `, patient},
		{"hello", `echo '{"message_type":"hello","version":1}'` + rest,
			`^line 3 of the program's output has the unknown message_type "hello": `, patient},
		{"long", "exec cat /dev/zero", `^line 3 of the program's output is longer than 65536 bytes: `, short},
		{"cut off", `printf '{"id":2,"signature":"c2'; kill -9 $$`,
			"^the program has ended without an answer to 1 request: signal: killed$", patient},
		{"child keeps output", "sleep 1000 & exit 4",
			"^the program has ended without an answer to 1 request: exit status 4$", patient},
		{"lost child keeps output", "setsid sleep 5 & exit 4",
			"^the program has ended without an answer to 1 request: exit status 4$", short},
		{"closed", "exec >&-; exec sleep 1000", "^the program has closed its standard output, but goes on running$", short},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p, _ := start(t, t.Context(), hello+first+test.text+"\n", Options{Env: os.Environ(), Times: test.times})
			if signature, err := p.Sign(request(1)); err != nil || string(signature) != "sig" {
				t.Fatalf("%q, %v", signature, err)
			}
			for range 2 {
				signature, err := p.Sign(request(2))
				if err == nil || signature != nil || !regexp.MustCompile(test.want).MatchString(err.Error()) {
					t.Errorf("%q, %v, want %s", signature, err, test.want)
				}
			}
			if !p.Lost() {
				t.Error("it is not lost")
			}
			if err := p.Close(); err != nil {
				t.Errorf("Close tells once more: %v", err)
			}
		})
	}
}

// TestClose has programs that go wrong when nothing is asked any more.
func TestClose(t *testing.T) {
	t.Parallel()
	short := patient
	short.End, short.Linger, short.Kill = 50*time.Millisecond, time.Millisecond, time.Millisecond
	for _, test := range []struct {
		name, text, want string
		times            Times
	}{
		{"good", sign, "^$", patient},
		{"session", "read -r pid name state parent group session rest </proc/$$/stat\n" + sign + "[ $session = $$ ]", "^$",
			patient},
		{"failed", sign + "echo cannot log out >&2; exit 5",
			`^the program has failed at its end: exit status 5: "cannot log out"$`, patient},
		{"killed", sign + "kill -9 $$", `^the program has failed at its end: signal: killed$`, patient},
		{"once more", sign + `echo '{"id":1,"signature":"c2ln"}'`, "^line 3 of the program's output is a second answer to request 1", patient},
		{"garbage", sign + `echo bye`, `^line 3 of the program's output is not a JSON object: "bye"$`, patient},
		{"cut off", sign + `printf bye`, `^line 3 of the program's output has no end$`, patient},
		{"early", `read -r request; echo '{"id":1,"signature":"c2ln"}'; exit 0`, "^$", patient},
		{"early failure", `read -r request; echo '{"id":1,"signature":"c2ln"}'; exit 2`,
			"^the program has (ended too early|failed at its end): exit status 2$", patient},
		{"stays", sign + "trap '' TERM; while :; do sleep 1000; done", "^the program did not end within 50ms after its standard input$", short},
		{"child stays", "sleep 1000 &\n" + sign, "^$", patient},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p, _ := start(t, t.Context(), hello+test.text+"\n", Options{Env: os.Environ(), Times: test.times})
			if signature, err := p.Sign(request(1)); err != nil || string(signature) != "sig" {
				t.Fatalf("%q, %v", signature, err)
			}
			text := ""
			if err := p.Close(); err != nil {
				text = err.Error()
			}
			if !regexp.MustCompile(test.want).MatchString(text) {
				t.Errorf("%q, want %q", text, test.want)
			}
			if err := p.Close(); err != nil {
				t.Errorf("told twice: %v", err)
			}
		})
	}
}

// TestSilence checks that people learn for what they wait.
func TestSilence(t *testing.T) {
	t.Parallel()
	often := patient
	often.Silence, often.Again = time.Millisecond, time.Millisecond
	dir := t.TempDir()
	notes := newRemarks()
	path := program(t, `#!/bin/sh
wait() { until [ -e "$1" ]; do sleep 0.01; done; }
wait `+dir+`/hello
echo '{"message_type":"hello","version":1}'
read -r hello
read -r one; read -r two
wait `+dir+`/answer
echo '{"id":1,"signature":"c2ln"}'
echo '{"id":2,"signature":"c2ln"}'
`+sign)
	allow := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Error(err)
		}
	}
	go func() {
		notes.await(t, 3, `^`+path+`: silent for \d+s; has not said hello$`)
		allow("hello")
		notes.await(t, 3, `^`+path+`: silent for \d+s; requests that wait: 2$`)
		allow("answer")
	}()
	p, err := Start(t.Context(), path, Options{Env: os.Environ(), Note: notes.note, Times: often})
	if err != nil {
		t.Fatal(err)
	}
	if _, errs := signAll(p, 2, request); errors.Join(errs...) != nil {
		t.Error(errs)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestInterrupt has programs that do not end by themselves, in each state in which they can
// be interrupted. Their children end with them.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	hurry := patient
	hurry.Pause, hurry.Kill = time.Millisecond, time.Millisecond
	often := hurry
	often.Silence, often.Again = time.Millisecond, time.Millisecond
	long := func(i int) *Request {
		r := request(i)
		r.Path = strings.Repeat("x", 4000)
		return r
	}
	for _, test := range []struct {
		name, text string
		hello      bool
		requests   int
		times      Times
	}{
		{"well-behaved", hello + "sleep 1000 &\ncat >/dev/null", true, 3, patient},
		{"by SIGTERM", hello + "sleep 1000 & \nexec sleep 1000", true, 3, Times{Pause: 1, Kill: time.Hour}},
		{"by SIGKILL", hello + "trap '' TERM\nwhile :; do sleep 1000 & wait; done", true, 3, hurry},
		{"full pipe", hello + "exec sleep 1000", true, 100, often},
		{"unasked", hello + "cat >/dev/null", true, 0, patient},
		{"no hello", "#!/bin/sh\nsleep 1000 &\nexec sleep 1000", false, 0, hurry},
		{"stopped", hello + "kill -STOP $$", true, 1, hurry},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			// The FIFO ends when all that the program has started have ended.
			fifo := filepath.Join(t.TempDir(), "fifo")
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(test.text, "\n", "\nexec 9>"+fifo+"\n", 1)
			ended := make(chan error, 1)
			opened := make(chan struct{})
			go func() {
				f, err := os.Open(fifo)
				if err != nil {
					ended <- err
					return
				}
				close(opened)
				_, err = io.Copy(io.Discard, f)
				ended <- err
			}()
			why := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if !test.hello {
				go func() {
					<-opened
					cancel(why)
				}()
				p, err := Start(ctx, program(t, text), Options{Env: os.Environ(), Note: func(string) {}, Times: test.times})
				if p != nil || err != why {
					t.Errorf("%v", err)
				}
			} else {
				p, notes := start(t, ctx, text, Options{Env: os.Environ(), Times: test.times})
				failed := make(chan []error)
				go func() {
					_, errs := signAll(p, test.requests, long)
					failed <- errs
				}()
				if test.name == "full pipe" {
					notes.await(t, 1, fmt.Sprintf("requests that wait: %d$", min(test.requests, defaultInFlight)))
				}
				cancel(why)
				for _, err := range <-failed {
					if err != why {
						t.Errorf("%v", err)
					}
				}
				if err := p.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				if _, err := p.Sign(long(1)); err != why {
					t.Errorf("after the end: %v", err)
				}
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := Start(ctx, "/no/program", Options{}); p != nil || err != context.Canceled {
		t.Errorf("interrupted before: %v", err)
	}
}
