package debtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// For a kernel that accepts all of its modules, the hooks print nothing.
func TestHooksAreSilent(t *testing.T) {
	t.Parallel()
	for _, k := range testmod.Kernels(t) {
		t.Run(k.Version, func(t *testing.T) {
			t.Parallel()
			eachHook(t, func(t *testing.T, h hook) {
				s := install(t, k)
				h.run(t, s).silent(t)
				s.configure(t, "on_failure=fail", "sign=no")
				h.run(t, s).silent(t)
				h.run(t, s, "MODSIGN_VERBOSE=1").want(t, 0, "verified", k.Version, filepath.Join(s.root, s.image))
			})
		})
	}
}

func TestHooksNameWhatIsRefused(t *testing.T) {
	t.Parallel()
	eachHook(t, func(t *testing.T, h hook) {
		s := install(t, newest(t))
		key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
		unsigned, foreign := s.files[1], s.files[3]
		unsign(t, unsigned)
		testmod.Run(t, program, "sign", "--quiet", "--key", key, "--cert", cert, foreign)

		h.run(t, s).want(t, 0, unsigned+": not signed", foreign+": unknown key", s.version)
		s.configure(t, "on_failure=fail")
		r := h.run(t, s)
		r.want(t, 1, unsigned+": not signed", foreign+": unknown key", s.version)
		for _, name := range []string{s.files[0], s.files[2], s.files[4]} {
			if strings.Contains(r.output, name) {
				t.Errorf("%s is trusted, and it is named:\n%s", name, r.output)
			}
		}

		// A module by an enrolled key is accepted silently, although the other module
		// is not.
		s.configure(t, "on_failure=fail", "trust="+s.keep(t, "/etc/keys/the owner's.pem", cert))
		r = h.run(t, s)
		r.want(t, 1, unsigned+": not signed")
		if strings.Contains(r.output, foreign) {
			t.Errorf("%s is signed with an enrolled key, and it is named:\n%s", foreign, r.output)
		}
		testmod.Run(t, program, "sign", "--quiet", "--key", key, "--cert", cert, unsigned)
		h.run(t, s).silent(t)

		missing := filepath.Join(s.root, "/etc/keys/missing.pem")
		s.configure(t, "on_failure=fail", "trust=/etc/keys/the owner's.pem", "trust=/etc/keys/missing.pem")
		h.run(t, s).want(t, 1, missing)
		s.configure(t, "on_failure=fail", "trust=/etc/keys/the owner's.pem")

		// A modified module is rejected, whatever keys are enrolled.
		b := read(t, s.files[0])
		if strings.HasSuffix(s.files[0], ".ko") {
			b[len(b)/2] ^= 1
		} else {
			b = b[:len(b)/2]
		}
		write(t, s.files[0], 0o644, string(b))
		h.run(t, s).want(t, 1, s.files[0])

		// A failed verification is also reported in words.
		image := filepath.Join(s.root, s.image)
		if err := os.Remove(image); err != nil {
			t.Fatal(err)
		}
		write(t, image, 0o644, "not a kernel")
		if r := h.run(t, s); r.code != 1 || !strings.Contains(r.output, image) || strings.Contains(r.output, "{") {
			t.Errorf("exit code %d:\n%s", r.code, r.output)
		}
	})
}

// A module whose name needs quoting in JSON and in shells is not missed.
func TestHooksWithOddNames(t *testing.T) {
	t.Parallel()
	s := install(t, newest(t))
	_, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	s.configure(t, "on_failure=fail", "trust="+s.keep(t, "/etc/cert.pem", cert))
	for _, name := range []string{`a "quoted".ko`, `back\slash.ko`, "$(touch ran).ko", "two  spaces.ko",
		"line\nbreak.ko", "-rf.ko"} {
		odd := filepath.Join(s.modules, "extra", name)
		write(t, odd, 0o644, string(testmod.ELF()))
		r := hooks[0].run(t, s)
		r.want(t, 1, "not signed")
		if !strings.Contains(r.output, name) && !strings.ContainsAny(name, "\"\\\n") {
			t.Errorf("%q is not named:\n%s", name, r.output)
		}
		if err := os.Remove(odd); err != nil {
			t.Fatal(err)
		}
	}
	hooks[0].run(t, s).silent(t)
}

