# Signs kernel modules in package() of a PKGBUILD, after modules_install:
#
#   source "$srcdir/modsign.sh"
#   modsign_sign "$pkgdir/usr/lib/modules/KVER" KEY CERT   with this key
#   modsign_sign "$pkgdir/usr/lib/modules/KVER"            with a one-time key, whose certificate
#                                                          stays in that directory
#
# shellcheck shell=bash

modsign_sign() {
	local dir=${1:?} key=${2-} cert=${3-} modsign=${MODSIGN:-modsign} scratch status=0
	local -a how

	# makepkg strips after package(). It strips no compressed modules.
	if declare -F check_option >/dev/null && check_option strip y && [[ -n $(find "$dir" -name '*.ko' -print -quit) ]]; then
		echo "modsign_sign: makepkg would strip the signatures: write options=(!strip), and make modules_install INSTALL_MOD_STRIP=1" >&2
		return 1
	fi

	scratch=$(mktemp -d) || return
	if [[ -n $key ]]; then
		how=(--key "$key" --cert "${cert:-$key}")
	else
		cert=$dir/modsign-one-time.x509
		how=(--one-time --cert-out "$scratch/one-time.x509")
	fi
	# package() runs under fakeroot, which knows files by their inode and does not see what a
	# static program does. So modsign writes copies elsewhere, and cp puts their content into
	# the files that fakeroot knows.
	"$modsign" sign "${how[@]}" --owner runner --output "$scratch/signed" "$dir" &&
		cp -R --no-preserve=all "$scratch/signed/." "$dir/" &&
		if [[ -z $key ]]; then cp --no-preserve=all "$scratch/one-time.x509" "$cert"; fi &&
		"$modsign" verify --quiet --cert "${cert:-$key}" "$dir" || status=$?
	rm -rf "$scratch"
	return "$status"
}
