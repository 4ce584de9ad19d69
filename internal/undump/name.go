package undump

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// nameSize is TASK_COMM_LEN.
const nameSize = 16

func threadName() string {
	var name [nameSize]byte
	if err := unix.Prctl(unix.PR_GET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
		return ""
	}
	return unix.ByteSliceToString(name[:])
}

func setThreadName(name string) {
	var b [nameSize]byte
	copy(b[:nameSize-1], name)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
}
