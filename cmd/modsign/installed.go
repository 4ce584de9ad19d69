package main

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/verify"
)

// installedOptions choose the modules of an installed kernel.
type installedOptions struct {
	installed      string
	root           string
	rootPaths      bool // --root also goes with paths below it
	forceUntrusted bool
}

// running stands for the version of the running kernel.
const running = "running"

func (o *installedOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&o.installed, "installed", "i", "", "modules installed for kernel `KVER` (default: the running one)")
	flags.Lookup("installed").NoOptDefVal = running
	flags.StringVar(&o.root, "root", "/", "with --installed: root `DIR` of the system")
}

func (o *installedOptions) addForceUntrusted(flags *pflag.FlagSet) {
	flags.BoolVar(&o.forceUntrusted, "force-untrusted", false,
		"with --installed: accept a certificate that is not built in")
}

// check refuses a command line that names nothing to sign, say, or nothing to force.
func (o *installedOptions) check(verb string, args []string) error {
	switch {
	case len(args) == 0 && o.installed == "":
		return usagef("nothing to %s: name modules or directories, or give --installed", verb)
	case o.forceUntrusted && o.installed == "":
		return usagef("--force-untrusted goes with --installed")
	}
	return nil
}

// kernel is an installed kernel; nil stands for paths.
type kernel struct{ *kbuild.Installed }

// kernel returns the chosen kernel, or nil without --installed. The version may also be the
// first argument, and then the only one.
func (o *installedOptions) kernel(args []string) (*kernel, error) {
	o.root = cmp.Or(o.root, "/") // of commands without the flag
	if o.installed == "" {
		if o.root != "/" && !o.rootPaths {
			return nil, usagef("--root goes with --installed")
		}
		return nil, nil
	}
	version := o.installed
	if version == running {
		version = ""
		switch {
		case len(args) > 0:
			version, args = args[0], args[1:]
		case filepath.Clean(o.root) != "/":
			return nil, usagef("--installed with --root needs the kernel's version: see %s",
				filepath.Join(o.root, "lib/modules"))
		}
	}
	if len(args) > 0 {
		return nil, usagef("--installed chooses the modules, and so does %q: give one of them", args[0])
	}
	installed, err := kbuild.OpenInstalled(o.root, version)
	if errors.Is(err, kbuild.ErrRelease) {
		return nil, usagef("--installed %v", err)
	}
	if err != nil {
		return nil, err
	}
	return &kernel{installed}, nil
}

// roots are the directory of the kernel's modules, or the arguments without a kernel.
func (k *kernel) roots(args []string) []string {
	if k == nil {
		return args
	}
	return []string{k.ModLib}
}

// rootDir is the root directory of the kernel's system, and empty without a kernel.
func (k *kernel) rootDir() string {
	if k == nil {
		return ""
	}
	return k.Root
}

// order returns the modules of the kernel, or without one those of a directory
// lib/modules/KVER, in the order in which they were built.
func (k *kernel) order(dir string) ([]string, error) {
	if k == nil {
		return kbuild.InstalledModules(dir)
	}
	return k.Modules()
}

// keyring holds what the kernel's image trusts.
func (k *kernel) keyring() (*verify.Keyring, error) {
	image, err := k.openImage()
	if err != nil {
		return nil, err
	}
	defer image.Close()
	keys := new(verify.Keyring)
	_, err = addImage(keys, image)
	return keys, err
}

// openImage opens the kernel's image.
func (k *kernel) openImage() (*verify.Image, error) {
	path, err := k.Image()
	if err != nil {
		return nil, err
	}
	return verify.OpenImage(path)
}

// addImage trusts what is built into a kernel image: certificates, and the hashes of its
// modules, which it returns if there are any.
func addImage(keys *verify.Keyring, image *verify.Image) (*hashlist.Embedded, error) {
	if err := keys.AddOpened(image); err != nil || !keys.Hashed() {
		return nil, err
	}
	kernel, err := hashlist.ReadKernel(image.Content())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", image.Name(), err)
	}
	return kernel.Embedded, keys.AddHashes(kernel.Embedded)
}

// accept returns an error if the kernel will reject modules that are signed with a
// certificate, which is in file. force is for a certificate that is enrolled by other
// means. Without a kernel it only warns of a certificate that no kernel loads; the result
// is the warning, for the summary in JSON.
func (k *kernel) accept(u *ui, file string, cert *x509.Certificate, force bool) (warnings []string, err error) {
	if k == nil {
		return warnUnloadable(u, file, cert), nil
	}
	if err := refuseUnloadable(file, cert); err != nil {
		return nil, err
	}
	if err := k.loads(file, cert); err != nil || force {
		return nil, err
	}
	return nil, k.trusts(cert)
}

// rules follow the kernel's version, which its release tells.
func (k *kernel) rules() *verify.Keyring {
	keys := new(verify.Keyring)
	if k != nil {
		_ = keys.FollowRelease(k.Release) // fails for certificates, and there are none
	}
	return keys
}

// loads returns an error if a kernel of that version cannot use a certificate.
func (k *kernel) loads(file string, cert *x509.Certificate) error {
	rules := k.rules()
	if err := rules.Loads(cert); err != nil {
		return withHint(fmt.Errorf("%s: kernel %s, which is %s, cannot use this certificate: %w", file, k.Release,
			rules.Kernel(), err), "docs/kernels.md says which kernel takes which keys; each takes RSA, and ECDSA on P-384")
	}
	return nil
}

// reads returns an error if a kernel of that version cannot read a signature.
func (k *kernel) reads(message []byte) error {
	if k == nil {
		return nil
	}
	rules := k.rules()
	if err := rules.Reads(message); err != nil {
		return withHint(fmt.Errorf("kernel %s, which is %s, cannot read such a signature: %w", k.Release, rules.Kernel(),
			err), "docs/kernels.md says which kernel takes which keys and hashes")
	}
	return nil
}

// trusts returns an error unless the kernel has one of the certificates built in.
func (k *kernel) trusts(certs ...*x509.Certificate) error {
	keys, err := k.keyring()
	if err != nil {
		return withHint(fmt.Errorf("cannot tell whether kernel %s trusts this certificate: %w", k.Release, err),
			"add --force-untrusted to go on without this check")
	}
	if slices.ContainsFunc(certs, func(cert *x509.Certificate) bool { return keys.Holds(cert.Raw) }) {
		return nil
	}
	err = fmt.Errorf("kernel %s does not have this certificate built in and would reject the modules", k.Release)
	if len(certs) > 1 {
		err = fmt.Errorf("kernel %s has none of these certificates built in and would reject the modules", k.Release)
	}
	return withHint(err, "the kernel trusts %s; add --force-untrusted if the key is enrolled by other means",
		cmp.Or(strings.Join(keys.Names(), ", "), "no certificate"))
}

// outdated says what still holds the old modules after a run that signed some in place.
func (k *kernel) outdated(u *ui, source sign.Source, s sign.Summary) {
	if k == nil || s.Signed == 0 || source.DryRun || source.Output != "" {
		return
	}
	u.Hint("the initramfs still holds the old modules: rebuild it (update-initramfs -u -k %[1]s, dracut -f --kver %[1]s)",
		k.Release)
}
