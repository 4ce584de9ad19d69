package dirfd

import (
	"math"

	"golang.org/x/sys/unix"
)

// MaxOpen returns how many descriptors this process may have open at once, or 0 if that
// cannot be known. Go raises the soft limit to the hard one when the process starts.
func MaxOpen() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(limit.Cur, math.MaxInt32))
}
