// Package machine reads what decides about modules on a machine: Secure Boot and the lists
// of the firmware and shim, enforcement, lockdown, and the running kernel's keyrings. It
// changes nothing.
//
// [Read] returns the [State]; give its Firmware and Rings to a verify.Keyring. [Examine]
// returns what is wrong, what that means, and the command that mends it.
package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/modsign/modsign/internal/efi"
	"github.com/modsign/modsign/internal/keyctl"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/verify"
)

// A State is what decides about modules on a machine, as far as it could be read.
type State struct {
	EFI             bool        // the machine booted by EFI
	SecureBoot      verify.Fact // it is on, as the kernel decides that
	SetupMode       verify.Fact
	ShimTable       bool        // shim handed its table of variables to the kernel
	SigEnforce      verify.Fact // module.sig_enforce: the kernel refuses modules without a good signature
	Lockdown        string      // none, or integrity and confidentiality, which refuse them too; empty if not known
	ModulesDisabled verify.Fact // kernel.modules_disabled: the kernel loads no module at all
	Cmdline         string      // of the kernel that runs; empty if not known
	Pending         []string    // requests to shim that wait for the next boot: MokNew, MokDel, ...

	Firmware verify.Firmware
	Keys     []Variable // PK and KEK: they do not count for modules

	// Rings are the running kernel's keyrings as verify.Keyring.FollowRunning wants them; nil
	// if they were not asked for. A ring that could not be read is absent.
	Rings    map[verify.Ring][]string
	Problems []Problem // what could not be read

	unread map[verify.Ring]string
	missed map[string]bool // lists
}

// Missed reports whether a list of the firmware or shim (db, dbx, MokListRT, MokListXRT) is not
// in Firmware, or not as a whole, because it could not be read.
func (s *State) Missed(list string) bool { return s.missed[""] || s.missed[list] }

// missList notes a list that could not be read; the empty name stands for all.
func (s *State) missList(name string) {
	if s.missed == nil {
		s.missed = make(map[string]bool)
	}
	s.missed[name] = true
}

// A Variable is a list of the firmware by its name.
type Variable struct {
	Name string
	verify.List
}

// A Problem is a source of which nothing is known.
type Problem struct {
	Source string // a file, or a keyring
	Err    error
}

func (p Problem) String() string { return fmt.Sprintf("%s: %v", p.Source, p.Err) }

// Policy is how the kernel enforces signatures: as it says itself, or else, as in copies of files,
// by its command line, its configuration and Secure Boot. config has symbols such as
// CONFIG_MODULE_SIG with their values; nil is unknown.
func (s *State) Policy(config map[string]string) verify.Policy {
	return verify.PolicyFacts{SigEnforce: s.SigEnforce, Lockdown: s.Lockdown, Disabled: s.ModulesDisabled,
		Cmdline: s.Cmdline, Booted: s.Cmdline != "", Config: config, SecureBoot: s.SecureBoot}.Policy()
}

// Apply gives what was read to a Keyring, and what could not be read.
func (s *State) Apply(keys *verify.Keyring) error {
	err := keys.AddFirmware(s.Firmware)
	if err == nil && s.Rings != nil {
		err = keys.FollowRunning(s.Rings)
	}
	for ring, source := range s.unread {
		err = errors.Join(err, keys.Unread(ring, source))
	}
	return err
}

// miss notes that a ring may have more than what was read.
func (s *State) miss(source string, rings ...verify.Ring) {
	if s.unread == nil {
		s.unread = make(map[verify.Ring]string)
	}
	for _, ring := range rings {
		s.unread[ring] = source
	}
}

// Names of directories below the root directory.
const (
	efiDir     = "sys/firmware/efi"
	efivarsDir = efiDir + "/efivars"
	mokDir     = efiDir + "/mok-variables"
)

// Read reads the state of the system below a root directory: of this machine, or of copies of
// its files. running also reads the keyrings of the kernel that runs now. What cannot be
// read is in State.Problems; the error is for the root directory alone.
func Read(root string, running bool) (*State, error) {
	r, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	s := &State{}
	s.readKernel(r)
	s.readFirmware(r)
	if running {
		s.readRings()
	}
	s.Problems = distinct(s.Problems)
	return s, nil
}

// system opens files below a root directory.
type system struct {
	root *module.Root
	dir  string
}

func openRoot(dir string) (*system, error) {
	if dir == "" {
		dir = "/"
	}
	root, err := module.NewRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	return &system{root, dir}, nil
}

// path is where a name of the system leads, over its links.
func (s *system) path(name string) (string, error) {
	if s.root == nil {
		return "/" + name, nil
	}
	return s.root.Resolve(name)
}

// absent returns an error for a name at which there is nothing, if that is because a link leads
// to nothing below the root directory. What the link means on the machine is not known.
func (s *system) absent(name string) error {
	for at := range len(name) + 1 {
		if at < len(name) && name[at] != '/' {
			continue
		}
		dir, base := path.Split(name[:at])
		real, err := s.path(dir)
		if err != nil {
			return err
		}
		link := filepath.Join(real, base)
		if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if real, err = s.path(name[:at]); err == nil {
			_, err = os.Lstat(real)
		}
		if err != nil {
			return &fs.PathError{Op: "open", Path: link, Err: errDangling}
		}
	}
	return nil
}

