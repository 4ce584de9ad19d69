// Package debtest tests what scripts/hooks, scripts/debian and scripts/package
// hold, with the real dkms, debhelper, run-parts, kernel-install, dpkg and rpm.
// Nothing of it is installed on the machine: hooks and tools run from the tree or
// from a directory that a package was installed to, with the modsign of this tree.
package debtest
