package explain

import (
	"cmp"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/verify"
)

// Source says where the facts about a kernel are. Empty fields are unknown, and what would
// need them is not checked.
type Source struct {
	// Name is the kernel in sentences: "the running kernel 6.12.0-1-amd64".
	Name    string
	Release string // as uname -r prints it
	Running bool   // it runs on this machine: /proc and /sys are about it
	// Image is its image, or a vmlinux; nil if there is none. It is read by [Open] alone.
	Image *verify.Image

	Modules string // path of its directory lib/modules/RELEASE
	Symvers string // path of a Module.symvers of its build
	Root    string // the root directory of its system; empty for this machine

	// Cmdline is its command line, and unknown parameters are not on it. That of a running
	// kernel is in /proc.
	Cmdline string

	// Config is its configuration, symbols such as CONFIG_MODULE_SIG with their values, as
	// kbuild.ReadConfig reads it from a file or from what Image.Config returns. nil is unknown.
	Config map[string]string
	// ConfigFile names where Config comes from.
	ConfigFile string

	Keys     *verify.Keyring  // what it trusts
	Firmware *verify.Firmware // what Keys has of the firmware; nil if nothing
	Known    *Known           // modules that are known to be signed; may be nil
	KeyPairs []KeyPair        // keys on this machine with which modules can be signed

	// NoShimTable says that shim left no table of its variables on this machine: it did not
	// start the kernel, or it is an old one.
	NoShimTable bool
}

// KeyPair names the files of a private key and its certificate. The package never opens the
// key.
type KeyPair struct{ Key, Cert string }

// Kernel is what is known about one kernel. It is safe for concurrent use.
type Kernel struct {
	Source
	Policy   verify.Policy
	Vermagic string // empty if it is unknown
	// Compression is the format that the kernel decompresses itself: gzip, xz or zstd, none if
	// it leaves that to kmod, or empty if it is unknown.
	Compression string
	Notes       []string // about the kernel, for people

	machine   elf.Machine // 0 if it is unknown
	order     binary.ByteOrder
	structure uint64 // size of struct module; 0 if it is unknown
	signs     bool   // the modules that are installed for it are signed
	plain     bool   // they have no debug information
	reference string // path of the module that these come from
	minor     version
	crcs      crcs
	pairs     []pair
	machineOf string // where machine comes from

	mu   sync.Mutex
	made bool // a command was given that makes a key
}

// version is the version of a kernel, zero if it is unknown.
type version struct{ major, minor int }

func (v version) since(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}

// Open collects the facts about a kernel. What it cannot read is not an error: it is then not
// checked, and [Kernel.Notes] say so.
func Open(ctx context.Context, s Source) (*Kernel, error) {
	if s.Keys == nil {
		return nil, errors.New("no keyring is given")
	}
	s.Name = cmp.Or(s.Name, "the kernel")
	k := &Kernel{Source: s}
	if err := k.readImage(); err != nil {
		return nil, err
	}
	if _, err := fmt.Sscanf(k.Release, "%d.%d", &k.minor.major, &k.minor.minor); err != nil {
		k.minor = version{}
	}
	k.readReference(ctx)
	if k.Config != nil {
		set := func(symbol string) bool { return k.is(symbol) }
		if err := k.Keys.Follow(verify.ConfigFacts(k.Release, set)); err != nil {
			return nil, err
		}
	}
	k.Policy = k.policy()
	k.Compression = k.compression()
	k.crcs.open(k)
	k.openPairs()
	if k.Config == nil {
		k.note("the configuration of %s is unknown: what depends on it is not checked", k.Name)
	}
	return k, nil
}

func (k *Kernel) note(format string, args ...any) {
	k.Notes = append(k.Notes, fmt.Sprintf(format, args...))
}

// set reports whether a symbol of the configuration is y. known is false without one.
func (k *Kernel) set(symbol string) (yes, known bool) {
	return k.Config["CONFIG_"+symbol] == "y", k.Config != nil
}

// is reports whether a symbol is known to be y.
func (k *Kernel) is(symbol string) bool { return k.Config["CONFIG_"+symbol] == "y" }

// isNot reports whether a symbol is known not to be y.
func (k *Kernel) isNot(symbol string) bool { return k.Config != nil && !k.is(symbol) }

// readImage reads what the image tells of itself.
func (k *Kernel) readImage() error {
	if k.Image == nil {
		return nil
	}
	release, err := k.Image.Release()
	if err != nil {
		return err
	}
	if k.Running && release != "" && release != k.Release {
		return fmt.Errorf("%s: image of kernel %s, and %s runs", k.Image.Name(), release, k.Release)
	}
	k.Release = cmp.Or(k.Release, release)
	if k.Vermagic, err = k.Image.Vermagic(); err != nil {
		return err
	}
	k.machine, k.order = k.Image.Machine()
	k.machineOf, k.Image = k.Image.Name(), nil
	return nil
}

