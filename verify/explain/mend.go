package explain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/verify"
)

// resign is how to sign the module with a key that the kernel takes. before is a command that
// has to come first, options are more words for modsign sign.
func (j *judge) resign(before string, options ...string) Mend {
	if p, ok := j.signingPair(); ok {
		return Mend{Command: before + j.sign(p.KeyPair, options)}
	}
	if m := j.own(); m.Command != "" {
		return m
	}
	if why := j.noOwnerKeys(); why != "" {
		m := j.builtin(why, options)
		m.Command = strings.TrimSuffix(before, " && ")
		return m
	}
	for _, p := range j.pairs {
		if j.mayEnrol(p.cert) {
			return j.enrol(p.KeyPair, before+j.sign(p.KeyPair, options)+" && ")
		}
	}
	if j.Keys.Facts().MachineCA == verify.Yes {
		return j.authority(before, options)
	}
	return j.withNewKey(newKey, "modsign keygen -o "+newKey.Key+" --cert-out "+newKey.Cert, before, options)
}

// The files of a key that a command makes. MachineKeys finds them.
var (
	newKey       = KeyPair{Key: "/root/module-key.pem", Cert: "/root/module-key.der"}
	newAuthority = KeyPair{Key: "/root/module-ca-key.pem", Cert: "/root/module-ca.der"}
)

// withNewKey is how to sign with a key that the command makes.
func (j *judge) withNewKey(p KeyPair, make, before string, options []string) Mend {
	m := j.enrol(p, "")
	return Mend{
		Command: before + j.sign(p, options),
		makes:   make + " && ", enrols: " && " + m.Command,
		Then: m.Then + "; no key of this machine was found: with --key FILE the command uses yours",
	}
}

// makeOnce completes a command that signs with a new key. The first one makes the key, and the
// others, of any module that is explained by this kernel, sign with it.
func (k *Kernel) makeOnce(m *Mend) {
	if m.makes == "" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	makes, enrols := m.makes, m.enrols
	m.makes, m.enrols = "", ""
	if !k.made {
		k.made = true
		m.Command = makes + m.Command + enrols
		return
	}
	m.Then = "the key is that of the first command that modsign explain gave, which makes it: run that one before"
}

// sign is the command that signs the module.
func (j *judge) sign(p KeyPair, options []string) string {
	words := append([]string{"modsign", "sign", "--key", p.Key, "--cert", p.Cert}, options...)
	command := shell.Quote(append(words, "--", j.path)...)
	if open(p.Key) {
		command = shell.Quote("chmod", "600", p.Key) + " && " + command
	}
	return command
}

// open reports whether modsign refuses a private key because others can read it. It does not if
// the key was given to a group, as akmods does.
func open(path string) bool {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return !ok || info.Mode().Perm()&0o077 != 0o040 || int(st.Gid) == os.Getgid()
}

// noOwnerKeys says why the kernel counts no machine owner key, whichever it is. It is empty if
// it may.
func (j *judge) noOwnerKeys() string {
	facts := j.Keys.Facts()
	switch {
	case facts.LoadUEFI == verify.No:
		return "it reads no keys of the firmware or shim (CONFIG_LOAD_UEFI_KEYS)"
	case facts.SecureBoot == verify.No:
		return "it cannot tell whether Secure Boot is on"
	case facts.Machine == verify.No && facts.PlatformModules != verify.Yes:
		return "it has no keyring .machine (CONFIG_INTEGRITY_MACHINE_KEYRING)"
	case j.Firmware != nil && j.Firmware.SecureBoot == verify.No:
		return secureBootOff
	case j.untrusted() && j.NoShimTable:
		return "shim did not start it, or an old one, which does not say that they are for the kernel too"
	}
	return ""
}

// untrusted reports whether shim does not say that machine owner keys are for the kernel too, and
// this one cares.
func (j *judge) untrusted() bool {
	facts := j.Keys.Facts()
	return j.Firmware != nil && j.Firmware.MokListTrusted == verify.No && facts.MachineAlways != verify.Yes &&
		facts.PlatformModules != verify.Yes
}

const secureBootOff = "Secure Boot is off"

// builtin says what to do where no machine owner key counts.
func (j *judge) builtin(why string, options []string) Mend {
	how := ""
	if len(options) > 0 {
		how = shell.Quote(options...) + " and "
	}
	m := Mend{Then: "sign the module with " + how + "a key whose certificate is built into the kernel (with --key FILE " +
		"there is a command for it): machine owner keys do not count for this kernel, as " + why}
	if why == secureBootOff {
		m.Then += "; or boot with Secure Boot on, and enrol a key"
	}
	for _, evidence := range j.Policy.Evidence {
		if by, ok := strings.CutSuffix(evidence, " on the command line"); ok {
			m.Then += "; or boot without " + by
		}
	}
	return m
}

// mayEnrol reports whether a certificate can count if it is enrolled.
func (j *judge) mayEnrol(c *cms.Certificate) bool {
	facts := j.Keys.Facts()
	return facts.MachineCA != verify.Yes || facts.PlatformModules == verify.Yes ||
		c.CA && c.CertSign && !(facts.MachineCAMax == verify.Yes && c.DigitalSignature)
}

