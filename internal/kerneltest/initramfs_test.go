//go:build kerneltest

package kerneltest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// The cpio program reads the initramfs as the kernel does.
func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	initrd, out := filepath.Join(dir, "initrd"), filepath.Join(dir, "out")
	content := []byte("12345")
	writeInitramfs(t, initrd, testmod.WriteFile(t, "init", []byte("#!/bin/sh\n")), []Case{
		{Name: "data", Data: content}, {Name: "a file", File: testmod.WriteFile(t, "m.ko", content), Compressed: true,
			Keep: true}, {Name: "empty"},
	})
	testmod.Run(t, testmod.Program(t, "cpio", "cpio"), "--quiet", "-idm", "-D", out, "--make-directories", "-F", initrd)
	for name, want := range map[string]string{
		"init": "#!/bin/sh\n", "cases/0.ko": "12345", "cases/1.ko": "12345", "cases/2.ko": "",
		"cases/list.json": `[{"Name":"data","File":"0.ko","Compressed":false,"Keep":false},` +
			`{"Name":"a file","File":"1.ko","Compressed":true,"Keep":true},` +
			`{"Name":"empty","File":"2.ko","Compressed":false,"Keep":false}]`,
	} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || !bytes.Equal(got, []byte(want)) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(out, "init")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("init: %v, %v", info, err)
	}
	if info, err := os.Stat(filepath.Join(out, "proc")); err != nil || !info.IsDir() {
		t.Errorf("proc: %v, %v", info, err)
	}
}