var (
	errDangling = errors.New("a symbolic link that leads to nothing below the root directory")
	// sysfs shows nothing of shim's table to a process without CAP_SYS_ADMIN.
	errHidden = errors.New("the kernel shows no content: that needs CAP_SYS_ADMIN")
)

// read reads a file of at most 4 MiB. One that does not exist is nil.
func (s *system) read(name string) ([]byte, error) {
	path, err := s.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, s.absent(name)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	b, err := io.ReadAll(io.LimitReader(f, efi.MaxSize+1))
	if err == nil && len(b) > efi.MaxSize {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("larger than %d bytes", efi.MaxSize)}
	}
	if err == nil && len(b) == 0 && info.Size() > 0 {
		err = &fs.PathError{Op: "read", Path: path, Err: errHidden}
	}
	if b == nil {
		b = []byte{}
	}
	return b, err
}

// exists reports whether there is a file or a directory.
func (s *system) exists(name string) (bool, error) {
	path, err := s.path(name)
	if err != nil {
		return false, err
	}
	_, err = os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return false, s.absent(name)
	}
	return err == nil, err
}

// problem notes what could not be read. The source of an error with a path is the path.
func (s *State) problem(source string, err error) {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		source, err = filepath.Clean(p.Path), p.Err
	}
	s.Problems = append(s.Problems, Problem{source, err})
}

// distinct leaves out problems that are there already.
func distinct(problems []Problem) (list []Problem) {
	seen := make(map[string]bool)
	for _, p := range problems {
		if !seen[p.String()] {
			seen[p.String()] = true
			list = append(list, p)
		}
	}
	return list
}

// readKernel reads what the running kernel says of enforcement.
func (s *State) readKernel(r *system) {
	flag := func(name string) verify.Fact {
		b, err := r.read(name)
		switch {
		case err != nil:
			s.problem(name, err)
		case b == nil:
		case bytes.HasPrefix(b, []byte("Y")), bytes.HasPrefix(b, []byte("1")):
			return verify.Yes
		default:
			return verify.No
		}
		return verify.Unknown
	}
	s.SigEnforce, s.ModulesDisabled = flag(verify.SigEnforceFile[1:]), flag(verify.DisabledFile[1:])
	cmdline, err := r.read(verify.CmdlineFile[1:])
	if err != nil {
		s.problem(verify.CmdlineFile, err)
	}
	s.Cmdline = strings.TrimSpace(string(cmdline))
	b, err := r.read(verify.LockdownFile[1:])
	if err != nil {
		s.problem("lockdown", err)
	}
	// none [integrity] confidentiality
	if _, rest, found := strings.Cut(string(b), "["); found {
		s.Lockdown, _, _ = strings.Cut(rest, "]")
	}
}

// readFirmware reads the variables in the places where the kernel looks for them.
func (s *State) readFirmware(r *system) {
	var err error
	s.missList("")
	if s.EFI, err = r.exists(efiDir); err != nil {
		s.problem("/"+efiDir, err)
		s.miss("/"+efiDir, verify.Machine, verify.Platform, verify.Blacklist)
		return
	}
	if sys, _ := r.exists("sys"); !s.EFI && !sys {
		s.problem("/"+efiDir, errors.New("there is no /sys: whether the machine boots by EFI is not known"))
		s.miss("/"+efiDir, verify.Machine, verify.Platform, verify.Blacklist)
		return
	}
	if !s.EFI {
		s.missed = nil
		s.SecureBoot, s.SetupMode, s.Firmware.SecureBoot = verify.No, verify.No, verify.No
		return
	}
	if readable, err := r.exists(efivarsDir); err != nil || !readable || !r.hasVariables() {
		s.problem("/"+efivarsDir, errors.Join(err, errors.New("no variables: efivarfs is not mounted")))
		s.miss("/"+efivarsDir, verify.Machine, verify.Platform, verify.Blacklist)
		return
	}
	s.missed = nil
	s.readSecureBoot(r)
	f := &s.Firmware
	f.SecureBoot = s.SecureBoot
	f.DB, f.DBX = s.list(r, "db", efi.Security, verify.Platform), s.list(r, "dbx", efi.Security, verify.Blacklist)
	f.MokListX = s.list(r, "MokListXRT", efi.Shim, verify.Blacklist)
	for _, name := range []string{"PK", "KEK"} {
		for _, l := range s.list(r, name, efi.Global) {
			s.Keys = append(s.Keys, Variable{name, l})
		}
	}
	before := len(s.Problems)
	_, ignored := s.variable(r, "MokIgnoreDB", efi.Shim)
	f.IgnoreDB = ignored != nil
	if len(s.Problems) > before {
		f.Unread.IgnoreDB = "MokIgnoreDB"
	}
	if s.ShimTable, err = r.exists(mokDir); err != nil {
		s.problem(mokDir, err)
	}
	trusted, err := r.exists(mokDir + "/MokListTrustedRT")
	if err != nil {
		s.problem("MokListTrustedRT", err)
		f.Unread.MokListTrusted = "MokListTrustedRT"
	} else if f.MokListTrusted = verify.No; trusted {
		f.MokListTrusted = verify.Yes
	}
	f.MokList = s.mokList(r)
	for _, name := range []string{"MokNew", "MokDel", "MokXNew", "MokXDel", "MokSB", "MokListTrustedNew"} {
		if _, pending := s.variable(r, name, efi.Shim); pending != nil {
			s.Pending = append(s.Pending, name)
		}
	}
}

