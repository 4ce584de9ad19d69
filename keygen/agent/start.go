package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyLine is what the process of an agent writes when it answers.
const readyLine = "ready"

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
	said, says, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer said.Close()
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", nil, says, says
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	says.Close()
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // so that it leaves no zombie if it ends before this process
		close(ended)
	}()
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()

	failure := new(StartError)
	for lines := bufio.NewScanner(said); lines.Scan(); {
		if lines.Text() == readyLine && stop() { // otherwise it has been told to end
			return Dial(dir)
		}
		failure.Output = append(failure.Output, lines.Text())
	}
	if ctx.Err() != nil {
		<-ended // it has its socket to remove
		return nil, context.Cause(ctx)
	}
	return nil, failure
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
// answers, and then replaces standard input, output and error with /dev/null.
func Detach(stdout io.Writer) error {
	if _, err := fmt.Fprintln(stdout, readyLine); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("cannot replace descriptor %d with %s: %w", fd, os.DevNull, err)
		}
	}
	return nil
}
