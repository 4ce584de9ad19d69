// Package integrations holds tests alone. They run the files of its directories, which bring
// modsign into the build systems of distributions and into CI, with the real tools as far as
// Debian has them. README.md says which tool ran what.
package integrations
