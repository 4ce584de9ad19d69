// Package signerprogram has digests signed by a program that somebody else wrote.
//
// The program runs as long as there is something to sign. It reads requests from its
// standard input and writes answers to its standard output, a line of JSON each;
// docs/signer.md describes them. All that comes from the program is bounded, and it may
// die, fall silent or write anything at any time.
package signerprogram

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// Options are the options of [Start].
type Options struct {
	Certificate []byte       // that of the key, in DER, for the program
	Env         []string     // the environment of the program
	Note        func(string) // takes what the program writes to standard error, and remarks about it; needed
	Times       Times
}

// Times say how long to wait for a program. A field of 0 stands for its default.
type Times struct {
	Silence time.Duration // until a remark about a program that does not answer: 10 s
	Again   time.Duration // until the next one: 1 min
	Linger  time.Duration // for the end of a program that has closed a pipe, or of its output: 2 s
	End     time.Duration // for a program's own end: 5 s
	Pause   time.Duration // between the end of standard input and SIGTERM, in a hurry: 0.2 s
	Kill    time.Duration // between SIGTERM and SIGKILL: 3 s
}

func (t Times) withDefaults() Times {
	return Times{
		Silence: cmp.Or(t.Silence, 10*time.Second),
		Again:   cmp.Or(t.Again, time.Minute),
		Linger:  cmp.Or(t.Linger, 2*time.Second),
		End:     cmp.Or(t.End, 5*time.Second),
		Pause:   cmp.Or(t.Pause, 200*time.Millisecond),
		Kill:    cmp.Or(t.Kill, 3*time.Second),
	}
}

// A Program signs. Several goroutines may use it at once.
type Program struct {
	ctx   context.Context // of Start: it is that of the program, and not of a call
	name  string
	note  func(string)
	times Times

	process  *process
	writing  sync.Mutex    // of a line to the program
	inFlight chan struct{} // holds one for each request under way, made when the program says how many

	hello     chan struct{} // closed when the program has said hello
	fault     chan error    // takes what the program did wrong
	outputEnd chan struct{} // closed when no more answers come, and cutOff is set
	cutOff    error         // about a last line without an end
	wordsEnd  chan struct{} // closed when standard error has ended
	closing   chan struct{} // closed by Close
	closeOnce sync.Once
	stopped   chan struct{} // closed when nothing is signed any more, and err is set
	gone      chan struct{} // closed when the program has ended

	mu       sync.Mutex
	last     uint64 // the number of the last request
	waiting  map[uint64]chan<- answer
	since    time.Time // when the program began to be silent: of its last line, or of the first request after that
	lastSaid string    // the last line of standard error
	err      error     // that of Sign from now on
	atClose  error     // that of Close, unless Sign has returned it
}

// Start starts a program, by its path or its name in PATH, and waits for its hello. The
// program ends with ctx.
func Start(ctx context.Context, name string, o Options) (*Program, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	running, err := startProcess(name, o.Env)
	if err != nil {
		return nil, err
	}
	p := &Program{
		ctx: ctx, name: name, note: o.Note, times: o.Times.withDefaults(), process: running,
		hello: make(chan struct{}), fault: make(chan error, 1), outputEnd: make(chan struct{}),
		wordsEnd: make(chan struct{}), closing: make(chan struct{}), stopped: make(chan struct{}),
		gone: make(chan struct{}), waiting: make(map[uint64]chan<- answer), since: time.Now(),
	}
	go p.readOutput()
	go p.readWords()
	go p.watch()
	go p.noteSilence()
	go p.write(helloLine(o.Certificate)) // not here: a program may never read it
	select {
	case <-p.hello:
		return p, nil
	case <-p.stopped:
		<-p.gone
		return nil, p.failed()
	}
}

// InFlight returns how many requests the program takes before it has answered the first.
func (p *Program) InFlight() int { return cap(p.inFlight) }

// Lost reports whether the program signs nothing more.
func (p *Program) Lost() bool {
	select {
	case <-p.stopped:
		return true
	default:
		return false
	}
}

