package signerprogram

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/keyfile"
)

// A process is a running program with pipes. It leads a session, and so a process group,
// so that what it starts can be ended with it. A terminal is out of its reach: otherwise
// the system would stop it when it prompts.
type process struct {
	cmd                   *exec.Cmd
	stdin, stdout, stderr *os.File
	exited                chan struct{} // closed when the program has ended
}

func startProcess(name string, env []string) (*process, error) {
	cmd := exec.Command(name)
	cmd.Env = append([]string{}, env...) // nil would be the environment of this process
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var theirs, ours [3]*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			f.Close()
		}
	}
	defer func() { closeAll(theirs[:]) }()
	for fd := range ours {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(ours[:])
			return nil, err
		}
		if fd == 0 {
			r, w = w, r
		}
		ours[fd], theirs[fd] = r, w
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs[0], theirs[1], theirs[2]
	if err := cmd.Start(); err != nil {
		closeAll(ours[:])
		return nil, startError(name, err)
	}
	p := &process{cmd: cmd, stdin: ours[0], stdout: ours[1], stderr: ours[2], exited: make(chan struct{})}
	go p.awaitExit()
	return p, nil
}

// awaitExit leaves the process a zombie: until reap, its number is that of no other group.
func (p *process) awaitExit() {
	for unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	close(p.exited)
}

// signal sends a signal to the program and what it has started. Call it before reap only.
func (p *process) signal(s syscall.Signal) { _ = syscall.Kill(-p.cmd.Process.Pid, s) } // all may have ended

// endsWithin reports whether the program ends in this time.
func (p *process) endsWithin(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
		return false
	}
}

// reap kills what the program left of its group, and returns how the program ended. Call
// it once.
func (p *process) reap() (*os.ProcessState, error) {
	p.signal(syscall.SIGKILL)
	return p.cmd.Process.Wait()
}

// startError says why a program cannot be started.
func startError(name string, err error) error {
	say := func(hint, format string, args ...any) error {
		return &keyfile.HintError{Err: fmt.Errorf(format, args...), Hint: hint}
	}
	isPath := strings.Contains(name, "/")
	info, statErr := os.Stat(name)
	switch {
	case errors.Is(err, exec.ErrDot):
		return say("to run it from this directory: exec:./"+name, "the program lies in the current directory, "+
			"which is searched only because PATH says so")
	case !isPath && errors.Is(err, exec.ErrNotFound):
		if first, _, found := strings.Cut(name, " "); found {
			return say("give "+first+" alone: its settings belong in a file or in the environment",
				"no program of this name is in PATH, and a program gets no arguments")
		}
		return say("for a program outside PATH, give its path: exec:./"+name, "no program of this name is in PATH")
	case statErr == nil && info.IsDir():
		return errors.New("a directory is no program")
	case statErr == nil && errors.Is(err, fs.ErrPermission):
		return say("chmod +x "+quote(name), "the program cannot be started: it is not executable")
	case statErr == nil && errors.Is(err, fs.ErrNotExist):
		return errors.New("the program cannot be started: the interpreter in its first line does not exist")
	case errors.Is(err, syscall.ENOEXEC):
		return say("a script begins with a line such as #!/bin/sh", "the program cannot be started: unknown format")
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err // it names the program, as the caller does
	}
	return fmt.Errorf("the program cannot be started: %w", err)
}

var plainWord = regexp.MustCompile(`^[\w./+-]+$`)

// quote returns a name for a shell's command line.
func quote(name string) string {
	if plainWord.MatchString(name) {
		return name
	}
	return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
}

// eachWords calls f for each line that is not blank, cut off after size bytes.
func eachWords(r io.Reader, size int, f func(text string)) {
	rest := false // of a long line
	for lines := bufio.NewReaderSize(r, size); ; {
		line, err := lines.ReadSlice('\n')
		if text := strings.TrimRight(printable(string(line)), " "); text != "" && !rest {
			f(text)
		}
		if rest = err == bufio.ErrBufferFull; err != nil && !rest {
			return
		}
	}
}