// anotherKey is how to sign with a key that the kernel takes, if there is one. Else it says
// what to do instead.
func (j *judge) anotherKey(instead string) Mend {
	if _, ok := j.signingPair(); ok || instead == "" {
		return j.resign("")
	}
	return Mend{Then: instead}
}

// authority is how to make a key whose certificate .machine takes.
func (j *judge) authority(before string, options []string) Mend {
	p := newAuthority
	m := j.withNewKey(p, "test ! -e "+p.Key+" && test ! -e "+p.Cert+" && "+
		"openssl req -new -x509 -newkey rsa:4096 -noenc -days 36500 -subj '/CN=Machine owner key for modules' "+
		"-addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign -outform DER -keyout "+p.Key+" "+
		"-out "+p.Cert, before, options)
	m.Then += "; it does nothing if one of the two files exists"
	return m
}

// enrol is how to have the kernel trust a certificate: as a machine owner key. mokutil wants it
// in DER.
func (j *judge) enrol(p KeyPair, before string) Mend {
	cert := p.Cert
	if strings.HasSuffix(cert, ".pem") || strings.HasSuffix(cert, ".crt") {
		cert = unused(strings.TrimSuffix(cert, filepath.Ext(cert)), ".der")
		before += "test ! -e " + shell.Quote(cert) + " && " +
			shell.Quote("openssl", "x509", "-in", p.Cert, "-outform", "DER", "-out", cert) + " && "
	}
	command := before + shell.Quote("mokutil", "--import", cert)
	if j.untrusted() {
		command += " && mokutil --trust-mok"
	}
	return Mend{
		Command: command,
		Then:    "reboot, and confirm the certificate in MokManager with the password that you give to mokutil",
	}
}

// unused is the name of a file that does not exist.
func unused(base, ext string) string {
	name := base + ext
	for i := 2; i < 100; i++ {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			break
		}
		name = fmt.Sprintf("%s-%d%s", base, i, ext)
	}
	return name
}

// own is how to install a module of the distribution's own build again.
func (j *judge) own() Mend {
	if dir, ok := j.inTree(j.path); ok && dir == "kernel" {
		return j.reinstall()
	}
	return Mend{}
}

// replace is how to get the module as its package has it.
func (j *judge) replace() Mend {
	if m := j.reinstall(); m.Command != "" {
		return m
	}
	return Mend{Then: "build or install the module again, and compress or sign it last"}
}

// reinstall is how to install the package of the module again.
func (j *judge) reinstall() Mend {
	if _, ok := j.inTree(j.path); !ok {
		return Mend{}
	}
	root := j.Root
	if root == "" {
		root = "/"
	}
	// With merged directories, the package may have the module in /lib or in /usr/lib.
	path := j.path
	if i := strings.Index(path, "/lib/modules/"); i >= 0 {
		path = path[i:]
	}
	prefix := ""
	if root != "/" {
		prefix = shell.Quote("chroot", root) + " "
	}
	switch {
	case isFile(filepath.Join(root, "var/lib/dpkg/status")):
		return Mend{Command: prefix + `apt-get install --reinstall "$(` + prefix + `dpkg-query --search ` +
			shell.Quote("*"+path) +
			` | cut -d: -f1)"`}
	case isFile(filepath.Join(root, "usr/bin/dnf")):
		return Mend{Command: prefix + `dnf reinstall "$(` + prefix + `rpm -qf ` + shell.Quote(path) + `)"`}
	case isFile(filepath.Join(root, "usr/bin/zypper")):
		return Mend{Command: prefix + `zypper install --force "$(` + prefix + `rpm -qf ` + shell.Quote(path) + `)"`}
	case isFile(filepath.Join(root, "usr/bin/pacman")):
		return Mend{Command: prefix + `pacman -S "$(` + prefix + `pacman -Qqo ` + shell.Quote("/usr"+path) + `)"`}
	}
	return Mend{}
}

// rebuild is how to get the module for this kernel.
func (j *judge) rebuild() Mend {
	release := j.Release
	if release == "" {
		return Mend{Then: "build the module for this kernel"}
	}
	name := strings.TrimSuffix(module.BaseName(filepath.Base(j.path)), ".ko")
	root := j.Root
	if root == "" {
		root = "/"
	}
	// /var/lib/dkms/NAME/VERSION/KERNEL/ARCH/module/MODULE.ko
	built, _ := filepath.Glob(filepath.Join(root, "var/lib/dkms/*/*/*/*/module", name+".ko*"))
	if len(built) > 0 {
		dir := filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(built[0]))))
		source := filepath.Base(filepath.Dir(dir)) + "/" + filepath.Base(dir)
		return Mend{Command: shell.Quote("dkms", "install", "--force", source, "-k", release)}
	}
	if own, err := j.Find(name); err == nil && own != j.path && evaluated(own) != evaluated(j.path) {
		if j.Running {
			return Mend{Command: shell.Quote("modprobe", name), Then: "this loads " + own +
				", which is installed for this kernel"}
		}
		return Mend{Command: shell.Quote("modsign", "explain", "--installed", release, "--", own),
			Then: "the module that is installed for this kernel is " + own}
	}
	if dir, ok := j.inTree(j.path); ok && dir == "kernel" {
		return j.replace()
	}
	build := fmt.Sprintf("/lib/modules/%s/build", release)
	return Mend{Command: "make -C " + shell.Quote(build) + ` M="$PWD" modules`,
		Then: "run the command in the directory of the module's source"}
}
