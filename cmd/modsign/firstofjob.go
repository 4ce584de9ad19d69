package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A kernel's build calls sign-file once a module, thousands of times, from shells and
// makes that inherit nothing from each other. What they have in common is their
// process group: that of the make, script or xargs at the top, which a shell made
// for it. A file that is named after it, and after the key, says that somebody in
// the group has warned already.

// warnedPrefix begins the names of these files.
const warnedPrefix = "warned-"

// firstOfJob reports whether no other process of this process group has asked so
// about the same file before. Where that cannot be known it is true.
func firstOfJob(path string) bool {
	dir, err := jobFolder(os.Getenv("XDG_RUNTIME_DIR"))
	if err != nil {
		return true
	}
	var key unix.Stat_t
	pid := unix.Getpgrp()
	if pid == 0 { // of another PID namespace
		pid = os.Getppid()
	}
	started, err := startOf(pid)
	if err != nil || unix.Stat(path, &key) != nil {
		return true
	}
	group := fmt.Sprintf("%s%d-%s-", warnedPrefix, pid, started)
	f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%s%x-%x-%x", group, key.Dev, key.Ino, key.Ctim.Nano())), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return !errors.Is(err, fs.ErrExist)
	}
	f.Close()
	clearJobs(dir, group)
	return true
}

// startOf returns when a process was started, in the kernel's ticks: a process ID is
// used again, but not at the same time. A group whose first process has ended is
// told apart by its ID alone.
func startOf(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return "0", nil
	}
	if err != nil {
		return "", err
	}
	// The name, in parentheses, may hold anything. The field is the 22nd, and the
	// 20th after the name.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", errors.New("not a line of /proc/PID/stat")
	}
	return fields[19], nil
}

// jobFolder returns a folder that this user alone can write to, and in which nothing
// outlives the machine's uptime by much.
func jobFolder(runtimeDir string) (string, error) {
	dir := filepath.Join(runtimeDir, "modsign")
	switch {
	case os.Geteuid() == 0:
		dir = "/run/modsign"
	case !filepath.IsAbs(runtimeDir):
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("modsign-jobs-%d", os.Geteuid()))
	}
	return dir, ownFolder(dir)
}

// ownFolder makes the folder, or sees that nobody else can have put anything in it.
func ownFolder(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s is not a folder that this user alone can write to", dir)
	}
	return nil
}

// clearJobs removes the files of process groups that have ended, but for the group's
// own. Without a first process nobody knows when that is, and a day is enough.
func clearJobs(dir, own string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		parts := strings.Split(strings.TrimPrefix(e.Name(), warnedPrefix), "-")
		pid, err := strconv.Atoi(parts[0])
		if !strings.HasPrefix(e.Name(), warnedPrefix) || strings.HasPrefix(e.Name(), own) || len(parts) != 5 || err != nil {
			continue
		}
		started, err := startOf(pid)
		info, infoErr := e.Info()
		if err == nil && started != parts[1] && parts[1] != "0" || infoErr == nil && time.Since(info.ModTime()) > 24*time.Hour {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}