// readReference looks at one of the modules that were built with the kernel, which has the
// kernel's vermagic, machine and struct module.
func (k *Kernel) readReference(ctx context.Context) {
	for _, path := range k.builtWith(20) {
		facts, signed, err := readFile(ctx, path)
		if err != nil {
			continue
		}
		magic, _ := facts.Tag("vermagic")
		if _, in := facts.Tag("intree"); !in || k.Vermagic != "" && magic != k.Vermagic ||
			k.Release != "" && !strings.HasPrefix(magic, k.Release+" ") {
			continue
		}
		k.reference, k.structure, k.signs, k.plain = path, facts.Struct, signed, !facts.Debug
		k.Vermagic = magic
		if k.machine == 0 {
			k.machine, k.order, k.machineOf = facts.Machine, facts.Order, path
		}
		return
	}
}

// builtWith returns the paths of some modules below lib/modules/RELEASE/kernel, which is for
// those that were built with the kernel.
func (k *Kernel) builtWith(n int) (paths []string) {
	if k.Modules == "" {
		return nil
	}
	enough := errors.New("enough")
	_ = filepath.WalkDir(filepath.Join(k.Modules, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // the others may do
		}
		if d.Type().IsRegular() && module.IsName(d.Name()) {
			paths = append(paths, path)
		}
		if len(paths) == n {
			return enough
		}
		return nil
	})
	return paths
}

// readFile reads the facts of a module, and whether it is signed.
func readFile(ctx context.Context, path string) (facts *module.Facts, signed bool, err error) {
	m, err := module.Open(ctx, path, module.Limits{MaxSize: 256 << 20})
	if err != nil {
		return nil, false, err
	}
	defer m.Close()
	layer, err := module.Split(m, m.Size)
	if err == nil {
		signed, m.Size = true, layer.Offset
	}
	facts, err = module.ReadFacts(m, m.Size)
	return facts, signed, err
}

// compression returns the format that the kernel decompresses.
func (k *Kernel) compression() string {
	if k.Running {
		const path = "/sys/module/compression"
		if b, err := os.ReadFile(path); err == nil {
			return strings.TrimSpace(string(b))
		}
		if _, err := os.Stat("/sys/module"); err == nil {
			return "none"
		}
	}
	switch {
	case k.Config == nil:
		return ""
	case !k.is("MODULE_DECOMPRESS"):
		return "none"
	}
	for _, format := range []string{"gzip", "xz", "zstd"} {
		if k.is("MODULE_COMPRESS_" + strings.ToUpper(format)) {
			return format
		}
	}
	return "none"
}

// Find returns the file that modprobe would load for the name of a module, as the kernel's
// modules.dep has it, or an error that is [fs.ErrNotExist].
func (k *Kernel) Find(name string) (string, error) {
	if k.Modules == "" {
		return "", fmt.Errorf("no directory of modules of %s is known: %w", k.Name, fs.ErrNotExist)
	}
	same := strings.NewReplacer("-", "_")
	is := func(file string) bool {
		base := module.BaseName(filepath.Base(file))
		return strings.HasSuffix(base, ".ko") && same.Replace(strings.TrimSuffix(base, ".ko")) == same.Replace(name)
	}
	b, err := os.ReadFile(filepath.Join(k.Modules, "modules.dep"))
	if errors.Is(err, fs.ErrNotExist) {
		return k.search(name, is)
	}
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch {
		case !is(file):
		case filepath.IsAbs(file):
			return file, nil
		default:
			return filepath.Join(k.Modules, file), nil
		}
	}
	return "", fmt.Errorf("%s has no module %s: %w", k.Modules, name, fs.ErrNotExist)
}

// search finds a module without modules.dep.
func (k *Kernel) search(name string, is func(string) bool) (found string, err error) {
	err = filepath.WalkDir(k.Modules, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && is(path) {
			found = path
			return fs.SkipAll
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("%s has no module %s: %w", k.Modules, name, fs.ErrNotExist)
	}
	return found, err
}

// architecture names the machine of a module as the kernel's configuration does.
func architecture(machine elf.Machine) string {
	names := map[elf.Machine]string{
		elf.EM_X86_64: "x86-64", elf.EM_386: "x86", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm", elf.EM_S390: "s390x",
		elf.EM_PPC64: "ppc64", elf.EM_PPC: "ppc", elf.EM_RISCV: "riscv", elf.EM_LOONGARCH: "loongarch",
		elf.EM_MIPS: "mips",
	}
	if name := names[machine]; name != "" {
		return name
	}
	return fmt.Sprintf("ELF machine %d", uint16(machine))
}

// inTree reports whether a path is below lib/modules/RELEASE of the kernel, and its
// directory there: kernel, updates, extra.
func (k *Kernel) inTree(path string) (dir string, ok bool) {
	if k.Modules == "" {
		return "", false
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = path
	}
	for _, base := range []string{k.Modules, evaluated(k.Modules)} {
		if rel, err := filepath.Rel(base, real); err == nil && filepath.IsLocal(rel) {
			return strings.Split(rel, string(filepath.Separator))[0], true
		}
	}
	return "", false
}

func evaluated(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// contains reports whether a word is one of a text.
func contains(text, word string) bool { return slices.Contains(strings.Fields(text), word) }
