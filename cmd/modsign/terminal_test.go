package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/testmod"
)

// screen is a pseudo terminal with somebody who looks at it.
type screen struct {
	t    *testing.T
	user *os.File // the side of the one who types
	tty  *os.File

	mu    sync.Mutex
	shown bytes.Buffer
	ended chan struct{}
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testmod.Missing(t, "a pseudo terminal", "mount devpts: "+err.Error())
	}
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 60}); err != nil {
		t.Fatal(err)
	}
	term := &screen{t: t, user: user, tty: tty, ended: make(chan struct{})}
	go func() {
		defer close(term.ended)
		buf := make([]byte, 4096)
		for {
			n, err := user.Read(buf)
			term.mu.Lock()
			term.shown.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { tty.Close(); user.Close() })
	return term
}

// screen is all that was shown so far.
func (term *screen) screen() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.shown.String()
}

// await waits until the terminal shows a text.
func (term *screen) await(text string) {
	term.t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(term.screen(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			term.t.Fatalf("the terminal does not show %q, but %q", text, term.screen())
		}
	}
}

// start runs modsign on the terminal, in a session of its own. The directory holds
// the tree of the stories.
func (term *screen) start(dir string, args ...string) *exec.Cmd {
	term.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	term.t.Cleanup(cancel)
	name := "modsign"
	if args[0] == "sh" {
		name, args = args[0], args[1:]
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.tty, term.tty, term.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		term.t.Fatal(err)
	}
	return cmd
}

// end waits for the program's end, and returns its exit code, whether the terminal
// shows then what is typed, and all that it showed.
func (term *screen) end(cmd *exec.Cmd) (code int, echoes bool, screen string) {
	term.t.Helper()
	err := cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		term.t.Fatal(err)
	}
	echoes = term.echoes()
	term.tty.Close()
	<-term.ended // the last one has gone: read(2) fails with EIO
	return cmd.ProcessState.ExitCode(), echoes, term.screen()
}

