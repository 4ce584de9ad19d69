package kbuildrun

import (
	"fmt"
	"strings"
	"testing"
)

func TestPlan(t *testing.T) {
	names := map[Work]string{
		Other:   "other",
		Build:   "build",
		Package: "package",
		Install: "install",
		Sign:    "sign",
		Clean:   "clean",
		Purge:   "purge",
	}
	for _, test := range []struct{ goals, want string }{
		{"", "build[]"},
		{"all", "build[all]"},
		{"vmlinux modules bzImage", "build[vmlinux modules bzImage]"},
		{"defconfig all", "other[defconfig] build[all]"},
		{"all modules_install install", "build[all] install[modules_install] other[install]"},
		{"modules_install modules_sign", "install[modules_install]"},
		{"modules_sign modules_install", "install[modules_install]"},
		{"modules_sign", "sign[modules_sign]"},
		{"clean all", "clean[clean] build[all]"},
		{"mrproper defconfig", "purge[mrproper] other[defconfig]"},
		{"distclean", "purge[distclean]"},
		{"archclean", "other[archclean]"},
		{"bindeb-pkg tarxz-pkg", "package[bindeb-pkg] package[tarxz-pkg]"},
		{"perf-tar-src-pkg", "other[perf-tar-src-pkg]"},
		{"kernel/fork.o drivers/net/dummy.ko drivers/net/", "other[kernel/fork.o drivers/net/dummy.ko drivers/net/]"},
		{"certs/system_certificates.o certs/", "build[certs/system_certificates.o certs/]"},
		{"headers_install dtbs_install tools/perf", "other[headers_install dtbs_install tools/perf]"},
		{"zstd", "build[zstd]"}, // what nobody knows may link a kernel
	} {
		var got []string
		for _, step := range Plan(strings.Fields(test.goals)) {
			got = append(got, names[step.Work]+fmt.Sprint(step.Goals))
		}
		if s := strings.Join(got, " "); s != test.want {
			t.Errorf("Plan(%q) = %s, and should be %s", test.goals, s, test.want)
		}
	}
}
