// Package testmod holds what the tests of several packages share: the real
// peers (the kernel's sign-file, openssl, ...), the modules of real kernels,
// throwaway keys, and small ELF files to spoil.
//
// It is imported by tests only. A peer that is missing makes a test skip and
// say what to install; with CI set in the environment it fails instead, because
// there nothing may go untested.
package testmod

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// Missing reports that something a test needs from outside is not there.
// It does not return.
func Missing(t testing.TB, what, remedy string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing and CI may skip nothing: %s", what, remedy)
	}
	t.Skipf("%s is missing: %s", what, remedy)
}

// Slow skips a test in a short run (go test -short, scripts/check). Its argument says
// why the test takes long.
func Slow(t testing.TB, why string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("slow: %s", why)
	}
}

// Decodes is Slow for a test that decodes much in one goroutine: under the race detector, which
// finds nothing there and takes ten times as long, it skips too.
func Decodes(t testing.TB, why string) {
	t.Helper()
	Slow(t, why)
	if WithRace() {
		t.Skipf("slow under the race detector: %s", why)
	}
}

// Few returns the first n elements in a short run, and all of them otherwise.
func Few[T any](all []T, n int) []T {
	if testing.Short() {
		return all[:min(n, len(all))]
	}
	return all
}

// Rounds returns few in a short run, and many otherwise.
func Rounds(many, few int) int {
	if testing.Short() {
		return few
	}
	return many
}

// Program returns the path of a program on PATH; pkg is the Debian package that
// brings it.
func Program(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name, "apt-get install "+pkg)
	}
	return path
}

// SignFile returns the path of the kernel's own scripts/sign-file, from the
// newest of Debian's linux-kbuild packages.
func SignFile(t testing.TB) string { return kbuild(t, "scripts/sign-file") }

// ExtractCert returns the path of the kernel's own certs/extract-cert.
func ExtractCert(t testing.TB) string { return kbuild(t, "certs/extract-cert") }

func kbuild(t testing.TB, name string) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/linux-kbuild-*/" + name)
	if len(found) == 0 {
		Missing(t, "the kernel's "+name, "run scripts/test, or apt-get install a linux-kbuild package")
	}
	slices.SortFunc(found, naturalCompare)
	return found[len(found)-1]
}

// naturalCompare orders strings with runs of digits compared as numbers, so
// that 6.12 comes after 6.1.
func naturalCompare(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			da, db := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if len(da) != len(db) {
				return len(da) - len(db)
			}
			if c := strings.Compare(da, db); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

// digits counts the decimal digits that s begins with.
func digits(s string) int {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n
}

// Run runs a program, fails the test unless it exits with 0, and returns what
// it wrote to stdout.
func Run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// WriteFile writes data to a new file in the test's own directory and returns its
// path.
func WriteFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// DiffDER fails the test when two DER encodings differ, and shows where by
// printing both through openssl asn1parse.
func DiffDER(t testing.TB, got, want []byte) {
	t.Helper()
	if string(got) == string(want) {
		return
	}
	t.Errorf("DER differs:\n--- got\n%s--- want\n%s", asn1parse(t, got), asn1parse(t, want))
}

func asn1parse(t testing.TB, der []byte) []byte {
	t.Helper()
	cmd := exec.Command(Program(t, "openssl", "openssl"), "asn1parse", "-inform", "DER", "-i")
	cmd.Stdin = strings.NewReader(string(der))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return append(out, []byte(err.Error()+"\n")...)
	}
	return out
}

// WithRace reports whether the race detector is at work, which needs memory and time of its
// own.
func WithRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok &&
		slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" })
}
