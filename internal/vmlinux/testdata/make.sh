#!/bin/sh
# Makes the images that the fuzz targets begin with: a small vmlinux for amd64
# and for s390, and the stripped one through every compressor of the kernel's
# build; and reserve.amd64, a vmlinux with room for further certificates. Needs
# binutils, binutils-s390x-linux-gnu, openssl and the compressors.
set -eu
cd "$(dirname "$0")"
new=$(mktemp -d)
made=$(mktemp -d .new.XXXXXX) # beside the files that it replaces at the end
trap 'rm -r "$new" "$made"' EXIT

for name in trusted revoked; do
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 \
		-subj "/CN=modsign test, $name" -keyout /dev/null -outform DER -out "$new/$name.der"
done
link() {
	prefix=$1 bits=$2 emulation=$3 word=$4 out=$5
	sed "s/\bWORD\b/$word/; s/\bRESERVE\b/${6:-0}/" kernel.S >"$new/kernel.S"
	"${prefix}as" "$bits" -I "$new" -o "$new/kernel.o" "$new/kernel.S"
	"${prefix}ld" -m "$emulation" -N --no-warn-rwx-segments -o "$out" "$new/kernel.o"
	chmod 644 "$out"
}
link '' --64 elf_x86_64 .quad "$made/vmlinux.amd64"
link s390x-linux-gnu- -m31 elf_s390 .long "$made/vmlinux.s390"
link '' --64 elf_x86_64 .quad "$made/reserve.amd64" 4096
objcopy -S "$made/vmlinux.amd64" "$new/vmlinux.bin"

in=$new/vmlinux.bin
gzip -n -f -9 <"$in" >"$made/vmlinux.bin.gz"
bzip2 -9 <"$in" >"$made/vmlinux.bin.bz2"
lzma -9 <"$in" >"$made/vmlinux.bin.lzma"
xz --check=crc32 --x86 --lzma2=dict=1MiB <"$in" >"$made/vmlinux.bin.xz"
lzop -9 <"$in" >"$made/vmlinux.bin.lzo"
lz4 -q -l -9 - - <"$in" >"$made/vmlinux.bin.lz4"
zstd -q -22 --ultra <"$in" >"$made/vmlinux.bin.zst"

mv -f -- "$made"/* .