const secret = "correct horse; $(battery) 'staple'"

func TestHooksSign(t *testing.T) {
	t.Parallel()
	eachHook(t, func(t *testing.T, h hook) {
		k := newest(t)
		s := install(t, k)
		key, cert := testmod.NewKey(t, "ecdsa:p384").Files(t)
		s.keep(t, "/etc/modsign/my key.pem", encrypted(t, key, secret))
		s.keep(t, "/etc/modsign/cert.pem", cert)
		write(t, filepath.Join(s.root, "etc/modsign/passphrase"), 0o600, secret+"\nnot this\n")
		settings := []string{"  # comment", "sign = yes", "key=/etc/modsign/my key.pem", "cert =/etc/modsign/cert.pem\r",
			"passphrase_file=/etc/modsign/passphrase", "", "on_failure=fail"}
		unsigned := s.files[2]
		unsign(t, unsigned)

		// A wrong passphrase is a failure, and is not shown.
		s.configure(t, append(settings, "passphrase_file=/etc/modsign/wrong")...)
		write(t, filepath.Join(s.root, "etc/modsign/wrong"), 0o600, "a wrong one")
		r := h.run(t, s)
		r.want(t, 1, "my key.pem", unsigned+": not signed")
		if strings.Contains(r.output, "a wrong one") {
			t.Errorf("the passphrase is shown:\n%s", r.output)
		}

		s.configure(t, settings...)
		h.run(t, s).silent(t)
		trusted(t, filepath.Join(s.root, "etc/modsign/cert.pem"), unsigned)
		for _, path := range s.files {
			if path != unsigned {
				name, _ := filepath.Rel(s.root, path)
				same(t, path, filepath.Join(k.Root, name)) // already signed by the builder of the kernel
			}
		}
		h.run(t, s).silent(t)

		// The hash is that of the kernel, or the configured one.
		for _, hash := range []string{"", "sha384"} {
			unsign(t, unsigned)
			s.configure(t, append(settings, "hash="+hash)...)
			h.run(t, s).silent(t)
			if hash == "" {
				hash = kernelHash(t, k.Config)
			}
			if out := testmod.Run(t, program, "inspect", "--json", unsigned); !bytes.Contains(out, []byte(`"hash":"`+hash+`"`)) {
				t.Errorf("hash %s is wanted:\n%s", hash, out)
			}
		}

		s.configure(t, "sign=yes", "on_failure=fail")
		h.run(t, s).want(t, 1, "sign=yes needs key=")
	})
}

// kernelHash returns CONFIG_MODULE_SIG_HASH.
func kernelHash(t testing.TB, config string) string {
	t.Helper()
	for line := range strings.Lines(string(read(t, config))) {
		if value, ok := strings.CutPrefix(line, "CONFIG_MODULE_SIG_HASH="); ok {
			return strings.Trim(value, "\"\n")
		}
	}
	t.Fatalf("%s has no CONFIG_MODULE_SIG_HASH", config)
	return ""
}

