// Package rpmtest tests scripts/rpm, the macros and helpers that sign kernel modules in
// RPM packages. It uses the real rpmbuild, find-debuginfo and modules built against a
// real kernel's headers. The package has only tests. They are left out with the race
// detector, because the tested code runs in other processes.
package rpmtest