// Sign returns the program's signature of a digest, which is not checked.
func (p *Program) Sign(r *Request) ([]byte, error) {
	select {
	case p.inFlight <- struct{}{}:
		defer func() { <-p.inFlight }()
	case <-p.stopped:
		return nil, p.failed()
	case <-p.ctx.Done():
		return nil, p.failed()
	}
	answered := make(chan answer, 1)
	p.write(r.line(p.register(answered)))
	select {
	case a := <-answered:
		return a.signature, a.err
	case <-p.stopped:
	case <-p.ctx.Done(): // the program may have some time yet to end
	}
	select {
	case a := <-answered: // its last
		return a.signature, a.err
	default:
		return nil, p.failed()
	}
}

// register returns the number of a new request.
func (p *Program) register(answered chan<- answer) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) == 0 {
		p.since = time.Now()
	}
	p.last++
	p.waiting[p.last] = answered
	return p.last
}

// write writes a line. That the program has closed its input says little: it may be about
// to end, and its exit status says more.
func (p *Program) write(line []byte) {
	p.writing.Lock()
	defer p.writing.Unlock()
	if _, err := p.process.stdin.Write(line); errors.Is(err, syscall.EPIPE) {
		time.AfterFunc(p.times.Linger, func() {
			p.report(errors.New("the program has closed its standard input, but goes on running"))
		})
	}
}

// report records a fault of the program. The first one counts.
func (p *Program) report(fault error) {
	select {
	case p.fault <- fault:
	default:
	}
}

// failed returns why nothing is signed any more, and remembers that it was told.
func (p *Program) failed() error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.atClose = nil
	return p.err
}

// readOutput reads the lines of the program until it writes a wrong one.
func (p *Program) readOutput() {
	defer close(p.outputEnd)
	lines := bufio.NewReaderSize(p.process.stdout, maxLine)
	for number := 1; ; number++ {
		line, err := lines.ReadSlice('\n')
		switch {
		case err == nil && number == 1:
			err = p.takeHello(line)
		case err == nil:
			err = p.takeAnswer(line)
		case err == bufio.ErrBufferFull:
			err = fmt.Errorf("is longer than %d bytes", maxLine)
		case len(line) > 0: // how the program has ended says more
			p.cutOff = fmt.Errorf("line %d of the program's output has no end", number)
			return
		default:
			return
		}
		if err != nil {
			text := words(string(line[:min(len(line), 100)]))
			p.report(fmt.Errorf("line %d of the program's output %w: %q", number, err, text))
			p.process.stdout.Close() // so that the program does not wait for a reader
			return
		}
	}
}

func (p *Program) takeHello(line []byte) error {
	n, err := parseHello(line)
	if err != nil {
		return err
	}
	p.inFlight = make(chan struct{}, n)
	close(p.hello)
	return nil
}

func (p *Program) takeAnswer(line []byte) error {
	a, err := parseAnswer(line)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	answered, ok := p.waiting[a.id]
	switch {
	case !ok && 1 <= a.id && a.id <= p.last:
		return fmt.Errorf("is a second answer to request %d", a.id)
	case !ok:
		return fmt.Errorf("is an answer to request %d, which does not exist", a.id)
	}
	delete(p.waiting, a.id)
	p.since = time.Now()
	answered <- a
	return nil
}

// readWords passes on what the program writes for people.
func (p *Program) readWords() {
	defer close(p.wordsEnd)
	eachWords(p.process.stderr, maxWords, func(text string) {
		p.mu.Lock()
		p.lastSaid = words(text)
		p.mu.Unlock()
		p.note(p.name + ": " + text)
	})
}

// Close ends the program: it ends the program's standard input, and waits. A program that
// does not end soon is killed. The error is that of the program's end, or an earlier one
// that no call of Sign has returned.
func (p *Program) Close() error {
	p.closeOnce.Do(func() { close(p.closing) })
	<-p.gone
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.atClose
	p.atClose = nil
	return err
}