// echoes reports whether the terminal shows what is typed.
func (term *screen) echoes() bool {
	term.t.Helper()
	state, err := unix.IoctlGetTermios(int(term.user.Fd()), unix.TCGETS)
	if err != nil {
		term.t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func (term *screen) typed(text string) {
	term.t.Helper()
	if _, err := io.WriteString(term.user, text); err != nil {
		term.t.Fatal(err)
	}
}

// terminalDir holds the tree of the stories, a key, and the key encrypted.
func terminalDir(t *testing.T) string {
	dir := t.TempDir()
	if err := writeTree(filepath.Join(dir, "tree"), testmodules(t)); err != nil {
		t.Fatal(err)
	}
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	testmod.Run(t, testmod.Program(t, "openssl", "openssl"), "pkcs8", "-topk8", "-v2", "aes-256-cbc",
		"-in", key, "-passout", "pass:"+passphrase, "-out", filepath.Join(dir, "enc.pem"))
	if err := errors.Join(
		os.Chmod(filepath.Join(dir, "enc.pem"), 0o600),
		os.Rename(key, filepath.Join(dir, "key.pem")),
		os.Rename(cert, filepath.Join(dir, "cert.pem")),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestProgressOnTerminal looks at the line that shows how far things are: it is
// there, no wider than the terminal, and gone at the end.
func TestProgressOnTerminal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		args  []string
		line  string // how it begins
		after string
	}{
		{
			"sign", []string{"sign", "-k", "key.pem", "-c", "cert.pem", "tree"}, "signing 1 of 4 modules, ",
			"modsign: signed 4 modules",
		},
		{"verify", []string{"verify", "-c", "cert.pem", "tree"}, "verifying 1 of 4 modules", "modsign: verified 4 modules"},
		{"quiet", []string{"sign", "-q", "-k", "key.pem", "-c", "cert.pem", "tree"}, "", ""},
		{"json", []string{"sign", "-q", "--json", "-k", "key.pem", "-c", "cert.pem", "tree"}, "", `{"message_type"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			term := newScreen(t)
			code, _, screen := term.end(term.start(terminalDir(t), test.args...))
			if code != 0 && test.name != "verify" {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(screen, test.after) || test.after == "" && screen != "" {
				t.Errorf("the terminal shows %q, want %q", screen, test.after)
			}
			if test.line == "" {
				if strings.Contains(screen, "\x1b") {
					t.Errorf("there is a line that shows progress: %q", screen)
				}
				return
			}
			shown, rest, erased := strings.Cut(screen, "\r\x1b[K")
			if !erased || !strings.HasPrefix(shown, test.line) || len(shown) >= 60 {
				t.Errorf("want a line of less than 60 columns that begins with %q and is erased: %q", test.line, screen)
			}
			// What is left when all erasing is done is words in whole lines.
			for line := range strings.SplitSeq(rest, "\r\n") {
				if i := strings.LastIndex(line, "\r\x1b[K"); i >= 0 {
					line = line[i+len("\r\x1b[K"):]
				}
				if line != "" && !strings.HasPrefix(line, "modsign: ") && !strings.HasPrefix(line, "tree/") {
					t.Errorf("left on the terminal: %q of %q", line, screen)
				}
			}
		})
	}
}

// TestInterruptedPrompt ends a command in the moment in which it asks for a passphrase.
func TestInterruptedPrompt(t *testing.T) {
	t.Parallel()
	dir := terminalDir(t)
	for range testmod.Rounds(40, 5) {
		term := newScreen(t)
		cmd := term.start(dir, "sign", "-k", "enc.pem", "-c", "cert.pem", "tree")
		term.await("Passphrase for enc.pem: ")
		if term.echoes() {
			t.Error("what is typed is shown once it asks")
		}
		cmd.Process.Signal(syscall.SIGTERM)
		code, echoes, screen := term.end(cmd)
		if code != exitInterrupted || !echoes {
			t.Fatalf("exit code %d, and the terminal shows what is typed: %v; it shows %q", code, echoes, screen)
		}
	}
}

// TestPromptBesideLog asks on the terminal, where stderr is a file.
func TestPromptBesideLog(t *testing.T) {
	t.Parallel()
	dir := terminalDir(t)
	term := newScreen(t)
	cmd := term.start(dir, "sh", "-c", `exec modsign sign -k enc.pem -c cert.pem tree 2>log`)
	term.await("Passphrase for enc.pem: ")
	term.typed("\x04") // the end of the input
	if code, _, screen := term.end(cmd); code != exitError {
		t.Errorf("exit code %d: %s", code, screen)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil || !strings.Contains(string(log), "there was no answer") || strings.Contains(string(log), "Passphrase") {
		t.Errorf("the log has %q (%v)", log, err)
	}
}

// TestPassphraseOnTerminal types the passphrase when it is asked for.
func TestPassphraseOnTerminal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, typed string
		code        int
		says        string
	}{
		{"right", passphrase + "\n", 0, "modsign: signed 4 modules"},
		{"wrong", "donkey\n", 1, "modsign: enc.pem: wrong passphrase"},
		{"interrupt", "\x03", exitInterrupted, "interrupted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			term := newScreen(t)
			cmd := term.start(terminalDir(t), "sign", "-k", "enc.pem", "-c", "cert.pem", "tree")
			term.await("Passphrase for enc.pem: ")
			for deadline := time.Now().Add(time.Minute); term.echoes() && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond) // it asks first
			}
			term.typed(test.typed)
			code, echoes, screen := term.end(cmd)
			if code != test.code {
				t.Errorf("exit code %d (%v), want %d", code, cmd.ProcessState, test.code)
			}
			if !strings.Contains(screen, test.says) {
				t.Errorf("the terminal shows %q, want %q", screen, test.says)
			}
			if strings.Contains(screen, strings.TrimSpace(test.typed)) {
				t.Errorf("the terminal shows what was typed: %q", screen)
			}
			if !echoes {
				t.Error("the terminal is left without echo")
			}
		})
	}
}

// TestAgentOnTerminal types the passphrase of a key for an agent to hold, whose process has
// another session.
func TestAgentOnTerminal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, typed string
		code        int
		says        string
	}{
		{"right", passphrase + "\n", 0, "modsign: the key agent of tree holds "},
		{"wrong", "donkey\n", 1, "modsign: enc.pem: wrong passphrase"},
		{"interrupt", "\x03", exitInterrupted, "interrupted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, term := terminalDir(t), newScreen(t)
			cmd := term.start(dir, "agent", "start", "-k", "enc.pem", "-c", "cert.pem", "tree")
			term.await("Passphrase for enc.pem: ")
			for deadline := time.Now().Add(time.Minute); term.echoes() && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond) // it asks first
			}
			term.typed(test.typed)
			code, echoes, screen := term.end(cmd)
			if code != test.code || !echoes || !strings.Contains(screen, test.says) {
				t.Errorf("exit code %d, want %d; the terminal shows %q", code, test.code, screen)
			}
			if strings.Contains(screen, strings.TrimSpace(test.typed)) {
				t.Errorf("the terminal shows what was typed: %q", screen)
			}
			forget := modsign(t, "agent", "forget", filepath.Join(dir, "tree"))
			if started := forget.code == 0; started != (test.code == 0) {
				t.Errorf("an agent runs: %t; %s", started, forget.stderr)
			}
		})
	}
}
