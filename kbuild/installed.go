package kbuild

import (
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/module"
)

// ErrRelease reports a name that cannot be the release of a kernel.
var ErrRelease = errors.New("not a kernel version as in uname -r")

// Installed is a kernel as a distribution installs it.
type Installed struct {
	Release string
	Root    string // the root directory of its system: / for this machine
	ModLib  string // the directory of its modules, lib/modules/RELEASE

	root *module.Root // nil for this machine, whose system resolves links
}

// RunningRelease returns the release of the running kernel, as uname -r prints it.
func RunningRelease() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

// RunningConfigFile is where the running kernel shows its configuration (CONFIG_IKCONFIG_PROC).
const RunningConfigFile = "/proc/config.gz"

// RunningConfig reads [RunningConfigFile]. The Config is nil if the kernel has none.
func RunningConfig() (Config, error) {
	f, err := os.Open(RunningConfigFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", RunningConfigFile, err)
	}
	config, err := ReadConfig(io.LimitReader(text, 4<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", RunningConfigFile, err)
	}
	return config, nil
}

// OpenInstalled finds the kernel with a release in the system below a root directory. An
// absolute symbolic link in that system leads to a file of the system. An empty root is
// this machine, and an empty release that of the running kernel. The error wraps
// [ErrRelease], or [fs.ErrNotExist] if no modules of the kernel are installed.
func OpenInstalled(root, release string) (*Installed, error) {
	if release == "" {
		running, err := RunningRelease()
		if err != nil {
			return nil, err
		}
		release = running
	}
	if filepath.Base(release) != release || release == "." || release == ".." {
		return nil, fmt.Errorf("%s: %w", release, ErrRelease)
	}
	k := &Installed{Release: release, Root: cmp.Or(root, "/")}
	var err error
	if k.root, err = module.NewRoot(k.Root); err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	if k.ModLib, err = k.path("lib/modules/%s"); err != nil {
		return nil, err
	}
	if info, err := os.Stat(k.ModLib); err != nil || !info.IsDir() {
		return nil, &notInstalledError{k}
	}
	return k, nil
}

// notInstalledError reports a kernel without modules.
type notInstalledError struct{ k *Installed }

func (e *notInstalledError) Error() string {
	return fmt.Sprintf("no modules are installed for kernel %s: no directory %s", e.k.Release, e.k.ModLib)
}

func (e *notInstalledError) Unwrap() error { return fs.ErrNotExist }

// Config reads the kernel's configuration. It is nil if none is installed.
func (k *Installed) Config() (Config, error) {
	path := k.find("boot/config-%s", "lib/modules/%s/config", "lib/modules/%s/build/.config")
	if path == "" {
		return nil, nil
	}
	return OpenConfig(path)
}

// Image returns the path of the kernel's image, the one that boots rather than a vmlinux.
// The error is [fs.ErrNotExist] if none is installed.
func (k *Installed) Image() (string, error) {
	path := k.find("boot/vmlinuz-%s", "lib/modules/%s/vmlinuz",
		"boot/vmlinux-%s", "lib/modules/%s/vmlinux", "lib/modules/%s/build/vmlinux")
	if path == "" {
		return "", fmt.Errorf("no image of kernel %s in %s: %w", k.Release, filepath.Join(k.Root, "boot"), fs.ErrNotExist)
	}
	return path, nil
}

// Modules is [InstalledModules] for the kernel.
func (k *Installed) Modules() ([]string, error) {
	order := filepath.Join(k.ModLib, "modules.order")
	if k.root != nil {
		var err error
		if order, err = k.root.Canonical(order); err != nil {
			return nil, err
		}
	}
	return readInstalledOrder(order)
}

// path is the path of a file of the system; %s in the name stands for the release.
func (k *Installed) path(name string) (string, error) {
	name = fmt.Sprintf(name, k.Release)
	if k.root == nil {
		return filepath.Join("/", name), nil
	}
	return k.root.Resolve(name)
}

// find returns the first of several files that exists, or nothing.
func (k *Installed) find(names ...string) string {
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

// IsModLib reports whether a directory is the lib/modules/RELEASE of a kernel: by its
// place, or by a file that a kernel's build or depmod writes there.
func IsModLib(dir string) bool {
	if filepath.Base(filepath.Dir(dir)) == "modules" {
		return true
	}
	for _, name := range []string{"modules.order", "modules.builtin", "modules.dep"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}
