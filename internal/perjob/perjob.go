// Package perjob tells the first of the processes of a job from the others.
//
// A kernel's build calls sign-file once per module, thousands of times, from shells and
// makes that inherit nothing from each other. They share only their process group: that of
// the make, script or xargs at the top, which a shell made for it. A file named after the
// group and the subject says that a process of the group has been here.
package perjob

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

// warnedPrefix begins the name of such a file.
const warnedPrefix = "warned-"

// First reports whether this process is the first of its process group to ask about the
// file at path. If it cannot tell, it returns true. runtimeDir is XDG_RUNTIME_DIR.
func First(runtimeDir, path string) bool {
	dir, err := jobDir(runtimeDir)
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
	name := fmt.Sprintf("%s%x-%x-%x", group, key.Dev, key.Ino, key.Ctim.Nano())
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return !errors.Is(err, fs.ErrExist)
	}
	f.Close()
	clearJobs(dir, group)
	return true
}

// startOf returns the time when a process started, in the kernel's ticks: it tells apart
// two processes that had the same ID. It is 0 for a process that has ended.
func startOf(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return "0", nil
	}
	if err != nil {
		return "", err
	}
	// The name, in parentheses, may hold anything. The time is the 22nd field, the 20th
	// after the name.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has fewer fields than expected", pid)
	}
	return fields[19], nil
}

// jobDir returns a directory that only this user can write to, and whose files do not
// outlive a reboot by much.
func jobDir(runtimeDir string) (string, error) {
	dir := filepath.Join(runtimeDir, "modsign")
	switch {
	case os.Geteuid() == 0:
		dir = "/run/modsign"
	case !filepath.IsAbs(runtimeDir):
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("modsign-jobs-%d", os.Geteuid()))
	}
	return dir, makeOwnDir(dir)
}

// makeOwnDir makes a directory, or checks that only this user can have written to it.
func makeOwnDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s is not a directory that only this user can write to", dir)
	}
	return nil
}

// clearJobs removes the files of process groups that have ended, except those of its own
// group. A group whose first process had ended before counts as ended after a day.
func clearJobs(dir, own string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		parts := strings.Split(strings.TrimPrefix(e.Name(), warnedPrefix), "-")
		pid, err := strconv.Atoi(parts[0])
		others := strings.HasPrefix(e.Name(), warnedPrefix) && !strings.HasPrefix(e.Name(), own)
		if !others || len(parts) != 5 || err != nil {
			continue
		}
		started, err := startOf(pid)
		info, infoErr := e.Info()
		gone := err == nil && started != parts[1] && parts[1] != "0"
		if gone || infoErr == nil && time.Since(info.ModTime()) > 24*time.Hour {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}
