# Signs kernel modules when they are packaged: after OE-core has split off their debug information
# and stripped them, and before it divides them into packages.
#
#   inherit modsign                              in a kernel's or a module's recipe
#   MODSIGN_PRIVKEY = "/path/to/key.pem"         in local.conf; or a URI, such as pkcs11:...
#   MODSIGN_X509    = "/path/to/cert.pem"
#   HOSTTOOLS      += "modsign"                  the program is the host's

MODSIGN_PRIVKEY ?= ""
MODSIGN_X509 ?= ""
MODSIGN_HASH ?= "sha512"

PACKAGESPLITFUNCS:prepend = "modsign_sign_modules "

# A new certificate packages the modules anew. The path of the key does not.
do_package[file-checksums] += "${@(d.getVar('MODSIGN_X509') + ':True') if d.getVar('MODSIGN_X509') else ''}"
modsign_sign_modules[vardepsexclude] = "MODSIGN_PRIVKEY"

# do_package runs under pseudo, which knows files by their inode and does not see what a static
# program does. So modsign writes copies to ${T}, which pseudo ignores, and cp puts their content
# into the files that pseudo knows.
modsign_sign_modules() {
	if [ -z "${MODSIGN_PRIVKEY}" ] || [ -z "${MODSIGN_X509}" ]; then
		bbfatal "MODSIGN_PRIVKEY and MODSIGN_X509 name the key and the certificate for modules"
	fi
	for modules in "${PKGD}/lib/modules" "${PKGD}/usr/lib/modules"; do
		if [ ! -d "$modules" ] || [ -L "$(dirname "$modules")" ] ||
			[ -z "$(find "$modules" -type f -name '*.ko*' -print -quit)" ]; then
			continue
		fi
		rm -rf "${T}/modsign"
		modsign sign --key "${MODSIGN_PRIVKEY}" --cert "${MODSIGN_X509}" --hash "${MODSIGN_HASH}" \
			--owner runner --output "${T}/modsign" "$modules" || bbfatal "modules are not signed: $modules"
		cp -R --no-preserve=all "${T}/modsign/." "$modules/"
		rm -rf "${T}/modsign"
		modsign verify --quiet --cert "${MODSIGN_X509}" "$modules" || bbfatal "modules are not trusted: $modules"
	done
}
