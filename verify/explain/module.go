package explain

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/verify"
)

// Limits of a module, in bytes: decompressed, and of one that is held in memory because its file
// does not open as its name says.
const (
	maxSize   = 1 << 30
	maxMemory = 256 << 20
)

// Module explains what the kernel would do with the module at path, over symbolic links too.
func (k *Kernel) Module(ctx context.Context, path string) *Report {
	j := &judge{Kernel: k, ctx: ctx, r: &Report{Path: path}}
	return j.report(j.file())
}

// report goes through the steps of the kernel. err is why the module is not to be had.
func (j *judge) report(err error) *Report {
	if err == nil {
		err = j.run()
	}
	if err != nil {
		j.r.Verdict, j.r.Err, j.r.Causes = Unreadable, err, nil
		return j.r
	}
	j.r.Verdict = Loads
	for i := range j.r.Causes {
		j.makeOnce(&j.r.Causes[i].Mend)
	}
	for _, c := range j.r.Causes {
		switch {
		case c.Effect == Refuses:
			j.r.Verdict = Refused
		case c.Effect == TaintsIt && j.r.Verdict == Loads:
			j.r.Verdict = Taints
		}
	}
	return j.r
}

// judge explains one module.
type judge struct {
	*Kernel
	ctx     context.Context
	r       *Report
	path    string // of the file itself, for commands
	opened  func() (*module.File, error)
	raw     func() ([]byte, error) // the file as it is
	content content
	facts   *module.Facts
}

// content is a module, decompressed, with its signatures.
type content struct {
	io.ReaderAt
	size int64
}

func (c content) first(n int64) *io.SectionReader { return io.NewSectionReader(c, 0, n) }

// found adds a cause.
func (j *judge) found(c Cause) { j.r.Causes = append(j.r.Causes, c) }

func (j *judge) unchecked(format string, args ...any) {
	j.r.Unchecked = append(j.r.Unchecked, fmt.Sprintf(format, args...))
}

// file finds the file of a path.
func (j *judge) file() error {
	var root *module.Root
	if j.Root != "" && below(j.Root, j.r.Path) {
		var err error
		if root, err = module.NewRoot(j.Root); err != nil {
			return err
		}
	}
	entry := module.Follow(root, j.r.Path)
	j.r.Target = entry.Real
	j.path = entry.Path
	if entry.Real != "" {
		j.path = entry.Real
	}
	if absolute, err := filepath.Abs(j.path); err == nil { // for commands
		j.path = absolute
	}
	j.opened = func() (*module.File, error) { return entry.Open(j.ctx, module.Limits{MaxSize: maxSize}) }
	j.raw = j.readAll
	return nil
}

// run goes through the steps of the kernel. Its error is that of reading the file.
func (j *judge) run() error {
	if j.Policy.Disabled {
		j.disabled()
	}
	closer, err := j.open()
	if err != nil {
		return err
	}
	if closer == nil {
		return nil // what it is is said
	}
	defer closer.Close()
	payload, err := j.signature()
	if err != nil {
		return err
	}
	if ok, err := j.elf(payload); !ok {
		return err
	}
	j.name()
	j.layout()
	j.vermagic()
	j.livepatch()
	return j.symbols()
}

// disabled notes that the kernel loads nothing.
func (j *judge) disabled() {
	c := Cause{
		ID: ModulesDisabled, Effect: Refuses, Errno: syscall.EPERM,
		Reason: "The kernel loads no module any more: kernel.modules_disabled is 1. It stays so until the machine is " +
			"rebooted.",
		Evidence: []string{verify.DisabledFile + " is 1"},
		Mend: Mend{Command: "grep -rs modules_disabled /etc/sysctl.conf /etc/sysctl.d /usr/lib/sysctl.d",
			Then: "remove the line that the command shows, and reboot"},
	}
	if by := j.Policy.DisabledBy; by != "" {
		c.Reason = "The kernel's command line has it load no module at all."
		c.Evidence = []string{by + " " + j.onCmdline()}
		c.Mend = Mend{Then: "remove " + by + " in the boot loader's configuration, and reboot"}
	}
	j.found(c)
}

