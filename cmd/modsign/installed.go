package main

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/verify"
)

// installedOptions choose the modules of an installed kernel.
type installedOptions struct {
	installed string
	root      string
	rootPaths bool // --root also goes with paths below it
}

// running stands for the version of the running kernel.
const running = "running"

func (o *installedOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&o.installed, "installed", "i", "", "modules installed for kernel `KVER` (default: the running one)")
	flags.Lookup("installed").NoOptDefVal = running
	flags.StringVar(&o.root, "root", "/", "with --installed: root `DIR` of the system")
}

// kernel is an installed kernel. Its paths are resolved once, below the root directory: an
// absolute link in an image leads to a file of the image.
type kernel struct {
	version string
	root    string
	in      *module.Root
	modules string // DIR/lib/modules/KVER
}

// kernel returns the chosen kernel, or nil without --installed. The version may also be the
// first argument, and then the only one.
func (o *installedOptions) kernel(args []string) (*kernel, error) {
	o.root = cmp.Or(o.root, "/") // where a script's variable is empty
	if o.installed == "" {
		if o.root != "/" && !o.rootPaths {
			return nil, usagef("--root goes with --installed")
		}
		return nil, nil
	}
	version := o.installed
	if version == running {
		switch {
		case len(args) > 0:
			version, args = args[0], args[1:]
		case filepath.Clean(o.root) != "/":
			return nil, usagef("--installed with --root needs the kernel's version: see %s",
				filepath.Join(o.root, "lib/modules"))
		default:
			var uts unix.Utsname
			if err := unix.Uname(&uts); err != nil {
				return nil, err
			}
			version = unix.ByteSliceToString(uts.Release[:])
		}
	}
	if len(args) > 0 {
		return nil, usagef("--installed chooses the modules, and so does %q: give one of them", args[0])
	}
	if filepath.Base(version) != version || version == "." || version == ".." {
		return nil, usagef("--installed %s: not a kernel version as in uname -r", version)
	}
	k := &kernel{version: version, root: o.root}
	var err error
	if k.in, err = module.NewRoot(o.root); err != nil {
		return nil, fmt.Errorf("--root: %w", err)
	}
	if k.modules, err = k.path("lib/modules/%s"); err != nil {
		return nil, err
	}
	if info, err := os.Stat(k.modules); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("no modules are installed for kernel %s: no directory %s", version, k.modules)
	}
	return k, nil
}

// roots are the directory of the kernel's modules, or the arguments without a kernel.
func (k *kernel) roots(args []string) []string {
	if k == nil {
		return args
	}
	return []string{k.modules}
}

// rootDir is the root directory of the kernel's system. It is empty for this machine, and
// without a kernel.
func (k *kernel) rootDir() string {
	if k == nil || k.in == nil {
		return ""
	}
	return k.root
}

// path is the path of a file of the system; %s in the name stands for the version. On this
// machine, the system resolves links.
func (k *kernel) path(name string) (string, error) {
	name = fmt.Sprintf(name, k.version)
	if k.in == nil {
		return filepath.Join("/", name), nil
	}
	return k.in.Resolve(name)
}

// order is the file modules.order.
func (k *kernel) order() (string, error) {
	if k.in == nil {
		return filepath.Join(k.modules, "modules.order"), nil
	}
	return k.in.Canonical(filepath.Join(k.modules, "modules.order"))
}

// find returns the first of several files that exists below the root; %s in the names
// stands for the version.
func (k *kernel) find(names ...string) string {
	for _, name := range names {
		path, err := k.path(name)
		if err != nil {
			continue // a circle of links
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

// hash is the kernel's CONFIG_MODULE_SIG_HASH, or empty if no configuration is found.
func (k *kernel) hash() (string, error) {
	path := k.find("boot/config-%s", "lib/modules/%s/config", "lib/modules/%s/build/.config")
	if path == "" {
		return "", nil
	}
	config, err := kbuild.OpenConfig(path)
	return config.SigHash(), err
}

// image is the path of the kernel's image, or empty.
func (k *kernel) image() string {
	return k.find("boot/vmlinuz-%s", "lib/modules/%s/vmlinuz",
		"boot/vmlinux-%s", "lib/modules/%s/vmlinux", "lib/modules/%s/build/vmlinux")
}

// keyring holds the certificates in the kernel's image.
func (k *kernel) keyring() (*verify.Keyring, error) {
	path := k.image()
	if path == "" {
		return nil, fmt.Errorf("no image of kernel %s in %s: %w", k.version, filepath.Join(k.root, "boot"), fs.ErrNotExist)
	}
	keys := new(verify.Keyring)
	return keys, keys.AddImage(path)
}

// accept returns an error if the kernel will reject modules that are signed with a
// certificate, which is in file. force is for a certificate that is enrolled by other
// means. Without a kernel nothing is checked.
func (k *kernel) accept(file string, cert *x509.Certificate, force bool) error {
	if k == nil {
		return nil
	}
	if err := refuseUnloadable(file, cert); err != nil || force {
		return err
	}
	return k.guard(cert.Raw)
}

// guard returns an error unless the kernel has a certificate built in.
func (k *kernel) guard(cert []byte) error {
	keys, err := k.keyring()
	if err != nil {
		return withHint(fmt.Errorf("cannot tell whether kernel %s trusts this certificate: %w", k.version, err),
			"add --force-untrusted to go on without this check")
	}
	if !keys.Holds(cert) {
		err := fmt.Errorf("kernel %s does not have this certificate built in and would reject the modules", k.version)
		return withHint(err, "it trusts %s; add --force-untrusted if the key is enrolled by other means",
			strings.Join(keys.Names(), ", "))
	}
	return nil
}

// outdated says what still holds the old modules after a run.
func (k *kernel) outdated(u *ui, s sign.Summary) {
	if s.Signed == 0 {
		return
	}
	u.hint("the initramfs still holds the old modules: rebuild it (update-initramfs -u -k %[1]s, dracut -f --kver %[1]s)",
		k.version)
}
