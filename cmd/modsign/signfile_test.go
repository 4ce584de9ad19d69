package main

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// signFileWorld is a directory for sign-file to work in; every call makes the same.
// The keys are RSA, so that signatures can be compared.
//
//	m.ko              a module, mode 0755
//	empty.ko          nothing
//	dir/
//	key.pem cert.pem cert.der combined.pem
//	other.pem         the certificate of another key
//	enc.pem legacy.pem   the key under the passphrase
//	nokeyid.pem       the certificate without a subject key identifier
//	sig               the raw signature for -s
type signFileWorld struct {
	files map[string][]byte
}

func newSignFileWorld(t *testing.T) *signFileWorld {
	openssl := testmod.Program(t, "openssl", "openssl")
	key, other := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "rsa:3072")
	module, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	keyFile, _ := key.Files(t)
	out := t.TempDir()
	run := func(name string, args ...string) []byte {
		path := filepath.Join(out, name)
		testmod.Run(t, openssl, append(args, "-out", path)...)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	return &signFileWorld{files: map[string][]byte{
		"m.ko":         module,
		"empty.ko":     nil,
		"text":         []byte("no key, no certificate\n"),
		"key.pem":      key.KeyPEM,
		"cert.pem":     key.CertPEM,
		"cert.der":     key.Certificate.Raw,
		"combined.pem": slices.Concat(key.KeyPEM, key.CertPEM),
		"reversed.pem": slices.Concat(key.CertPEM, key.KeyPEM),
		"other.pem":    other.CertPEM,
		"der-junk":     append(bytes.Clone(key.Certificate.Raw), "more"...),
		"padded.pem": pem.EncodeToMemory(
			&pem.Block{Type: "CERTIFICATE", Bytes: append(bytes.Clone(key.Certificate.Raw), 0, 0, 0)},
		),
		"long.pem": pem.EncodeToMemory(
			&pem.Block{Type: "CERTIFICATE", Bytes: append([]byte{0x30, 0x83, 0}, key.Certificate.Raw[2:]...)},
		),
		"sig": []byte("any bytes at all"),
		"enc.pem": run(
			"enc.pem", "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", keyFile, "-passout", "pass:"+passphrase,
		),
		"legacy.pem": run("legacy.pem", "rsa", "-aes128", "-traditional", "-in", keyFile, "-passout", "pass:"+passphrase),
		"pkcs1.pem":  run("pkcs1.pem", "rsa", "-traditional", "-in", keyFile),
		"negative.pem": run(
			"negative.pem", "req", "-new", "-x509", "-key", keyFile, "-subj", "/CN=negative", "-set_serial", "-4711",
		),
		"md5.pem": run("md5.pem", "req", "-new", "-x509", "-key", keyFile, "-subj", "/CN=MD5", "-md5"),
		"pss.pem": run(
			"pss.pem", "req", "-new", "-x509", "-key", keyFile, "-subj", "/CN=PSS", "-sigopt", "rsa_padding_mode:pss",
		),
		"nokeyid.pem": run(
			"nokeyid.pem",
			"req",
			"-new",
			"-x509",
			"-key",
			keyFile,
			"-subj",
			"/CN=no key id",
			"-set_serial",
			"7",
			"-config",
			testmod.WriteFile(t, "conf", []byte("[req]\ndistinguished_name=dn\n[dn]\n")),
		),
	}}
}

func (w *signFileWorld) make(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range w.files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "m.ko"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// snapshot is all that is in a directory: the type, mode and content of each file.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(data)
		case d.Type() == fs.ModeSymlink:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		name, _ := filepath.Rel(dir, path)
		found[name] = info.Mode().String() + "\n" + content
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// differences lists what two directories do not have in common.
func differences(got, want map[string]string) []string {
	var found []string
	for name, is := range got {
		was, ok := want[name]
		mode, _, _ := strings.Cut(is, "\n")
		wantMode, _, _ := strings.Cut(was, "\n")
		switch {
		case !ok:
			found = append(found, "only here: "+name)
		case mode != wantMode:
			found = append(found, fmt.Sprintf("%s: mode %s, the kernel's has %s", name, mode, wantMode))
		case is != was:
			found = append(found, fmt.Sprintf("%s: %d bytes that differ from the kernel's %d", name, len(is), len(was)))
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			found = append(found, "missing here: "+name)
		}
	}
	slices.Sort(found)
	return found
}

// signFileRun runs a sign-file in a directory, in a shell that sets the umask.
func signFileRun(t *testing.T, program, dir, umask string, env, args []string) ran {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", "umask " + umask + `; exec "$0" "$@"`, program}, args...)...)
	cmd.Dir = dir
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "KBUILD_SIGN_PIN=") || strings.HasPrefix(v, "POSIXLY_CORRECT=")
	})
	cmd.Env = append(cmd.Env, env...)
	return wait(t, cmd)
}

