package main

import (
	"errors"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// abortOnFailure makes a failure of Go's runtime (no memory, no thread) and a panic
// end the process by SIGABRT, before any work begins. By itself the runtime ends with
// exit code 2, which says that nothing was done.
//
// A process that aborts can leave a core. Commands read keys and passphrases, some of
// them before they know that it is a key (verify --cert), and KBUILD_SIGN_PIN is in
// memory from the start: so no command leaves a core. The hard limit stays for the
// programs that modsign calls.
func abortOnFailure() {
	debug.SetTraceback("crash")
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_CORE, &limit) == nil {
		limit.Cur = 0
		// What fails here was not promised. The limit alone does not keep the memory
		// from a program in /proc/sys/kernel/core_pattern.
		_ = errors.Join(unix.Setrlimit(unix.RLIMIT_CORE, &limit), unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
	}
}