// Errors in the configuration are reported with the line, and nothing in the file is
// executed.
func TestHooksConfiguration(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ line, want string }{
		{"sing=yes", "line 2: unknown setting"},
		{"sign=true", "line 2: sign: yes or no is needed"},
		{`key="/etc/key.pem"`, "line 2: key: the value must not be quoted"},
		{"key=key.pem", "line 2: key: the full path of a file is needed"},
		{"on_failure=ignore", "line 2: on_failure: warn or fail is needed"},
		{"sign", "line 2: not NAME=VALUE"},
		{"touch RAN", "line 2: not NAME=VALUE"},
		{"hash=$(touch RAN)", "line 2: hash: the name of a hash is needed"},
		{"key=/$(touch RAN)`touch RAN`; touch RAN", "touch RAN"},
		{"*=*", "line 2: unknown setting"},
	} {
		t.Run(test.line, func(t *testing.T) {
			t.Parallel()
			s := install(t, newest(t))
			ran := filepath.Join(s.root, "ran")
			line := strings.ReplaceAll(test.line, "RAN", ran)
			key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
			first := "key=" + s.keep(t, "/etc/key.pem", key)
			more := []string{"sign=yes", "cert=" + s.keep(t, "/etc/cert.pem", cert)}
			s.configure(t, append([]string{first, line}, more...)...)
			r := hooks[0].run(t, s)
			r.want(t, 0, strings.ReplaceAll(test.want, "RAN", ran), s.version)
			// on_failure applies wherever it is in the file.
			s.configure(t, append([]string{first, line, "on_failure=fail"}, more...)...)
			hooks[0].run(t, s).want(t, 1)
			if _, err := os.Stat(ran); err == nil {
				t.Errorf("%s was run", test.line)
			}
		})
	}
	t.Run("template", func(t *testing.T) {
		t.Parallel()
		// The shipped configuration causes no output; with all of its examples enabled,
		// the file is well-formed.
		s := install(t, newest(t))
		template := string(read(t, filepath.Join(scripts, "hooks/modsign.conf")))
		s.configure(t, template)
		hooks[0].run(t, s).silent(t)
		var lines []string
		for line := range strings.Lines(template) {
			if name, _, ok := strings.Cut(line, "="); ok && !strings.ContainsAny(name, " ") {
				lines = append(lines, strings.TrimSpace(strings.TrimPrefix(line, "#")))
			}
		}
		if len(lines) < 7 {
			t.Fatalf("the template has %d settings: %q", len(lines), lines)
		}
		s.configure(t, lines...)
		for _, line := range lines {
			name, value, _ := strings.Cut(line, "=")
			if strings.HasPrefix(value, "/") {
				value = s.root + value
			}
			r := run(t, hookEnvironment(s.root), "", filepath.Join(scripts, "hooks/hook"), "config", name)
			if r.code != 0 || r.output != value+"\n" {
				t.Errorf("%s is read as %q (exit code %d)", line, r.output, r.code)
			}
		}
	})
}