// ours is the program under the name of sign-file.
func ours(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("sign-file")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSignFileLikeTheKernels runs the kernel's sign-file and this one with the
// same arguments in two equal directories, and compares exit codes and all files.
func TestSignFileLikeTheKernels(t *testing.T) {
	theirs, ours := testmod.SignFile(t), ours(t)
	world := newSignFileWorld(t)
	usual := []string{"sha256", "key.pem", "cert.pem", "m.ko"}
	with := func(args ...string) []string { return args }
	tests := []struct {
		name  string
		args  []string
		env   string
		umask string
		setup string // a shell's, in the directory
		code  int
	}{
		{name: "in place", args: usual},
		{name: "in place, umask 077", args: usual, umask: "077"},
		{name: "in place, umask 0", args: usual, umask: "0"},
		{name: "in place, named twice", args: append(usual, "m.ko")},
		{name: "in place, read only", args: usual, setup: "chmod 400 m.ko"},
		{name: "in place, setuid", args: usual, setup: "chmod 4755 m.ko"},
		{name: "into dest", args: append(usual, "out.ko")},
		{name: "into dest, umask 077", args: append(usual, "out.ko"), umask: "077"},
		{name: "into dest in a directory", args: append(usual, "dir/out.ko")},
		{name: "into dest that exists", args: append(usual, "text")},
		{name: "into dest that exists with a mode", args: append(usual, "text"), setup: "chmod 666 text", umask: "077"},
		{name: "into dest through a link", args: append(usual, "link"), setup: "ln -s text link"},
		{name: "into /dev/null", args: append(usual, "/dev/null")},
		{name: "into a directory", args: append(usual, "dir"), code: 1},
		{name: "into nowhere", args: append(usual, "nowhere/out.ko"), code: 1},
		{name: "-p", args: append(with("-p"), usual...)},
		{name: "-p, umask 077", args: append(with("-p"), usual...), umask: "077"},
		{name: "-p into dest", args: append(append(with("-p"), usual...), "out.ko")},
		{name: "-p over what exists", args: append(with("-p"), usual...), setup: "echo old >m.ko.p7s"},
		{name: "-d", args: append(with("-d"), usual...)},
		{name: "-d with dest", args: append(append(with("-d"), usual...), "out.ko")},
		{name: "-k", args: append(with("-k"), usual...)},
		{name: "-dp", args: append(with("-dp"), usual...)},
		{name: "-pk", args: append(with("-pk"), usual...)},
		{name: "-kdp", args: append(with("-kdp"), usual...)},
		{name: "-k -k", args: append(with("-k", "-k"), usual...)},
		{name: "-k without a key id", args: with("-k", "sha256", "key.pem", "nokeyid.pem", "m.ko"), code: 1},
		{name: "no key id", args: with("sha256", "key.pem", "nokeyid.pem", "m.ko")},
		{name: "-s", args: with("-s", "sig", "sha256", "cert.pem", "m.ko")},
		{name: "-s into dest", args: with("-s", "sig", "sha256", "cert.pem", "m.ko", "out.ko")},
		{name: "-s looks at neither hash nor certificate", args: with("-s", "sig", "nonsense", "nowhere", "m.ko")},
		{name: "-s -p", args: with("-sp", "sig", "sha256", "cert.pem", "m.ko")},
		{name: "-s -d", args: with("-sd", "sig", "sha256", "cert.pem", "m.ko", "out.ko")},
		{name: "-s of nothing", args: with("-s", "empty.ko", "sha256", "cert.pem", "m.ko")},
		{name: "-s without a signature", args: with("-s", "nowhere", "sha256", "cert.pem", "m.ko"), code: 1},
		{name: "options after arguments", args: append(slices.Clone(usual), "-k", "out.ko", "-p")},
		{name: "POSIXLY_CORRECT", args: append(slices.Clone(usual), "-k"), env: "POSIXLY_CORRECT=1"},
		{name: "POSIXLY_CORRECT, options first", args: append(with("-k"), usual...), env: "POSIXLY_CORRECT="},
		{name: "--", args: append(with("-k", "--"), usual...)},
		{name: "-- then -k", args: append(append(with("--"), usual...), "-k")},
		{name: "- is an argument", args: append(usual, "-")},

		{name: "no arguments", code: 2},
		{name: "3 arguments", args: usual[:3], code: 2},
		{name: "6 arguments", args: append(usual, "a", "b"), code: 2},
		{name: "-x", args: append(with("-x"), usual...), code: 2},
		{name: "-kx", args: append(with("-kx"), usual...), code: 2},
		{name: "--help", args: with("--help"), code: 2},
		{
			name: "POSIXLY_CORRECT, too many",
			args: append(slices.Clone(usual), "-k", "out.ko"),
			env:  "POSIXLY_CORRECT=1",
			code: 2,
		},

		{name: "SHA-512", args: with("sha512", "key.pem", "cert.pem", "m.ko")},
		{name: "SHA-384", args: with("SHA384", "key.pem", "cert.pem", "m.ko")},
		{name: "SHA-224", args: with("sha-224", "key.pem", "cert.pem", "m.ko")},
		{name: "SHA-1", args: with("sha1", "key.pem", "cert.pem", "m.ko")},
		{name: "SHA3-512", args: with("sha3-512", "key.pem", "cert.pem", "m.ko")},
		{name: "RSA-SHA256", args: with("RSA-SHA256", "key.pem", "cert.pem", "m.ko")},
		{name: "OID", args: with("2.16.840.1.101.3.4.2.3", "key.pem", "cert.pem", "m.ko")},
		{name: "unknown hash", args: with("sha257", "key.pem", "cert.pem", "m.ko"), code: 1},
		{name: "unknown hash, -d", args: with("-d", "sha257", "key.pem", "cert.pem", "m.ko"), code: 1},

		{name: "no module", args: with("sha256", "key.pem", "cert.pem", "nowhere"), code: 1},
		{name: "no key", args: with("sha256", "nowhere", "cert.pem", "m.ko"), code: 1},
		{name: "no certificate", args: with("sha256", "key.pem", "nowhere", "m.ko"), code: 1},
		{name: "no certificate, dest", args: with("sha256", "key.pem", "nowhere", "m.ko", "out.ko"), code: 1},
		{name: "DER certificate", args: with("sha256", "key.pem", "cert.der", "m.ko")},
		{name: "DER certificate and more", args: with("sha256", "key.pem", "der-junk", "m.ko")},
		{name: "combined", args: with("sha256", "combined.pem", "combined.pem", "m.ko")},
		{name: "combined as certificate", args: with("sha256", "key.pem", "combined.pem", "m.ko")},
		{name: "certificate before key", args: with("sha256", "reversed.pem", "reversed.pem", "m.ko")},
		{name: "certificate with a negative serial number", args: with("sha256", "key.pem", "negative.pem", "m.ko")},
		{
			name: "certificate with a negative serial number, -k",
			args: with("-k", "sha256", "key.pem", "negative.pem", "m.ko"),
		},
		{name: "certificate with bytes after its DER in PEM", args: with("sha256", "key.pem", "padded.pem", "m.ko")},
		{name: "certificate with a length of 3 octets", args: with("sha256", "key.pem", "long.pem", "m.ko")},
		{name: "certificate with MD5", args: with("sha256", "key.pem", "md5.pem", "m.ko")},
		{name: "certificate with PSS", args: with("sha256", "key.pem", "pss.pem", "m.ko")},
		{name: "PKCS #1", args: with("sha256", "pkcs1.pem", "cert.pem", "m.ko")},
		{name: "certificate of another key", args: with("sha256", "key.pem", "other.pem", "m.ko", "out.ko"), code: 1},
		{name: "key in the certificate's place", args: with("sha256", "key.pem", "key.pem", "m.ko"), code: 1},
		{name: "certificate in the key's place", args: with("sha256", "cert.pem", "cert.pem", "m.ko"), code: 1},
		{name: "text as key", args: with("sha256", "text", "cert.pem", "m.ko"), code: 1},
		{name: "text as certificate", args: with("sha256", "key.pem", "text", "m.ko"), code: 1},
		{name: "empty certificate", args: with("sha256", "key.pem", "empty.ko", "m.ko"), code: 1},
		{name: "key that others can read", args: usual, setup: "chmod 644 key.pem"},

		{name: "PIN, PKCS #8", args: with("sha256", "enc.pem", "cert.pem", "m.ko"), env: "KBUILD_SIGN_PIN=" + passphrase},
		{name: "PIN, legacy", args: with("sha256", "legacy.pem", "cert.pem", "m.ko"), env: "KBUILD_SIGN_PIN=" + passphrase},
		{
			name: "wrong PIN, PKCS #8",
			args: with("sha256", "enc.pem", "cert.pem", "m.ko"),
			env:  "KBUILD_SIGN_PIN=donkey",
			code: 1,
		},
		{
			name: "wrong PIN, legacy",
			args: with("sha256", "legacy.pem", "cert.pem", "m.ko"),
			env:  "KBUILD_SIGN_PIN=donkey",
			code: 1,
		},
		{name: "empty PIN", args: with("sha256", "enc.pem", "cert.pem", "m.ko"), env: "KBUILD_SIGN_PIN=", code: 1},
		{name: "no PIN, PKCS #8", args: with("sha256", "enc.pem", "cert.pem", "m.ko"), code: 1},
		{name: "no PIN, legacy", args: with("sha256", "legacy.pem", "cert.pem", "m.ko"), code: 1},
		{name: "PIN for a key without", args: usual, env: "KBUILD_SIGN_PIN=donkey"},

		{name: "directory as module", args: with("sha256", "key.pem", "cert.pem", "dir"), code: 1},
		{name: "empty module", args: with("sha256", "key.pem", "cert.pem", "empty.ko")},
		{name: "text as module", args: with("sha256", "key.pem", "cert.pem", "text")},
		{
			name:  "module is a link, dest",
			args:  with("sha256", "key.pem", "cert.pem", "link.ko", "out.ko"),
			setup: "ln -s m.ko link.ko",
		},
		{name: "module has another name", args: usual, setup: "ln m.ko other.ko"},
		{name: "module name with spaces", args: with("sha256", "key.pem", "cert.pem", "a b.ko"), setup: "mv m.ko 'a b.ko'"},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if i%3 > 0 {
				testmod.Slow(t, "one of three is enough")
			}
			t.Parallel()
			run := func(program string) (ran, map[string]string) {
				dir := world.make(t)
				if test.setup != "" {
					cmd := exec.Command("sh", "-ec", test.setup)
					cmd.Dir = dir
					if r := wait(t, cmd); r.code != 0 {
						t.Fatal(r.stderr)
					}
				}
				umask := test.umask
				if umask == "" {
					umask = "022"
				}
				var env []string
				if test.env != "" {
					env = []string{test.env}
				}
				return signFileRun(t, program, dir, umask, env, test.args), snapshot(t, dir)
			}
			want, wantFiles := run(theirs)
			if want.code != test.code {
				t.Fatalf("the kernel's has exit code %d, and not %d: %s", want.code, test.code, want.stderr)
			}
			got, files := run(ours)
			if got.code != want.code {
				t.Errorf("exit code %d, the kernel's has %d\n%s", got.code, want.code, got.stderr)
			}
			// The kernel's leaves its temporary file behind where it fails.
			maps.DeleteFunc(
				wantFiles,
				func(name, _ string) bool { return want.code == 1 && strings.HasSuffix(name, ".~signed~") },
			)
			for _, d := range differences(files, wantFiles) {
				t.Error(d)
			}
			checkSignFileWords(t, got, test.setup == "chmod 644 key.pem")
		})
	}
}

