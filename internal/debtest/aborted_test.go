package debtest

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// A modsign that dies by SIGABRT, as Go's runtime does without memory, counts as failed
// for all its callers.
func TestAborted(t *testing.T) {
	t.Parallel()
	s := install(t, newest(t))
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	dying := filepath.Join(t.TempDir(), "modsign")
	write(t, dying, 0o755, "#!/bin/sh\nulimit -c 0\nkill -ABRT $$\n")
	for _, lines := range [][]string{{"on_failure=fail"}, {"on_failure=fail", "sign=yes",
		"key=" + s.keep(t, "/etc/key.pem", key)}} {
		s.configure(t, lines...)
		for _, h := range hooks {
			h.run(t, s, "MODSIGN="+dying).want(t, 1, "could not all be verified")
		}
	}
	module := testmod.WriteFile(t, "m.ko", testmod.ELF())
	for _, args := range [][]string{
		{"hooks/sign-file", "sha256", key, cert, module},
		{"rpm/sign", "-k", key, "-c", cert, filepath.Dir(module)},
		{"rpm/sign", "--verify", "-c", cert, filepath.Dir(module)},
		{"rpm/mod-sign", key, cert, filepath.Dir(module)},
	} {
		cmd := exec.Command(filepath.Join(scripts, args[0]), args[1:]...)
		cmd.Env = hookEnvironment(s.root, "MODSIGN="+dying)
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("%q succeeds:\n%s", args, out)
		}
	}
}
