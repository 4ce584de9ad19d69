# What scripts/p11kit, scripts/openssl, scripts/sources, scripts/images, scripts/chroots and
# scripts/dkms-suite share: packages of other suites and architectures of Debian than this
# system's. They source this file after scripts/cache.sh.
# shellcheck shell=bash

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# find_mirror sets mirror, the address from which this system has its packages.
find_mirror() {
	# shellcheck disable=SC2016 # apt replaces the name
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sed -n 1p)
	[[ -n $mirror ]] || die "apt knows no mirror of Debian: run apt-get update"
}

# apt_of runs apt-get or apt-cache with the package lists of one suite, which are nobody
# else's, for $architecture, or amd64. open_cache has set new.
apt_of() {
	local suite=$1 program=$2 arch=${architecture:-amd64}
	local dir=${new:?}/$suite${architecture:+-$arch}
	shift 2
	[[ -f $keyring ]] || die "$keyring is missing: apt-get install debian-archive-keyring"
	[[ -n ${mirror:-} ]] || find_mirror
	mkdir -p "$dir/lists/partial" "$dir/archives/partial"
	echo "deb [arch=$arch signed-by=$keyring] $mirror $suite main" >"$dir/sources.list"
	"$program" -qq -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists="$dir/lists" -o Dir::State::Status=/dev/null \
		-o Dir::Cache="$dir" -o Dir::Cache::Archives="$dir/archives" \
		-o APT::Architecture="$arch" -o APT::Architectures="$arch" -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}

# unpack_of unpacks packages of one suite into a directory.
unpack_of() {
	local suite=$1 to=$2 deb debs=$new/$1/debs
	shift 2
	apt_of "$suite" apt-get update
	mkdir -p "$to" "$debs"
	(cd "$debs" && apt_of "$suite" apt-get download "$@")
	for deb in "$debs"/*.deb; do
		dpkg-deb -x "$deb" "$to"
	done
}
