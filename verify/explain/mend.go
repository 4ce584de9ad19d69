package explain

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/modsign/modsign/internal/module"
)

// resign is how to sign the module with a key that the kernel takes. before is a command that
// has to come first, options are more words for modsign sign.
func (j *judge) resign(before string, options ...string) Mend {
	if p, ok := j.signingPair(); ok {
		return Mend{Command: before + quote(j.signWords(p.KeyPair, options)...)}
	}
	if dir, ok := j.inTree(j.path); ok && dir == "kernel" {
		if m := j.reinstall(); m.Command != "" {
			return m
		}
	}
	if len(j.pairs) > 0 {
		p := j.pairs[0].KeyPair
		return enrol(p, before+quote(j.signWords(p, options)...)+" && ")
	}
	const key, cert = "/root/module-key.pem", "/root/module-key.der"
	p := KeyPair{Key: key, Cert: cert}
	m := enrol(p, "modsign keygen -o "+key+" --cert-out "+cert+" && "+before+quote(j.signWords(p, options)...)+" && ")
	m.Then += "; no key of this machine was found: with --key FILE the command uses yours"
	return m
}

func (j *judge) signWords(p KeyPair, options []string) []string {
	words := append([]string{"modsign", "sign", "--key", p.Key, "--cert", p.Cert}, options...)
	return append(words, "--", j.path)
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
func (j *judge) authority() Mend {
	if _, ok := j.signingPair(); ok {
		return j.resign("")
	}
	p := KeyPair{Key: "/root/module-ca-key.pem", Cert: "/root/module-ca.der"}
	return enrol(p,
		"openssl req -new -x509 -newkey rsa:4096 -noenc -days 36500 -subj '/CN=Machine owner key for modules' "+
			"-addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign -outform DER -keyout "+p.Key+" "+
			"-out "+p.Cert+" && "+
			quote(j.signWords(p, nil)...)+" && ")
}

// enrol is how to have the kernel trust a certificate: as a machine owner key.
func enrol(p KeyPair, before string) Mend {
	cert := p.Cert
	if strings.HasSuffix(cert, ".pem") || strings.HasSuffix(cert, ".crt") {
		cert = strings.TrimSuffix(cert, filepath.Ext(cert)) + ".der"
		before += quote("openssl", "x509", "-in", p.Cert, "-outform", "DER", "-out", cert) + " && "
	}
	return Mend{
		Command: before + quote("mokutil", "--import", cert),
		Then:    "reboot, and confirm the certificate in MokManager with the password that you give to mokutil",
	}
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
		prefix = quote("chroot", root) + " "
	}
	switch {
	case isFile(filepath.Join(root, "var/lib/dpkg/status")):
		return Mend{Command: prefix + `apt-get install --reinstall "$(` + prefix + `dpkg-query --search ` +
			quote("*"+path) +
			` | cut -d: -f1)"`}
	case isFile(filepath.Join(root, "usr/bin/dnf")):
		return Mend{Command: prefix + `dnf reinstall "$(` + prefix + `rpm -qf ` + quote(path) + `)"`}
	case isFile(filepath.Join(root, "usr/bin/zypper")):
		return Mend{Command: prefix + `zypper install --force "$(` + prefix + `rpm -qf ` + quote(path) + `)"`}
	case isFile(filepath.Join(root, "usr/bin/pacman")):
		return Mend{Command: prefix + `pacman -S "$(` + prefix + `pacman -Qqo ` + quote("/usr"+path) + `)"`}
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
		return Mend{Command: quote("dkms", "install", "--force", source, "-k", release)}
	}
	if own, err := j.Find(name); err == nil && own != j.path && evaluated(own) != evaluated(j.path) {
		if j.Running {
			return Mend{Command: quote("modprobe", name), Then: "this loads " + own +
				", which is installed for this kernel"}
		}
		return Mend{Command: quote("modsign", "explain", "--installed", release, "--", own),
			Then: "the module that is installed for this kernel is " + own}
	}
	if dir, ok := j.inTree(j.path); ok && dir == "kernel" {
		return j.replace()
	}
	build := fmt.Sprintf("/lib/modules/%s/build", release)
	return Mend{Command: "make -C " + quote(build) + ` M="$PWD" modules`,
		Then: "run the command in the directory of the module's source"}
}

// quote makes words for a shell.
func quote(words ...string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:@%^,"
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = word
		if word == "" || strings.ContainsFunc(word, func(r rune) bool { return !strings.ContainsRune(plain, r) }) {
			quoted[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
