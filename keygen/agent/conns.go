package agent

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// connSet are the connections of an agent. When there are too many, the one that
// gives way is one that never said anything or, where all did, the one that has been
// idle longest: whoever comes new is heard, however many are silent.
type connSet struct {
	mu    sync.Mutex
	max   int
	clock int // of what happens, in order
	open  map[net.Conn]*connUse
}

// connUse is when a connection was used last, by the clock of connSet.
type connUse struct {
	at    int
	spoke bool
	busy  bool // its request is being answered
}

// connectionLimit leaves descriptors for the agent's own files.
func connectionLimit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1
	}
	return int(min(maxConnections, limit.Cur/2))
}

func (c *connSet) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open, c.max = make(map[net.Conn]*connUse), connectionLimit()
	}
	if len(c.open) >= c.max {
		c.drop()
	}
	c.clock++
	c.open[conn] = &connUse{at: c.clock}
}

// remove forgets a connection, and leaves it open.
func (c *connSet) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

// busy notes that the answer to a connection's request begins or ends.
func (c *connSet) busy(conn net.Conn, busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if use := c.open[conn]; use != nil {
		c.clock++
		*use = connUse{at: c.clock, spoke: true, busy: busy}
	}
}

// makeRoom closes a connection.
func (c *connSet) makeRoom() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop()
}

func (c *connSet) drop() {
	var victim net.Conn
	var least *connUse
	for conn, use := range c.open {
		if !use.busy && (least == nil || use.before(least)) {
			victim, least = conn, use
		}
	}
	if victim != nil {
		victim.Close()
		delete(c.open, victim)
	}
}

// before reports whether a connection has to give way before another.
func (u *connUse) before(v *connUse) bool {
	if u.spoke != v.spoke {
		return v.spoke
	}
	return u.at < v.at
}