// If there is nothing to do, the hooks do nothing, and never exit with code 77.
func TestHooksLeaveAlone(t *testing.T) {
	t.Parallel()
	eachHook(t, func(t *testing.T, h hook) {
		s := install(t, newest(t))
		s.configure(t, "on_failure=fail")
		unsign(t, s.files[0])
		h.run(t, s).want(t, 1) // otherwise the silence below would prove nothing

		h.run(t, s, "MODSIGN_HOOK=/nonexistent").silent(t) // removed, and not purged

		config := filepath.Join(s.root, "boot/config-"+s.version)
		before := string(read(t, config))
		write(t, config, 0o644, strings.ReplaceAll(before, "CONFIG_MODULE_SIG=y", "# CONFIG_MODULE_SIG is not set"))
		h.run(t, s).silent(t)
		h.run(t, s, "MODSIGN_VERBOSE=1").want(t, 0, "CONFIG_MODULE_SIG")
		write(t, config, 0o644, before)

		image := filepath.Join(s.root, s.image)
		if err := os.Rename(image, image+".away"); err != nil {
			t.Fatal(err)
		}
		h.run(t, s).silent(t) // headers only
		write(t, image, 0o644, "not a kernel")
		h.run(t, s).want(t, 1, image)
		if err := os.Rename(image+".away", image); err != nil {
			t.Fatal(err)
		}

		// ostree: the hooks skip a read-only tree, and verify a writable one.
		write(t, filepath.Join(s.root, "run/ostree-booted"), 0o644, "")
		h.run(t, s).want(t, 1, s.files[0])
		readOnly := `mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; shift; exec "$@"`
		args := []string{"--mount", "sh", "-euc", readOnly, "sh", s.modules}
		if h.name == "postinst.d" {
			args = append(args, filepath.Join(scripts, "hooks/dkms-modsign"), s.version, s.image)
		} else {
			args = append(args, filepath.Join(scripts, "hooks/45-modsign.install"), "add", s.version, "/boot/entry", s.image)
		}
		run(t, hookEnvironment(s.root), "", testmod.Program(t, "unshare", "util-linux"), args...).want(t, 0, "read-only",
			"ostree")

		if err := os.RemoveAll(s.modules); err != nil {
			t.Fatal(err)
		}
		h.run(t, s).silent(t)
		write(t, filepath.Join(s.modules, "modules.builtin"), 0o644, "kernel/a.ko\n")
		h.run(t, s).silent(t)
	})
	t.Run("remove", func(t *testing.T) {
		t.Parallel()
		s := install(t, newest(t))
		s.configure(t, "on_failure=fail")
		unsign(t, s.files[0])
		plugin := filepath.Join(scripts, "hooks/45-modsign.install")
		run(t, hookEnvironment(s.root), "", plugin, "remove", s.version, "/boot/entry").silent(t)
		// Code 77 would end kernel-install successfully.
		odd := filepath.Join(t.TempDir(), "hook")
		write(t, odd, 0o755, "#!/bin/sh\nexit 77\n")
		run(t, hookEnvironment(s.root, "MODSIGN_HOOK="+odd), "", plugin, "add", s.version, "/boot/entry", s.image).want(t, 1)
	})
	t.Run("headers", func(t *testing.T) {
		t.Parallel()
		s := install(t, newest(t))
		s.configure(t, "on_failure=fail")
		unsign(t, s.files[0])
		// header_postinst.d gets no image: the hook finds the kernel's own.
		run(t, hookEnvironment(s.root), "", filepath.Join(scripts, "hooks/dkms-modsign"), s.version).want(t, 1, s.files[0])
	})
}

// TestRunParts runs the hooks as a kernel package does: modules that dkms builds are
// signed before initramfs-tools and dracut copy them.
func TestRunParts(t *testing.T) {
	t.Parallel()
	runParts := testmod.Program(t, "run-parts", "debianutils")
	s := install(t, newest(t))
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	s.keep(t, "/etc/modsign/key.pem", key)
	s.keep(t, "/etc/modsign/cert.pem", cert)
	built := filepath.Join(s.modules, "updates/dkms/made.ko")
	dir := filepath.Join(s.root, "etc/kernel/postinst.d")
	taken := filepath.Join(s.root, "taken")
	write(t, filepath.Join(dir, "apt-auto-removal"), 0o755, "#!/bin/sh\n")
	copyFile(t, filepath.Join(scripts, "hooks/dkms-modsign"), filepath.Join(dir, "dkms-modsign"))
	made := testmod.WriteFile(t, "made.ko", testmod.ELF())
	write(t, filepath.Join(dir, "dkms"), 0o755,
		"#!/bin/sh\nset -e\nmkdir -p "+filepath.Dir(built)+"\ncp "+made+" "+built+"\n")
	for _, name := range []string{"dracut", "initramfs-tools"} {
		write(t, filepath.Join(dir, name), 0o755,
			"#!/bin/sh\nset -e\nmkdir -p "+taken+"\ncp "+built+" "+taken+"/"+name+".ko\n")
	}
	write(t, filepath.Join(dir, "zz-update-grub"), 0o755, "#!/bin/sh\n")

	var order []string
	for line := range strings.Lines(string(testmod.Run(t, runParts, "--test", dir))) {
		order = append(order, filepath.Base(strings.TrimSpace(line)))
	}
	if got, want := strings.Join(order, " "),
		"apt-auto-removal dkms dkms-modsign dracut initramfs-tools zz-update-grub"; got != want {
		t.Errorf("the order is %s, want %s", got, want)
	}

	all := func() result {
		return run(t, hookEnvironment(s.root), "", runParts, "--report", "--exit-on-error", "--arg="+s.version,
			"--arg="+s.image, dir)
	}
	s.configure(t, "on_failure=fail")
	all().want(t, 1, built+": not signed")
	if _, err := os.Stat(taken); err == nil {
		t.Error("hooks have run behind the one that failed")
	}
	s.configure(t, "on_failure=fail", "sign=yes", "key=/etc/modsign/key.pem", "cert=/etc/modsign/cert.pem")
	all().silent(t)
	trusted(t, cert, taken)
	if n := len(modulesIn(t, taken)); n != 2 {
		t.Errorf("%d copies were taken, want 2", n)
	}
}

