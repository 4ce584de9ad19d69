#!/bin/sh
# Makes the certificates and signatures in this folder anew, with the kernel's own
# sign-file and with openssl, all over the file "payload". The private keys are thrown
# away. Needs openssl and one of Debian's linux-kbuild packages.
#
# What signer prints is several words, to be split:
# shellcheck disable=SC2046
set -eu
cd "$(dirname "$0")"
sign_file=$(printf '%s\n' /usr/lib/linux-kbuild-*/scripts/sign-file | sort -V | tail -n 1)
keys=$(mktemp -d)
here=$PWD
new=$(mktemp -d "$here/.new.XXXXXX") # all is made here, and moved at the end
trap 'rm -rf "$keys" "$new"' EXIT
cd "$new"
printf 'the payload of a module' > payload

end_entity='basicConstraints=critical,CA:FALSE
keyUsage=digitalSignature
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid'
authority='basicConstraints=critical,CA:TRUE
keyUsage=keyCertSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid'

# self_signed NAME EXTENSIONS [openssl req arguments]
self_signed() {
	name=$1
	printf '[req]\ndistinguished_name=d\nprompt=no\nstring_mask=utf8only\nx509_extensions=x\n[d]\nO=modsign tests\nCN=%s\n[x]\n%s\n' "$name" "$2" > "$keys/cnf"
	shift 2
	openssl req -new -nodes -x509 -days 36500 -batch -config "$keys/cnf" -keyout "$keys/$name.key" -out "$keys/$name.pem" "$@" 2> "$keys/log"
	openssl x509 -in "$keys/$name.pem" -outform DER -out "$name.x509"
}

# issued NAME ISSUER SERIAL EXTENSIONS
issued() {
	openssl req -new -nodes -subj "/O=modsign tests/CN=$1" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout "$keys/$1.key" -out "$keys/csr" 2> "$keys/log"
	printf '%s\n' "$4" > "$keys/ext"
	openssl x509 -req -in "$keys/csr" -CA "$keys/$2.pem" -CAkey "$keys/$2.key" -days 36500 -sha256 -extfile "$keys/ext" -set_serial "$3" -out "$keys/$1.pem" 2> "$keys/log"
	openssl x509 -in "$keys/$1.pem" -outform DER -out "$1.x509"
}

# kernel OUTPUT KEY HASH [sign-file options]
kernel() {
	output=$1 key=$2 hash=$3
	shift 3
	cp payload "$keys/module"
	"$sign_file" -d "$@" "$hash" "$keys/$key.key" "$keys/$key.pem" "$keys/module"
	mv "$keys/module.p7s" "$output.p7s"
}

# cms OUTPUT [openssl cms arguments], signer SIGNER: the signer's arguments
cms() {
	output=$1
	shift
	openssl cms -sign -binary -in payload -outform DER -out "$output.p7s" "$@"
}
signer() { echo "-signer $keys/$1.pem -inkey $keys/$1.key"; }

self_signed rsa2048 "$end_entity" -newkey rsa:2048 -sha256
self_signed rsa1024 "$end_entity" -newkey rsa:1024 -sha1
self_signed p256 "$end_entity" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -sha256
self_signed p384 "$end_entity" -newkey ec -pkeyopt ec_paramgen_curve:P-384 -sha384
self_signed p521 "$end_entity" -newkey ec -pkeyopt ec_paramgen_curve:P-521 -sha512
self_signed small 'subjectKeyIdentifier=none
authorityKeyIdentifier=none' -newkey ec -pkeyopt ec_paramgen_curve:P-256 -sha256 -set_serial 5
self_signed zero 'subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid:always,issuer:always' -newkey ec -pkeyopt ec_paramgen_curve:P-256 -sha256 -set_serial 0
self_signed p192 "$end_entity" -newkey ec -pkeyopt ec_paramgen_curve:prime192v1 -sha256
self_signed p224 "$end_entity" -newkey ec -pkeyopt ec_paramgen_curve:secp224r1 -sha256
self_signed ed25519 "$end_entity" -newkey ed25519
self_signed pss "$end_entity" -newkey rsa-pss -pkeyopt rsa_keygen_bits:2048 -sha256
self_signed root "$authority" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -sha256
issued inter root 17 'basicConstraints=critical,CA:TRUE
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid,issuer:always'
issued leaf inter 0x00ffeeddccbbaa99887766554433221100 'subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid'
issued leaf2 inter 3 'subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid,issuer:always'
cat "$keys/inter.pem" "$keys/root.pem" > "$keys/chain.pem"

kernel kernel-rsa2048 rsa2048 sha512
kernel kernel-rsa2048-keyid rsa2048 sha512 -k
kernel kernel-rsa2048-sha3 rsa2048 sha3-256
kernel kernel-p256 p256 sha256
kernel kernel-p256-keyid p256 sha256 -k
kernel kernel-p256-sha1 p256 sha1
kernel kernel-p384 p384 sha384
kernel kernel-p521 p521 sha512
kernel kernel-small small sha256
kernel kernel-zero zero sha256
kernel kernel-leaf leaf sha256
kernel kernel-md5 rsa1024 md5
cms cms-chain -noattr $(signer leaf2) -certfile "$keys/chain.pem"
cms cms-inter -noattr $(signer leaf2) -certfile "$keys/inter.pem"
cms cms-nochain -noattr $(signer leaf) -certfile "$keys/root.pem"
cms cms-two -noattr -nocerts $(signer p256) $(signer rsa1024)
cms cms-two-chains -noattr $(signer leaf2) $(signer leaf) -certfile "$keys/chain.pem"
cms cms-attributes -nocerts $(signer p256)
cms cms-attributes-plain -nocerts -nosmimecap $(signer p256)
cms cms-content -noattr -nocerts -nodetach $(signer p256)
cms cms-stream -noattr -nocerts -stream $(signer p256)
cms cms-pss -noattr -nocerts $(signer rsa2048) -keyopt rsa_padding_mode:pss
openssl smime -sign -binary -in payload -outform DER -noattr -nocerts $(signer rsa1024) -out smime-nocerts.p7s
openssl smime -sign -binary -in payload -outform DER -noattr $(signer rsa1024) -out smime.p7s

mv -f -- * "$here"
