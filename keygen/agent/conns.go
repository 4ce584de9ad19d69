package agent

import (
	"net"
	"sync"

	"github.com/modsign/modsign/internal/dirfd"
)

// connSet are the connections of an agent. When there are too many, the one that
// gives way is one that never said anything or, where all did, the one that has been
// idle longest: whoever comes new is heard, however many are silent. A connection whose
// request was taken stays until the answer is written: its client cannot know whether a
// request without an answer was done.
type connSet struct {
	mu    sync.Mutex
	freed sync.Cond // a connection was removed, or may give way
	max   int
	clock int // of what happens, in order
	open  map[net.Conn]*connUse
}

// connUse is when a connection was used last, by the clock of connSet.
type connUse struct {
	at    int
	spoke bool
	busy  bool // its request was taken, and the answer is not written yet
}

// connectionLimit leaves descriptors for the agent's own files.
func connectionLimit() int { return max(1, min(maxConnections, dirfd.MaxOpen()/2)) }

// add adds a connection. It waits for room while all others are busy; who dials then
// waits in the listener's queue.
func (c *connSet) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open, c.freed.L = make(map[net.Conn]*connUse), &c.mu
		if c.max == 0 {
			c.max = connectionLimit()
		}
	}
	for len(c.open) >= c.max && !c.drop() {
		c.freed.Wait()
	}
	c.clock++
	c.open[conn] = &connUse{at: c.clock}
}

// remove forgets a connection, and leaves it open.
func (c *connSet) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
	c.freed.Signal()
}

// take marks a connection busy. It returns false if the connection had to give way: its
// client sends the request again, so that it must not be done.
func (c *connSet) take(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	use := c.open[conn]
	if use == nil {
		return false
	}
	*use = connUse{spoke: true, busy: true}
	return true
}

// answered ends what take began.
func (c *connSet) answered(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if use := c.open[conn]; use != nil {
		c.clock++
		use.at, use.busy = c.clock, false
		c.freed.Signal()
	}
}

// makeRoom closes a connection.
func (c *connSet) makeRoom() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop()
}

// drop closes a connection that is not busy, if there is one.
func (c *connSet) drop() bool {
	var victim net.Conn
	var least *connUse
	for conn, use := range c.open {
		if !use.busy && (least == nil || use.before(least)) {
			victim, least = conn, use
		}
	}
	if victim == nil {
		return false
	}
	victim.Close()
	delete(c.open, victim)
	return true
}

// before reports whether a connection has to give way before another.
func (u *connUse) before(v *connUse) bool {
	if u.spoke != v.spoke {
		return v.spoke
	}
	return u.at < v.at
}