// TestKernelInstall runs the real kernel-install with the plugin.
func TestKernelInstall(t *testing.T) {
	t.Parallel()
	kernelInstall := testmod.Program(t, "kernel-install", "systemd")
	s := install(t, newest(t))
	conf, boot, ran := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "ran")
	later := filepath.Join(t.TempDir(), "50-later.install")
	write(t, later, 0o755, "#!/bin/sh\necho \"$1\" >>"+ran+"\n")
	do := func(args ...string) result {
		env := hookEnvironment(s.root, "KERNEL_INSTALL_CONF_ROOT="+conf, "BOOT_ROOT="+boot,
			"MACHINE_ID=0123456789abcdef0123456789abcdef",
			"KERNEL_INSTALL_PLUGINS="+filepath.Join(scripts, "hooks/45-modsign.install")+" "+later)
		return run(t, env, "", kernelInstall, args...)
	}
	image := filepath.Join(s.root, s.image)
	do("add", s.version, image).silent(t)
	do("--verbose", "add", s.version, image).want(t, 0, "verified the modules of kernel "+s.version)
	unsign(t, s.files[1])
	do("add", s.version, image).want(t, 0, s.files[1]+": not signed")
	if got := string(read(t, ran)); got != "add\nadd\nadd\n" {
		t.Errorf("the plugin behind was run as %q", got)
	}
	do("remove", s.version).silent(t)
	s.configure(t, "on_failure=fail")
	if r := do("add", s.version, image); r.code == 0 || !strings.Contains(r.output, s.files[1]+": not signed") {
		t.Errorf("exit code %d:\n%s", r.code, r.output)
	}
}

