package kbuildrun

import "bytes"

// PlaceSignFile puts modsign in the place of scripts/sign-file, the program with which
// Kbuild signs: the package goals install modules past the hook. The program stays beside
// it: packages of kernel headers take both, to machines that may not have modsign.
func (h *Hook) PlaceSignFile() error {
	file := h.file(signFile)
	state, err := file.link()
	if err != nil {
		return err
	}
	script := h.signFile()
	switch state {
	case Ours:
		if old, err := file.read(); err != nil || bytes.Equal(old, []byte(script)) {
			return err
		}
	case Foreign:
		if err := file.rename(kbuilt); err != nil {
			return err
		}
	}
	return file.write(script, 0o755)
}

// signFile is a script and no link: the linker would write through a link, and make would
// take the age of modsign for that of the program.
func (h *Hook) signFile() string {
	return stamp(`#!/bin/sh
# modsign kbuild hook, sha256 ` + sum + `
#
# Written by "modsign kbuild enable": signs with modsign, where it is installed,
# and else with the program that Kbuild built.
test -x '` + h.Program + `' && exec '` + h.Program + `' sign-file "$@"
exec "$0.kbuild" "$@"
`)
}

// takeSignFile undoes PlaceSignFile.
func (h *Hook) takeSignFile() error {
	file, old := h.file(signFile), h.file(kbuilt)
	state, err := file.link()
	if err != nil {
		return err
	}
	if state == Foreign { // Kbuild has built it again
		return old.remove()
	}
	if old.exists() {
		return old.rename(signFile)
	}
	if state == Ours {
		return file.remove()
	}
	return nil
}