// watch waits for what ends the program, whatever it is, and ends the rest.
func (p *Program) watch() {
	defer close(p.gone)
	var err error
	regular := false
	select {
	case <-p.ctx.Done():
		err = context.Cause(p.ctx)
	case err = <-p.fault:
	case <-p.process.exited:
	case <-p.outputEnd:
	case <-p.closing:
		regular = true
		p.process.stdin.Close()
	}
	if err == nil {
		err = p.awaitEnd(regular)
	}
	if err != nil {
		p.stop(err, err) // Sign need not wait for the program's end
	}
	p.process.stdin.Close()
	pause := p.times.Pause
	if regular { // it has had its time
		pause = 0
	}
	if !p.process.endsWithin(pause) {
		p.process.signal(syscall.SIGTERM)
		p.process.endsWithin(p.times.Kill)
	}
	state, waitErr := p.process.reap()

	// What has left the program's group may have kept its pipes.
	timer := time.AfterFunc(p.times.Linger, func() { p.process.stderr.Close() })
	<-p.wordsEnd
	timer.Stop()
	p.process.stdout.Close()
	<-p.outputEnd
	p.process.stderr.Close()
	p.stop(p.ending(state, waitErr, regular))
}

// awaitEnd waits for the end of the program and its output, and returns what is wrong
// but for the program's exit status.
func (p *Program) awaitEnd(regular bool) error {
	limit, late := p.times.Linger, errors.New("the program has closed its standard output, but goes on running")
	if regular {
		limit, late = p.times.End, fmt.Errorf("the program did not end within %v after its standard input", p.times.End)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.process.exited:
	case <-timer.C:
		return cmp.Or(p.reported(), late)
	case err := <-p.fault:
		return err
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
	p.process.signal(syscall.SIGKILL) // what it left may keep its output open
	timer.Reset(p.times.Linger)
	select {
	case <-p.outputEnd:
	case <-timer.C:
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
	return p.reported()
}

// reported returns a fault that nobody has taken yet.
func (p *Program) reported() error {
	select {
	case err := <-p.fault:
		return err
	default:
		return nil
	}
}

// ending returns the errors of Sign and Close after the program's own end.
func (p *Program) ending(state *os.ProcessState, waitErr error, regular bool) (forSign, forClose error) {
	if waitErr != nil {
		return waitErr, waitErr
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	unanswered := len(p.waiting)
	how := "has failed at its end"
	switch {
	case !p.saidHello():
		how = "has ended before its hello"
	case unanswered == 1:
		how = "has ended without an answer to 1 request"
	case unanswered > 1:
		how = fmt.Sprintf("has ended without answers to %d requests", unanswered)
	case !regular:
		how = "has ended too early"
	}
	err := fmt.Errorf("the program %s: %v", how, state)
	if p.lastSaid != "" {
		err = fmt.Errorf("%w: %q", err, p.lastSaid)
	}
	switch {
	case !state.Success() || unanswered > 0 || !p.saidHello():
		return err, err
	case p.cutOff != nil:
		return p.cutOff, p.cutOff
	case regular:
		return errors.New("the program was closed"), nil
	}
	return err, nil // nobody misses it
}

// stop makes Sign fail from now on.
func (p *Program) stop(forSign, forClose error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return
	}
	if p.ctx.Err() != nil {
		forClose = nil // whoever ended it knows
	}
	p.err, p.atClose = forSign, forClose
	close(p.stopped)
}

func (p *Program) saidHello() bool {
	select {
	case <-p.hello:
		return true
	default:
		return false
	}
}

// noteSilence tells people for what they wait: a program may wait for a finger on a token.
func (p *Program) noteSilence() {
	timer := time.NewTimer(p.times.Silence)
	defer timer.Stop()
	var since time.Time
	var due time.Duration
	for {
		select {
		case <-timer.C:
		case <-p.stopped:
			return
		}
		p.mu.Lock()
		waiting, began := len(p.waiting), p.since
		p.mu.Unlock()
		hello := p.saidHello()
		if began != since || hello && waiting == 0 {
			since, due = began, p.times.Silence
		}
		silent := time.Since(since)
		if hello && waiting == 0 {
			silent = 0
		}
		if silent >= due {
			what := "has not said hello"
			if hello {
				what = fmt.Sprintf("requests that wait: %d", waiting)
			}
			p.note(fmt.Sprintf("%s: silent for %v; %s", p.name, silent.Round(time.Second), what))
			due = silent + p.times.Again
		}
		timer.Reset(due - silent)
	}
}
