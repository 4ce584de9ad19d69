# What scripts/kernels, scripts/images, scripts/sources, scripts/openssl, scripts/p11kit,
# scripts/chroots and scripts/dkms-suite share: the cache outside of the repository, in which one of them works at a time. They
# source this file.
#
# The cache is $MODSIGN_CACHE, or else modsign in the user's cache directory (~/.cache/modsign).
# shellcheck shell=bash

say() { echo "${0##*/}: $*" >&2; }

die() {
	say "$*"
	exit 1
}

# need dies unless there are these programs.
need() {
	local program
	for program; do
		command -v "$program" >/dev/null || die "$program is missing: this script needs a Debian machine"
	done
}

as_root() {
	if [[ $EUID == 0 ]]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "root is needed, and sudo is missing: run as root: $*"
	fi
}

update() {
	say "updating apt's package lists"
	as_root apt-get -qq update
}

# open_cache waits for other runs and sets cache, and new: a directory in it, which goes
# with this process, to unpack in.
open_cache() {
	cache=${MODSIGN_CACHE:-${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/modsign}
	mkdir -p "$cache"
	cache=$(cd "$cache" && pwd)
	exec {lock}>"$cache/.lock"
	if ! flock --nonblock "$lock"; then
		say "waiting for another run on $cache"
		flock "$lock"
	fi
	remove_leftovers
	trap remove_leftovers EXIT
	# shellcheck disable=SC2034 # for the scripts
	new=$(mktemp -d "$cache/.unpack.XXXXXX")
}

remove_leftovers() { rm -rf "$cache"/.unpack.*; } # of this run or of one that was killed