func (s *system) hasVariables() bool {
	path, err := s.path(efivarsDir)
	if err != nil {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) // the reads tell
	}
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) > 0
}

// variable returns the attributes and the value of a variable; the value is nil if there is
// none, or if it cannot be read.
func (s *State) variable(r *system, name string, owner efi.GUID) (attributes uint32, value []byte) {
	file := efivarsDir + "/" + name + "-" + owner.String()
	b, err := r.read(file)
	if err == nil && b != nil {
		attributes, value, err = efi.Value(b)
	}
	if err != nil {
		s.problem("/"+file, err)
		return 0, nil
	}
	return attributes, value
}

// list returns a variable that is a list, as a slice of at most one.
// The kernel fills the rings from it.
func (s *State) list(r *system, name string, owner efi.GUID, rings ...verify.Ring) []verify.List {
	before := len(s.Problems)
	_, value := s.variable(r, name, owner)
	if len(s.Problems) > before {
		s.miss(name, rings...)
		s.missList(name)
	}
	if value == nil {
		return nil
	}
	return []verify.List{verify.ParseList(name, value)}
}

// mokList returns shim's list of machine owner keys: from shim's table, else the variable
// (load_moklist_certs).
func (s *State) mokList(r *system) []verify.List {
	const file = mokDir + "/MokListRT"
	var table []verify.List
	b, err := r.read(file)
	if err == nil && b != nil {
		l := verify.ParseList("MokListRT", b)
		if l.Problem() == nil { // also if it is empty
			return []verify.List{l}
		}
		// The kernel has taken what is in front of the malformed place, and goes on.
		l.Source = "MokListRT of shim's table"
		table, err = []verify.List{l}, l.Problem()
	}
	l := s.list(r, "MokListRT", efi.Shim, verify.Machine, verify.Platform)
	// The variable holds less than the table if it is too long for the firmware.
	_, more := s.variable(r, "MokListRT1", efi.Shim)
	forRoot := errors.Is(err, fs.ErrPermission) || errors.Is(err, errHidden)
	if err != nil && (l == nil || more != nil || !forRoot) {
		s.problem("/"+file, err)
	}
	if err != nil && (l == nil || more != nil) {
		s.miss("MokListRT", verify.Machine, verify.Platform)
		s.missList("MokListRT")
	}
	return append(table, l...)
}

// readSecureBoot decides as efi_get_secureboot does in the kernel's EFI stub
// (drivers/firmware/efi/libstub/secureboot.c).
func (s *State) readSecureBoot(r *system) {
	before := len(s.Problems)
	_, on := s.variable(r, "SecureBoot", efi.Global)
	_, setup := s.variable(r, "SetupMode", efi.Global)
	attributes, insecure := s.variable(r, "MokSBStateRT", efi.Shim)
	isOne := func(value []byte) bool { return len(value) > 0 && value[0] == 1 }
	switch {
	case len(s.Problems) > before:
		s.Firmware.Unread.SecureBoot = "the state of Secure Boot"
	case len(on) == 0 || on[0] == 0 || isOne(setup), isOne(insecure) && attributes&efi.NonVolatile == 0:
		s.SecureBoot = verify.No
	default:
		s.SecureBoot = verify.Yes
	}
	if len(s.Problems) == before {
		s.SetupMode = verify.No
		if isOne(setup) {
			s.SetupMode = verify.Yes
		}
	}
}

// readRings reads the keyrings of the running kernel.
func (s *State) readRings() {
	names := make([]string, len(verify.Rings))
	for i, ring := range verify.Rings {
		names[i] = string(ring)
	}
	contents, problems := keyctl.Read(names...)
	s.Rings = make(map[verify.Ring][]string, len(contents))
	for name, keys := range contents {
		s.Rings[verify.Ring(name)] = keys
	}
	// A kernel without .machine is no problem if others can be seen.
	_, seen := s.Rings[verify.Builtin]
	for _, name := range names {
		if err := problems[name]; err != nil && !(seen && errors.Is(err, keyctl.ErrHidden)) {
			s.problem("keyring "+name, err)
			if name == string(verify.Secondary) { // root can add to it at any time
				s.miss("keyring "+name, verify.Secondary)
			}
		}
	}
	if seen {
		for _, ring := range verify.Rings {
			if errors.Is(problems[string(ring)], keyctl.ErrHidden) {
				s.Rings[ring] = nil
			}
		}
	}
}