// checkSignFileWords checks that sign-file says nothing when all is well, one line
// when not, and the usage after it when the command line is wrong.
func checkSignFileWords(t *testing.T, r ran, warns bool) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	switch {
	case r.stdout != "":
		t.Errorf("stdout: %q", r.stdout)
	case warns:
		if len(lines) != 1 || !strings.HasPrefix(lines[0], "sign-file: warning: ") {
			t.Errorf("stderr: %q", r.stderr)
		}
	case r.code == 0 && r.stderr != "":
		t.Errorf("stderr: %q", r.stderr)
	case r.code == 1 && (len(lines) != 1 || !strings.HasPrefix(lines[0], "sign-file: ")):
		t.Errorf("not one line: %q", r.stderr)
	case r.code == 2 && (len(lines) != 3 || !strings.HasPrefix(lines[1], "Usage: sign-file ")):
		t.Errorf("not a line and the usage: %q", r.stderr)
	case strings.Contains(r.stderr, passphrase):
		t.Errorf("the passphrase is said: %q", r.stderr)
	}
}

// TestSignFileDifferences is about the things in which it is not the
// kernel's on purpose, as far as the comparison above does not show them.
func TestSignFileDifferences(t *testing.T) {
	theirs, ours := testmod.SignFile(t), ours(t)
	world := newSignFileWorld(t)
	usual := []string{"sha256", "key.pem", "cert.pem", "m.ko"}
	sign := func(t *testing.T, program, dir string, args ...string) {
		t.Helper()
		if r := signFileRun(t, program, dir, "022", nil, args); r.code != 0 || r.stderr != "" {
			t.Fatalf("exit code %d: %s", r.code, r.stderr)
		}
	}
	dir := world.make(t)
	sign(t, theirs, dir, usual...)
	signed := snapshot(t, dir)["m.ko"]

	t.Run("replaces", func(t *testing.T) {
		dir := world.make(t)
		sign(t, theirs, dir, "sha512", "key.pem", "cert.pem", "m.ko")
		sign(t, theirs, dir, "sha1", "key.pem", "cert.pem", "m.ko")
		sign(t, ours, dir, usual...)
		if snapshot(t, dir)["m.ko"] != signed {
			t.Error("two signatures of the kernel's sign-file are not replaced by one")
		}
	})

	for name, setup := range map[string]string{
		"./m.ko":      "",
		"dir/../m.ko": "",
		"hard.ko":     "ln m.ko hard.ko",
		"soft.ko":     "ln -s m.ko soft.ko",
	} {
		t.Run("dest is "+name, func(t *testing.T) {
			dir := world.make(t)
			cmd := exec.Command("sh", "-ec", setup)
			cmd.Dir = dir
			wait(t, cmd)
			before := snapshot(t, dir)
			sign(t, ours, dir, append(slices.Clone(usual), name)...)
			after := snapshot(t, dir)
			if after["m.ko"] != signed {
				t.Error("the module is not signed in place")
			}
			switch {
			case name == "hard.ko" && after[name] != signed:
				t.Error("the hard link is not signed")
			case name == "soft.ko" && after[name] != before[name]:
				t.Error("the symbolic link is not left as it was")
			case len(after) != len(before):
				t.Error("a file came or went")
			}
		})
	}
}