// TestSignFile checks that the wrapper that DKMS calls works like the kernel's
// sign-file.
func TestSignFile(t *testing.T) {
	t.Parallel()
	theirs, ours := testmod.SignFile(t), filepath.Join(scripts, "hooks/sign-file")
	key, cert := testmod.NewKey(t, "rsa:2048").Files(t) // RSA signatures are deterministic
	module := testmod.WriteFile(t, "raw.p7s", testmod.ELF())
	testmod.Run(t, theirs, "-d", "sha256", key, cert, module)
	raw := module + ".p7s"
	for _, args := range [][]string{
		{"sha256", key, cert, "MODULE"},
		{"sha512", key, cert, "MODULE", "DEST"},
		{"-d", "sha256", key, cert, "MODULE"},
		{"-p", "sha256", key, cert, "MODULE"},
		{"-k", "sha256", key, cert, "MODULE"},
		{"-dk", "sha256", key, cert, "MODULE"},
		{"-s", raw, "sha256", cert, "MODULE"},
		{"-s", raw, "sha256", cert, "MODULE", "DEST"},
	} {
		t.Run(strings.Join(args[:2], " "), func(t *testing.T) {
			t.Parallel()
			made := make(map[string]map[string]string)
			for _, program := range []string{theirs, ours} {
				dir := t.TempDir()
				write(t, filepath.Join(dir, "m.ko"), 0o644, string(testmod.ELF()))
				words := append([]string(nil), args...)
				for i, word := range words {
					switch word {
					case "MODULE":
						words[i] = "m.ko"
					case "DEST":
						words[i] = "dest.ko"
					}
				}
				run(t, hookEnvironment(t.TempDir()), dir, program, words...).silent(t)
				made[program] = make(map[string]string)
				entries, err := os.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range entries {
					made[program][e.Name()] = string(read(t, filepath.Join(dir, e.Name())))
				}
			}
			if len(made[ours]) != len(made[theirs]) {
				t.Errorf("%d files, want %d", len(made[ours]), len(made[theirs]))
			}
			for name, want := range made[theirs] {
				if made[ours][name] != want {
					t.Errorf("%s is not what the kernel's sign-file writes", name)
				}
			}
		})
	}

	t.Run("3 arguments", func(t *testing.T) {
		t.Parallel()
		module := testmod.WriteFile(t, "nvidia.ko", testmod.ELF())
		run(t, hookEnvironment(t.TempDir()), "", ours, key, cert, module).want(t, 2, "the hash is missing",
			"HASH KEY X509 MODULE", "--module-signing-hash=sha256")
		run(t, hookEnvironment(t.TempDir()), "", ours, "-d", key, module).want(t, 2, "Usage: sign-file")
	})

	t.Run("passphrase", func(t *testing.T) {
		t.Parallel()
		root, locked := t.TempDir(), encrypted(t, key, secret)
		conf, file := filepath.Join(root, "etc/modsign/modsign.conf"), filepath.Join(root, "etc/modsign/passphrase")
		sign := func(with ...string) result {
			module := testmod.WriteFile(t, "m.ko", testmod.ELF())
			r := run(t, hookEnvironment(root, with...), "", ours, "sha256", locked, cert, module)
			if strings.Contains(r.output, secret) {
				t.Errorf("the passphrase is shown:\n%s", r.output)
			}
			if r.code == 0 {
				trusted(t, cert, module)
			} else if !bytes.Equal(read(t, module), testmod.ELF()) {
				t.Error("the module was changed")
			}
			return r
		}
		sign().want(t, 1, locked)
		sign("KBUILD_SIGN_PIN=" + secret).silent(t)
		write(t, conf, 0o644, "passphrase_file=/etc/modsign/passphrase\n")
		sign().want(t, 1, file)
		for content, code := range map[string]int{secret: 0, secret + "\n": 0, secret + "\r\nmore\n": 0,
			"\ufeff" + secret + "\r\n": 0, "\ufeff\n" + secret: 1, "-----BEGIN PRIVATE KEY-----\n": 1, "": 1, "\n" + secret: 1,
			"wrong\n": 1} {
			write(t, file, 0o600, content)
			if r := sign(); r.code != code || code == 0 && r.output != "" || code != 0 && r.output == "" {
				t.Errorf("passphrase file %q: exit code %d:\n%s", content, r.code, r.output)
			}
		}
		sign("KBUILD_SIGN_PIN=" + secret).silent(t) // which takes precedence over the configured one
		write(t, conf, 0o644, "passphrase_file=relative\n")
		sign().want(t, 1, "line 1: passphrase_file: the full path")

		// No argument of any process contains the passphrase.
		write(t, conf, 0o644, "passphrase_file=/etc/modsign/passphrase\n")
		write(t, file, 0o600, secret+"\n")
		trace := filepath.Join(t.TempDir(), "trace")
		cmd := exec.Command(testmod.Program(t, "strace", "strace"), "-f", "-s", "1000", "-e", "trace=execve", "-o", trace,
			ours, "sha256", locked, cert, testmod.WriteFile(t, "m.ko", testmod.ELF()))
		cmd.Env = hookEnvironment(root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		if b := read(t, trace); bytes.Contains(b, []byte("horse")) || !bytes.Contains(b, []byte("sha256")) {
			t.Errorf("the programs that were run:\n%s", b)
		}
	})
}
