// Package debtest tests scripts/hooks, scripts/debian and scripts/package with the real
// dkms, debhelper, run-parts, kernel-install, dpkg and rpm. It installs nothing on the
// machine: hooks and tools run from the tree, or from a directory into which a package
// was installed, with the modsign of this tree.
package debtest
