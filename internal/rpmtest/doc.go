// Package rpmtest tests scripts/rpm, the macros and helpers that sign kernel
// modules in RPM packages, with the real rpmbuild, find-debuginfo and modules
// that are built against a real kernel's headers. It holds tests alone, and none
// for the race detector: what they test runs in other processes.
package rpmtest