// onCmdline says where a parameter was found.
func (j *judge) onCmdline() string {
	if j.Running {
		return "in " + verify.CmdlineFile
	}
	return "on the command line"
}

// below reports whether a path is below a directory by its name.
func below(dir, path string) bool {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return false
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return false
	}
	rel, err := filepath.Rel(dir, absolute)
	return err == nil && filepath.IsLocal(rel)
}

// open opens the file and finds out about its compression. It returns nil without an error
// if the file has no content that the kernel would look at.
func (j *judge) open() (io.Closer, error) {
	m, err := j.opened()
	if err == nil {
		j.r.Compression = m.Format.String()
		stored, size := m.Stored()
		j.compressed(m.Format, stored, size)
		j.content = content{m, m.Size}
		return m, j.inspect()
	}
	_, failed := errors.AsType[*fs.PathError](err)
	if failed || j.ctx.Err() != nil || errors.Is(err, compress.ErrTooLarge) || errors.Is(err,
		compress.ErrUnreadable) ||
		errors.Is(err, module.ErrChanged) {
		return nil, err
	}
	b, readErr := j.raw()
	if readErr != nil {
		return nil, err
	}
	format := compress.FromMagic(b[:min(len(b), 8)])
	if misnamed, ok := errors.AsType[*module.MisnamedError](err); ok {
		j.misnamed(misnamed)
		format = misnamed.Is
	}
	j.r.Compression = format.String()
	return j.openBytes(b, format, err)
}

// readAll reads the file as it is, if it is of a size that modules have.
func (j *judge) readAll() ([]byte, error) {
	f, err := os.OpenFile(j.path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxMemory {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxMemory)
	}
	return io.ReadAll(io.LimitReader(f, maxMemory))
}

// openBytes is open for a file that does not open as its name says.
func (j *judge) openBytes(b []byte, format compress.Format, cause error) (io.Closer, error) {
	packed := b
	layer, err := module.Split(bytes.NewReader(b), int64(len(b)))
	outside := err == nil && format != compress.None
	if outside {
		packed = b[:layer.Offset]
	}
	plain := packed
	if format != compress.None {
		plain, err = decompress(compress.NewReader(format, bytes.NewReader(packed), maxMemory))
		whole := err == nil
		if !whole { // the kernel reads one stream, and nothing behind it
			plain, err = decompress(compress.NewEmbeddedReader(format, bytes.NewReader(packed), maxMemory))
		}
		switch {
		case errors.Is(err, compress.ErrChecksum) && j.Compression == format.String():
			j.unsummed(err)
		case err != nil:
			j.damaged(format, cause)
			return nil, nil
		case !whole:
			j.followed(format, cause)
		}
	}
	j.content = content{bytes.NewReader(plain), int64(len(plain))}
	j.compressed(format, bytes.NewReader(packed), int64(len(packed)))
	if outside {
		j.signedCompressed(format, b, layer)
	}
	return io.NopCloser(nil), j.inspect()
}

