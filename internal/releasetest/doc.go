// Package releasetest tests what a release consists of: that scripts/release makes the same
// bytes in every directory, that the programs run on their architectures, that the container
// image and the packages work where they are installed, and that the commands of
// docs/release.md do what it says. It builds with the real buildah, dpkg-deb and rpmbuild.
package releasetest