// TestSignFileThroughLink signs a module by a symbolic link: the module is what is
// signed, where the kernel's puts a signed copy in the place of the link.
func TestSignFileThroughLink(t *testing.T) {
	world := newSignFileWorld(t)
	dir := world.make(t)
	if err := os.Symlink("m.ko", filepath.Join(dir, "link.ko")); err != nil {
		t.Fatal(err)
	}
	r := signFileRun(t, ours(t), dir, "022", nil, []string{"sha256", "key.pem", "cert.pem", "link.ko"})
	if r != (ran{}) {
		t.Fatalf("exit code %d: %s", r.code, r.stderr)
	}
	for _, name := range []string{"m.ko", "link.ko"} {
		if r := modsign(t, "verify", "--cert", filepath.Join(dir, "cert.pem"), filepath.Join(dir, name)); r.code != 0 {
			t.Error(name, r.stderr)
		}
	}
}

// TestSignFileInKernelTree calls the program by a link at scripts/sign-file, as
// a kernel's build does: from the top of the tree, with relative paths.
func TestSignFileInKernelTree(t *testing.T) {
	world := newSignFileWorld(t)
	dir := world.make(t)
	program, err := exec.LookPath("modsign")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"scripts", "certs"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The link's own name counts. Where it leads to has another.
	if err := os.Symlink(program, filepath.Join(dir, "scripts/sign-file")); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		"combined.pem": "certs/signing_key.pem",
		"cert.der":     "certs/signing_key.x509",
	} {
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	r := signFileRun(
		t,
		"scripts/sign-file",
		dir,
		"022",
		nil,
		[]string{"sha512", "certs/signing_key.pem", "certs/signing_key.x509", "m.ko"},
	)
	if r != (ran{}) {
		t.Fatalf("exit code %d: %s", r.code, r.stderr)
	}
	if r := modsign(
		t, "verify", "--cert", filepath.Join(dir, "certs/signing_key.x509"), filepath.Join(dir, "m.ko"),
	); r.code != 0 {
		t.Error(r.stderr)
	}
}

// TestSignFileTellsNoSecret makes sure that no error shows a byte of a key.
func TestSignFileTellsNoSecret(t *testing.T) {
	world := newSignFileWorld(t)
	dir := world.make(t)
	block, _ := pem.Decode(world.files["key.pem"])
	damaged := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: block.Bytes[:len(block.Bytes)-20]})
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	r := signFileRun(t, ours(t), dir, "022", nil, []string{"sha256", "key.pem", "cert.pem", "m.ko"})
	if r.code != 1 {
		t.Errorf("exit code %d for a damaged key", r.code)
	}
	for line := range strings.Lines(string(damaged)) {
		if strings.Contains(r.stderr, strings.TrimSpace(line)) && !strings.HasPrefix(line, "---") {
			t.Errorf("stderr holds a line of the key: %q", r.stderr)
		}
	}
}
