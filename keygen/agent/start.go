package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/keygen"
)

// What the process of an agent writes when it answers, and when its key has a passphrase.
const (
	readyLine      = "ready"
	passphraseLine = "modsign agent asks for a passphrase"
)

// StartError reports that the process of an agent ended before the agent answered.
type StartError struct {
	Output []string // the lines that the process wrote
}

// Error returns the last line that the process wrote.
func (e *StartError) Error() string {
	if len(e.Output) == 0 {
		return "the key agent ended before it answered"
	}
	return e.Output[len(e.Output)-1]
}

// Start starts the process of an agent and returns when the agent in dir answers. The
// process has a session of its own and outlives this one. Its program calls [Hide],
// [CloseInherited] and [Serve] with a ready function that calls [Detach]; what it writes
// before that is in the [*StartError] with which Start fails if it ends first.
//
// Start uses the Path, Args and Env of cmd and sets the rest. When ctx ends first, Start
// terminates the process, waits for its end and returns the cause.
func Start(ctx context.Context, cmd *exec.Cmd, dir string) (*Client, error) {
	cmd.Dir, cmd.Stdin = "/", nil
	client, _, err := start(ctx, cmd, dir, nil)
	return client, err
}

// StartHolding is [Start] for an agent that holds a key from elsewhere. The process opens
// the key itself, as an open key cannot be handed over. If it calls [AskPassphrase],
// StartHolding calls passphrase, once. The process begins in the working directory of this
// one, and Detach leaves it. Said are the lines that it wrote before the agent answered.
func StartHolding(
	ctx context.Context, cmd *exec.Cmd, dir string, passphrase keygen.Passphrase,
) (client *Client, said []string, err error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	defer ours.Close()
	cmd.Dir, cmd.Stdin = "", theirs
	return start(ctx, cmd, dir, func() error {
		defer ours.Close() // it asks once
		secret, err := passphrase()
		if errors.Is(err, keygen.ErrNoPassphrase) {
			return nil // it says so of the key
		}
		if err == nil {
			_, err = ours.Write(append([]byte{passphraseFollows}, secret...))
		}
		return err
	})
}

// start starts a process, and calls answer when it asks for a passphrase.
func start(ctx context.Context, cmd *exec.Cmd, dir string, answer func() error) (*Client, []string, error) {
	said, says, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = says, says
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	says.Close()
	if err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // so that it leaves no zombie if it ends before this process
		close(ended)
	}()
	terminate := func() { cmd.Process.Signal(syscall.SIGTERM) }
	stop := context.AfterFunc(ctx, terminate)
	defer stop()

	failure := new(StartError)
	for lines := bufio.NewScanner(said); lines.Scan(); {
		switch {
		case lines.Text() == readyLine && stop(): // otherwise it has been told to end
			client, err := Dial(dir)
			return client, failure.Output, err
		case lines.Text() == passphraseLine && answer != nil:
			if err := answer(); err != nil {
				terminate()
				<-ended
				return nil, nil, err
			}
		default:
			failure.Output = append(failure.Output, lines.Text())
		}
	}
	if ctx.Err() != nil {
		<-ended // it has its socket to remove
		return nil, nil, context.Cause(ctx)
	}
	return nil, nil, failure
}

// passphraseFollows is the first byte of the answer to passphraseLine. An empty answer is
// none.
const passphraseFollows = '='

// AskPassphrase asks the process that called [StartHolding] for the passphrase of the key,
// over the standard output and input of this process. It is a [keygen.Passphrase] with its
// arguments bound.
func AskPassphrase(stdout io.Writer, stdin io.Reader) ([]byte, error) {
	if _, err := fmt.Fprintln(stdout, passphraseLine); err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(stdin)
	if err != nil {
		return nil, err
	}
	if len(answer) == 0 {
		return nil, keygen.ErrNoPassphrase
	}
	return answer[1:], nil
}

// CloseInherited closes the descriptors above 2 that this process inherited: all that
// exec would leave open, which none of Go's own are. Otherwise a pipe of a parent such
// as make would not end before the agent does.
func CloseInherited() error {
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

// Detach tells [Start], over the standard output of this process, that the agent
// answers, then replaces standard input, output and error with /dev/null, and leaves the
// working directory.
func Detach(stdout io.Writer) error {
	if _, err := fmt.Fprintln(stdout, readyLine); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("cannot replace descriptor %d with %s: %w", fd, os.DevNull, err)
		}
	}
	return nil
}