// decompress reads all of a stream.
func decompress(r io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// followed notes data behind a compressed stream. The kernel's decompressor ignores them, and
// kmod's of xz does not read such a file.
func (j *judge) followed(format compress.Format, err error) {
	c := Cause{
		ID: Damaged, Effect: May, Errno: syscall.EINVAL, Evidence: []string{err.Error()}, Mend: j.replace(),
		Reason: fmt.Sprintf("Something follows the %s data in the file. The kernel ignores that, and kmod may not read the file.",
			format),
	}
	if j.Compression != "" && j.Compression != format.String() && format == compress.XZ {
		c.Effect = Refuses
		c.Reason = "Something follows the xz data in the file, which kmod decompresses for this kernel and does not read."
	}
	j.found(c)
}

// inspect notes what is appended to the content.
func (j *judge) inspect() error {
	d, err := verify.InspectContent(j.content, j.content.size)
	if err != nil {
		return err
	}
	d.Path, d.Target, d.Format = j.r.Path, j.r.Target, j.r.Compression
	j.r.Signature = d
	return nil
}

func (j *judge) misnamed(e *module.MisnamedError) {
	right := filepath.Join(filepath.Dir(j.path), e.Right)
	j.found(Cause{
		ID: Misnamed, Effect: May, Errno: syscall.ENOEXEC,
		Reason: "The name of the file claims another compression than its content has. kmod goes by the " +
			"content and loads such a file; programs that go by the name do not.",
		Evidence: []string{e.Error()},
		Mend:     Mend{Command: shell.Quote("mv", "-i", "--", j.path, right), Then: "run depmod"},
	})
}

// unsummed notes gzip data with a wrong checksum, which the kernel's decompressor does not look at.
func (j *judge) unsummed(err error) {
	j.found(Cause{
		ID: Damaged, Effect: May, Errno: syscall.EINVAL, Evidence: []string{err.Error()}, Mend: j.replace(),
		Reason: "The checksum of the gzip data is wrong: the file was changed. This kernel decompresses it itself and does " +
			"not look at the checksum, and kmod does not read the file.",
	})
}

// damaged notes a compressed file that does not decompress.
func (j *judge) damaged(format compress.Format, err error) {
	c := Cause{
		ID: Damaged, Effect: Refuses, Errno: syscall.EINVAL,
		Reason: fmt.Sprintf("The file is not one whole %s stream: it is cut off, changed, or has data behind "+
			"its end.", format),
		Evidence: []string{err.Error()},
		Mend:     j.replace(),
	}
	cut := errors.Is(err, io.ErrUnexpectedEOF)
	switch inKernel := j.Compression == format.String(); {
	case !inKernel:
	case format == compress.Zstd && cut:
		// The kernel's decompressor of zstd does not see that, and the signature is cut off.
		c.Inner, c.Errno = 0, syscall.ENOEXEC
		if j.Policy.Enforcement != verify.Tolerant {
			j.tolerated(&c, syscall.ENODATA, []string{"Loading of unsigned module is rejected"})
		}
	default:
		c.Log = damageLog(format, cut)
	}
	j.found(c)
}

// damageLog is what the kernel's decompressor logs about a file that is cut off or changed. It is
// empty where that hangs on how the file is changed.
func damageLog(format compress.Format, cut bool) []string {
	switch {
	case format == compress.XZ && cut:
		return []string{"decompression failed with status 0"} // XZ_OK, and the input is at its end
	case format == compress.XZ:
		return []string{"decompression failed with status 7"} // XZ_DATA_ERROR
	case format == compress.Gzip && cut:
		return []string{"decompression failed with status -5"} // Z_BUF_ERROR
	case format == compress.Gzip:
		return []string{"decompression failed with status -3"} // Z_DATA_ERROR
	}
	return nil
}

// signedCompressed notes a signature behind a compressed file. The kernel's decompressor stops
// before it; kmod's of xz refuses such a file.
func (j *judge) signedCompressed(format compress.Format, b []byte, layer module.Layer) {
	whole := verify.Description{}
	if d, err := verify.InspectContent(bytes.NewReader(b), int64(len(b))); err == nil {
		whole = *d
	}
	if len(whole.Layers) > 0 {
		j.r.Outside = &whole.Layers[0]
	}
	c := Cause{
		ID: SignedCompressedFile,
		Reason: fmt.Sprintf("The signature was appended to the %s file. The kernel looks for it at the end of "+
			"the module after "+
			"decompressing, where there is none.", format),
		Evidence: []string{fmt.Sprintf("a signature of %d bytes follows the %d bytes of %s data", layer.Info.SigLen,
			layer.Offset,
			format)},
		Mend: j.resign(fmt.Sprintf("%s && ", shell.Quote("truncate", "-s", fmt.Sprint(layer.Offset), "--", j.path))),
	}
	inside, err := module.Layers(j.content, j.content.size)
	switch {
	case j.Compression != "" && j.Compression != format.String() && format == compress.XZ:
		c.Effect, c.Errno = Refuses, syscall.EINVAL
		c.Evidence = append(c.Evidence,
			"this kernel does not decompress xz, and kmod refuses xz data with something behind it")
	case err == nil && len(inside) > 0:
		c.Effect = May
		c.Reason = fmt.Sprintf("A second signature was appended to the %s file, where the kernel does not look. "+
			"The module inside is "+
			"signed as well.", format)
		c.Mend = Mend{Command: shell.Quote("truncate", "-s", fmt.Sprint(layer.Offset), "--", j.path)}
	case j.Policy.Enforcement == verify.NoSignatures:
		c.Effect = May
	default:
		j.tolerated(&c, syscall.ENODATA, []string{"Loading of unsigned module is rejected"})
	}
	j.found(c)
}

// compressed checks the form of the compression. Since kmod 31, kmod leaves a file to the kernel
// if that decompresses its format.
func (j *judge) compressed(format compress.Format, r io.ReaderAt, size int64) {
	if format == compress.None {
		return
	}
	err := compress.KernelError(format, r, size)
	if err == nil {
		return
	}
	recompress := map[compress.Format][2]string{
		compress.Gzip: {"gunzip", "gzip -n"}, compress.XZ: {"unxz", "xz --check=crc32 --lzma2=dict=1MiB"},
		compress.Zstd: {"unzstd -q --rm", "zstd -q --rm"},
	}[format]
	base := module.BaseName(j.path)
	c := Cause{
		ID: CompressionRefused, Effect: Refuses, Errno: syscall.EINVAL, Evidence: []string{err.Error()},
		Reason: fmt.Sprintf("The kernel decompresses %s itself, and does not read this form of it. The "+
			"signature is inside and "+
			"stays good if the module is compressed again.", format),
		Mend: Mend{Command: recompress[0] + " " + shell.Quote("--", j.path) + " && " + recompress[1] + " " + shell.Quote("--",
			base)},
	}
	inKernel := j.Compression == format.String()
	byKmod := errors.Is(err, compress.ErrContentSize)
	switch {
	case byKmod && inKernel:
		return
	case byKmod:
		c.Reason = "kmod decompresses zstd for this kernel, and does not read a file without the size of its content."
	case j.Compression == "":
		c.Effect = May
		c.Evidence = append(c.Evidence, "whether this kernel decompresses modules itself is not known")
	case !inKernel:
		j.r.Notes = append(j.r.Notes, fmt.Sprintf("%v; kmod decompresses %s for this kernel", err, format))
		return
	default:
		c.Log = decompressorLog(format, err)
	}
	j.found(c)
}

// decompressorLog is what the decompressor logs (kernel/module/decompress.c). The numbers are
// those of enum xz_ret, zlib and zstd.
func decompressorLog(format compress.Format, err error) []string {
	switch {
	case format == compress.XZ && strings.Contains(err.Error(), "4 GiB"):
		return nil
	case format == compress.XZ:
		return []string{"decompression failed with status 6"} // XZ_OPTIONS_ERROR
	case format == compress.Gzip:
		return []string{"decompression failed with status -3"} // Z_DATA_ERROR
	case strings.Contains(err.Error(), "window"):
		return []string{"ZSTD-compressed data has too large a window size"}
	}
	return nil
}

// elf checks what the kernel checks of the ELF file (elf_validity_cache_copy in
// kernel/module/main.c, elf_validity_check before 6.5). It reports whether the rest can be
// looked at. Its error is why there is no verdict.
func (j *judge) elf(size int64) (bool, error) {
	if c, ok := j.header(size); !ok {
		j.found(c)
		return false, nil
	}
	file := j.kernelELF(size)
	line, err := file.check(j.minor)
	if err != nil {
		return false, err
	}
	if line != "" {
		c := Cause{
			ID: NotModule, Effect: Refuses, Errno: syscall.ENOEXEC, Log: []string{line}, Mend: j.replace(),
			Reason: "The file is not a whole kernel module: it is damaged, cut off, or something else.",
		}
		if err := module.CheckELF(file, size); err != nil {
			c.Evidence = []string{err.Error()}
		}
		j.found(c)
		return false, nil
	}
	facts, err := module.ReadFacts(file, size)
	if err != nil {
		return false, j.beyond(err)
	}
	j.facts = facts
	r := j.r
	r.Architecture, r.BuildID, r.Debug = architecture(facts.Machine), hex.EncodeToString(facts.BuildID), facts.Debug
	r.Vermagic, _ = facts.Tag("vermagic")
	var named bool
	if r.Name, named = facts.Tag("name"); !named {
		r.Name = "(missing .modinfo section or name field)"
	}
	switch {
	case facts.Struct == 0:
		line := r.Name + ": No module found in object"
		if j.minor.since(6, 4) || j.minor == (version{}) {
			line = "module " + r.Name + ": Exactly one .gnu.linkonce.this_module section must exist."
		}
		j.found(Cause{
			ID: NotModule, Effect: Refuses, Errno: syscall.ENOEXEC, Log: []string{line},
			Reason: "The file is an object of a compiler and not a module: modpost has not added struct module.",
			Mend:   j.rebuild(),
		})
		return false, nil
	case j.structure != 0 && facts.Struct != j.structure && j.minor.since(6, 4):
		j.found(Cause{
			ID: OtherStruct, Effect: Refuses, Errno: syscall.ENOEXEC,
			Log: []string{"module " + r.Name +
				": .gnu.linkonce.this_module section size must match the kernel's built struct module size at " +
				"run time"},
			Reason: "The module was built for another kernel: its struct module has another size than this kernel's.",
			Evidence: []string{fmt.Sprintf("struct module has %d bytes in the module, and %d in %s", facts.Struct,
				j.structure,
				j.reference)},
			Mend: j.rebuild(),
		})
	}
	if facts.Symbols != 1 {
		j.found(Cause{
			ID: NoSymbols, Effect: Refuses, Errno: syscall.ENOEXEC,
			Log: []string{r.Name + ": module has no symbols (stripped?)"},
			Reason: "A strip removed the symbol table, without which the kernel cannot link the module. Strip " +
				"modules with --strip-debug alone.",
			Evidence: []string{fmt.Sprintf("%d symbol tables", facts.Symbols)},
			Mend:     j.replace(),
		})
	}
	return true, nil
}

// beyond is for a module that modsign does not read, and the kernel may. If nothing else refuses
// it, there is no verdict.
func (j *judge) beyond(err error) error {
	err = fmt.Errorf("modsign cannot read the module, and the kernel may: %w", err)
	if !slices.ContainsFunc(j.r.Causes, func(c Cause) bool { return c.Effect == Refuses }) {
		return err
	}
	j.unchecked("%v", err)
	return nil
}

// header checks the ELF header, whose errors have lines of their own.
func (j *judge) header(size int64) (Cause, bool) {
	var h [64]byte
	n, _ := j.content.ReadAt(h[:min(size, 64)], 0)
	c := Cause{ID: NotModule, Effect: Refuses, Errno: syscall.ENOEXEC, Mend: j.replace()}
	least := 64
	if j.machine == elf.EM_ARM || j.machine == elf.EM_386 || j.machine == elf.EM_PPC {
		least = 52
	}
	var order binary.ByteOrder = binary.LittleEndian
	if j.order != nil {
		order = j.order
	}
	kind, machine := order.Uint16(h[16:]), order.Uint16(h[18:])
	switch {
	case n < least:
		c.Log = []string{fmt.Sprintf("Invalid ELF header len %d", size)}
		c.Reason = fmt.Sprintf("The file is not a kernel module: it has %d bytes.", size)
	case string(h[:4]) != elf.ELFMAG:
		c.Log = []string{`Invalid ELF header magic: != \x7fELF`}
		c.Reason = "The file is not a kernel module: it is no ELF file."
	case kind != uint16(elf.ET_REL):
		c.Log = []string{fmt.Sprintf("Invalid ELF header type: %d != 1", kind)}
		c.Reason = "The file is not a kernel module: it is another kind of ELF file."
		if elf.Data(h[elf.EI_DATA]) == elf.ELFDATA2MSB && order == binary.LittleEndian && h[17] == 1 {
			c.ID = WrongArchitecture
			c.Reason = fmt.Sprintf("The module is for %s, with another byte order than this kernel's.",
				architecture(elf.Machine(binary.BigEndian.Uint16(h[18:]))))
			c.Mend = j.rebuild()
		}
	case j.machine != 0 && machine != uint16(j.machine):
		c.ID = WrongArchitecture
		c.Log = []string{fmt.Sprintf("Invalid architecture in ELF header: %d", machine)}
		c.Reason = fmt.Sprintf("The module is for %s, and the kernel for %s.", architecture(elf.Machine(machine)),
			architecture(j.machine))
		c.Evidence = []string{"the kernel's architecture comes from " + j.machineOf}
		c.Mend = j.rebuild()
	default:
		return c, true
	}
	return c, false
}

// name checks the command line's list of forbidden names.
func (j *judge) name() {
	if !slices.Contains(j.Policy.Blacklist, j.r.Name) {
		return
	}
	j.found(Cause{
		ID: NameBlacklisted, Effect: Refuses, Errno: syscall.EPERM, Log: []string{"Module " + j.r.Name +
			" is blacklisted"},
		Reason:   "The kernel's command line forbids modules of this name.",
		Evidence: []string{"module_blacklist=" + strings.Join(j.Policy.Blacklist, ",") + " " + j.onCmdline()},
		Mend:     Mend{Then: "remove the name from module_blacklist= in the boot loader's configuration, and reboot"},
	})
}

// vermagic compares the module's vermagic with the kernel's (check_modinfo).
func (j *judge) vermagic() {
	magic, has := j.facts.Tag("vermagic")
	if !has {
		if j.is("MODULE_FORCE_LOAD") {
			j.r.Notes = append(j.r.Notes,
				"no vermagic: the kernel loads the module and is tainted (CONFIG_MODULE_FORCE_LOAD=y)")
			return
		}
		j.found(Cause{
			ID: NoVermagic, Effect: Refuses, Errno: syscall.ENOEXEC,
			Reason: "The module does not say for which kernel it was built: its .modinfo has no vermagic. The " +
				"kernel logs nothing about it.",
			Mend: j.rebuild(),
		})
		return
	}
	if j.Kernel.Vermagic == "" {
		if j.Release != "" && !strings.HasPrefix(magic, j.Release+" ") && !contains(magic, "modversions") {
			j.mismatch(magic, "", fmt.Sprintf("the release of %s is %s", j.Kernel.Name, j.Release))
			return
		}
		j.unchecked("vermagic %q: that of %s is not known", magic, j.Kernel.Name)
		return
	}
	a, b := magic, j.Kernel.Vermagic
	if j.facts.Versioned { // then the release does not count
		_, a, _ = strings.Cut(a, " ")
		_, b, _ = strings.Cut(b, " ")
	}
	if a != b {
		j.mismatch(magic, j.Kernel.Vermagic)
	}
}

func (j *judge) mismatch(is, want string, evidence ...string) {
	c := Cause{ID: Vermagic, Effect: Refuses, Errno: syscall.ENOEXEC, Evidence: evidence, Mend: j.rebuild()}
	release, flags, _ := strings.Cut(is, " ")
	right, rightFlags, _ := strings.Cut(want, " ")
	c.Reason = fmt.Sprintf("The module was built for kernel %s, and this one is %s.", release, j.Release)
	if want != "" {
		c.Log = []string{fmt.Sprintf("%s: version magic '%s' should be '%s'", j.r.Name, is, want)}
		if release == right {
			c.Reason = fmt.Sprintf("The module was built for a kernel of the same release with another "+
				"configuration: its flags are %q, and this kernel's %q.",
				strings.TrimSpace(flags), strings.TrimSpace(rightFlags))
		}
	}
	j.found(c)
}

// livepatch checks that the kernel takes livepatches (check_modinfo_livepatch).
func (j *judge) livepatch() {
	if _, is := j.facts.Tag("livepatch"); !is || !j.isNot("LIVEPATCH") {
		return
	}
	j.found(Cause{
		ID: Livepatch, Effect: Refuses, Errno: syscall.ENOEXEC,
		Log:    []string{j.r.Name + ": module is marked as livepatch module, but livepatch support is disabled"},
		Reason: "The module is a livepatch, and this kernel is built without CONFIG_LIVEPATCH.",
		Mend:   Mend{Then: "use a kernel with CONFIG_LIVEPATCH=y"},
	})
}

// layout compares the version of struct module, which the kernel does before all else
// (check_modstruct_version).
func (j *judge) layout() {
	if versioned, known := j.set("MODVERSIONS"); !versioned {
		if !known && j.facts.Versioned && j.Kernel.Vermagic == "" {
			j.unchecked("versions of symbols: whether the kernel has CONFIG_MODVERSIONS is not known")
		}
		if known || !contains(j.Kernel.Vermagic, "modversions") {
			return
		}
	}
	if !j.facts.Versioned {
		if j.is("MODULE_FORCE_LOAD") {
			return
		}
		j.found(Cause{
			ID: NoSymbolVersions, Effect: Refuses, Errno: syscall.ENOEXEC,
			Reason: "The kernel has CONFIG_MODVERSIONS, and the module was built without versions of symbols. " +
				"The kernel logs nothing about it.",
			Mend: j.rebuild(),
		})
	}
}

// symbols compares the versions of the symbols (check_version).
func (j *judge) symbols() error {
	if versioned, known := j.set("MODVERSIONS"); known && !versioned || !j.facts.Versioned ||
		!known && !contains(j.Kernel.Vermagic, "modversions") {
		return nil
	}
	if slices.ContainsFunc(j.r.Causes, func(c Cause) bool {
		return c.ID == OtherStruct ||
			c.ID == Vermagic
	}) && !j.hasSymbols() {
		return nil
	}
	if !slices.ContainsFunc(j.facts.Versions, func(v module.SymbolVersion) bool { return v.Name == layout }) {
		j.found(Cause{
			ID: NoSymbolVersions, Effect: Refuses, Errno: syscall.ENOEXEC,
			Log:    []string{j.r.Name + ": no symbol version for " + layout},
			Reason: "The kernel has CONFIG_MODVERSIONS, and the module lacks the version of " + layout + ".",
			Mend:   j.rebuild(),
		})
		return nil
	}
	d, missing, err := j.crcs.compare(j.ctx, j.facts.Versions, j.path)
	if err != nil {
		return err
	}
	if d != nil {
		c := Cause{
			ID: SymbolVersion, Effect: Refuses, Errno: syscall.EINVAL,
			Log: []string{j.r.Name + ": disagrees about version of symbol " + d.symbol},
			Reason: fmt.Sprintf("The module was built %s, in which %s has another version than in this one "+
				"(CONFIG_MODVERSIONS). "+
				"It has to be built for this kernel.", j.builtFor(), d.symbol),
			Evidence: []string{fmt.Sprintf("%s has the version %#08x in the module and %#08x in the kernel, by %s",
				d.symbol,
				d.module, d.kern, j.crcs.from)},
			Mend: j.rebuild(),
		}
		if d.symbol == layout {
			c.Errno = syscall.ENOEXEC
		}
		j.found(c)
		if d.symbol == layout { // the kernel looks at it before vermagic
			slices.SortStableFunc(j.r.Causes, func(a, b Cause) int {
				return afterVermagic(a, c) - afterVermagic(b,
					c)
			})
		}
		return nil
	}
	if len(missing) > 0 {
		j.unchecked("versions of %d of %d symbols, such as %s: neither a Module.symvers nor an installed module "+
			"has them",
			len(missing), len(j.facts.Versions), missing[0])
	}
	return nil
}

// builtFor says for which kernel the module was built, if that is another one.
func (j *judge) builtFor() string {
	release, _, _ := strings.Cut(j.r.Vermagic, " ")
	if release == "" || release == j.Release {
		return "for another build of this kernel"
	}
	return "for kernel " + release
}

// afterVermagic orders the cause of module_layout before that of vermagic.
func afterVermagic(c, layout Cause) int {
	switch c.ID {
	case Vermagic, NoVermagic:
		return 2
	case layout.ID:
		return 1
	}
	return 0
}

// hasSymbols reports whether the versions of the kernel's symbols are known.
func (j *judge) hasSymbols() bool { return len(j.crcs.known) > 0 || len(j.crcs.waiting) > 0 }

// sum returns the SHA-256 of the content up to size, in hexadecimal.
func (j *judge) sum(size int64) (string, error) {
	h := sha256.New()
	if _, err := module.Copy(h, module.Reader(j.ctx, j.content.first(size))); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
