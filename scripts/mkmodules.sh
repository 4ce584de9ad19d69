#!/bin/bash
# Rebuilds testdata/modules from testdata/modules/src: real modules for amd64, against
# Debian's kernel headers, and objects that look like modules for arm64, armhf and s390x;
# each plain, .gz, .xz and .zst. With the package versions in testdata/modules/VERSIONS,
# the result has the same bytes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../testdata/modules"

series=6.12
formats=(plain gz xz zst)
declare -A triplets=(
	[arm64]=aarch64-linux-gnu
	[armhf]=arm-linux-gnueabihf
	[s390x]=s390x-linux-gnu
)
declare -A vermagic=(
	[arm64]="aarch64"
	[armhf]="ARMv7 p2v8"
	[s390x]=""
)

die() {
	echo "mkmodules: $*" >&2
	exit 1
}

headers=$(find /usr/src -maxdepth 1 -name "linux-headers-$series.*-amd64" ! -name '*-rt-*' ! -name '*-cloud-*' | sort -V | tail -n 1)
packages=(
	binutils-aarch64-linux-gnu
	binutils-arm-linux-gnueabihf
	binutils-s390x-linux-gnu
	binutils-x86-64-linux-gnu
	gcc-12-aarch64-linux-gnu
	gcc-12-arm-linux-gnueabihf
	gcc-12-s390x-linux-gnu
	gcc-12
	gzip
	xz-utils
	zstd
)
missing=()
for package in "${packages[@]}"; do
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
[[ -n $headers ]] || missing+=("linux-headers-$series.*-amd64 (the newest)")
[[ ${#missing[@]} == 0 ]] || die "install these packages of Debian 12 first: ${missing[*]}"

tmp=$(mktemp -d)
aside=''
trap 'rm -rf "$tmp" ${aside:+"$aside"}' EXIT
out=$tmp/out

export LC_ALL=C TZ=UTC
export SOURCE_DATE_EPOCH=0 KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_USER=modsign KBUILD_BUILD_HOST=modsign

# put places a built module, in every format as the kernel's build compresses.
put() {
	local module=$1 dir=$2 name format
	name=${module##*/}
	for format in "${formats[@]}"; do
		mkdir -p "$dir/$format"
	done
	install -m 644 "$module" "$dir/plain/$name"
	gzip -n -c "$module" >"$dir/gz/$name.gz"
	xz --check=crc32 --lzma2=dict=1MiB -c "$module" >"$dir/xz/$name.xz"
	zstd -q -c "$module" >"$dir/zst/$name.zst"
}

build_amd64() {
	local build=$tmp/amd64 module
	mkdir "$build"
	cp src/Kbuild src/*.[ch] "$build"
	make -s -C "$headers" M="$build" KCFLAGS="-g1 -ffile-prefix-map=$build/=" modules
	for module in hello counter ring; do
		put "$build/$module.ko" "$out/amd64-$series"
	done
}

# compile makes an object file of an architecture from a source file.
compile() {
	local triplet=$1 module=$2 source=$3
	(cd src && "$triplet-gcc-12" -c -O2 -g -Wall -Wextra -ffile-prefix-map="$PWD=." -ffreestanding -fno-pie -fno-common \
		-fno-stack-protector -fno-asynchronous-unwind-tables -fno-unwind-tables -Ishim -DKBUILD_MODNAME="\"$module\"" "${@:4}" \
		-o "$tmp/$triplet-$module-${source//\//-}.o" "$source")
	echo "$tmp/$triplet-$module-${source//\//-}.o"
}

build_shaped() {
	local arch=$1 triplet=${triplets[$1]} magic module source depends objects
	magic="$series.0-none SMP mod_unload ${vermagic[$arch]}"
	for module in hello counter ring; do
		depends=
		case $module in
		hello) sources=(hello.c) ;;
		counter) sources=(counter.c) depends=hello ;;
		ring) sources=(ring_main.c ring_bytes.c) ;;
		esac
		objects=()
		for source in "${sources[@]}"; do
			objects+=("$(compile "$triplet" "$module" "$source")")
		done
		objects+=("$(compile "$triplet" "$module" shim/mod.c -DDEPENDS="\"$depends\"" -DVERMAGIC="\"${magic% } \"")")
		"$triplet-ld" -r --build-id=sha1 -o "$tmp/$module.ko" "${objects[@]}"
		put "$tmp/$module.ko" "$out/$arch"
	done
}

build_amd64
for arch in arm64 armhf s390x; do
	build_shaped "$arch"
done

for word in "$tmp" "$PWD" "$HOME"; do
	if grep -rqF -- "$word" "$out"; then
		die "a module holds the path $word of this machine"
	fi
done

dpkg-query -W -f '${Package} ${Version}\n' "${packages[@]}" "${headers##*/}" >"$out/VERSIONS"
(cd "$out" && find "amd64-$series" arm64 armhf s390x -type f | sort | xargs sha256sum >"$tmp/SHA256SUMS")
mv "$tmp/SHA256SUMS" "$out"

# All of it goes beside its place before the first name changes, and then nothing but
# SIGKILL interrupts the renames.
aside=$(mktemp -d .new.XXXXXX)
mkdir "$aside/old"
cp -a "$out" "$aside/new"
trap '' INT TERM HUP
for name in "amd64-$series" arm64 armhf s390x; do
	[[ ! -e $name ]] || mv -T "$name" "$aside/old/$name"
	mv -T "$aside/new/$name" "$name"
done
mv "$aside/new/VERSIONS" "$aside/new/SHA256SUMS" .
echo "$(find "amd64-$series" arm64 armhf s390x -type f -exec cat {} + | wc -c) bytes in $(wc -l <SHA256SUMS) modules"
