package machine

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/verify"
)

// A Level says how bad a finding is.
type Level string

const (
	Refuses Level = "refuses" // the kernel refuses modules that somebody meant it to load
	Leaks   Level = "leaks"   // others get at a private key
	Note    Level = "note"    // good to know
)

// A Finding is something about the trust in modules on a machine.
type Finding struct {
	Level   Level
	Name    string // of the kind of finding, the same in every version: mok-unused, key-readable, ...
	About   string // a certificate, a file, a list
	Text    string // what is so, in one sentence
	Meaning string // what that leads to
	Command string // one that mends it or shows more
}

// Options of [Examine].
type Options struct {
	Root string // the root directory of the system; empty for this machine
	// IsKey reports whether a regular file of at most 1 MiB holds a private key, as package
	// keygen/keyscan can tell. It is asked of the files in the places where builds leave keys.
	// If it is nil, Examine does not look for keys.
	IsKey func(path string) (bool, error)
	// Config is the configuration of the kernel, symbols such as CONFIG_MODULE_SIG with their
	// values; nil is unknown.
	Config map[string]string
	// NoImage tells that the built-in keys are not known.
	NoImage bool
	// Again is the command that looks again with more rights; empty for sudo modsign doctor.
	Again string
}

// Examine compares the state of a machine with the keys that its kernel has. The Keyring has
// been given the kernel's image, its facts, and the Firmware and Rings of the state. What
// could not be read for it is in problems, beside those of the state.
func Examine(s *State, keys *verify.Keyring, o Options) (findings []Finding, problems []Problem, err error) {
	r, err := openRoot(o.Root)
	if err != nil {
		return nil, nil, err
	}
	e := &examination{state: s, keys: keys, policy: s.Policy(o.Config), incomplete: o.NoImage || len(s.unread) > 0,
		again: cmp.Or(o.Again, "sudo modsign doctor")}
	e.enforcement()
	e.lists()
	e.machineOwnerKeys()
	e.running()
	certs, problems := r.moduleCerts(loadCerts)
	e.moduleCerts(certs)
	if o.IsKey != nil {
		found, more := r.keys(o.IsKey)
		problems = append(problems, more...)
		e.privateKeys(found)
	}
	if root := filepath.Clean(o.Root); o.Root != "" && root != "/" {
		for i := range e.findings {
			e.findings[i].elsewhere(root, e.again)
		}
	}
	return bounded(e.findings), distinct(problems), nil
}

// elsewhere words the command for the machine of which the root directory has copies: programs
// such as mokutil look at the one that they run on. What changes files is for the copy.
func (f *Finding) elsewhere(root, again string) {
	if f.Command != again && f.Level != Leaks {
		f.Command = "# on that machine: " + strings.ReplaceAll(f.Command, root+"/", "/")
	}
}

// maxAlike is how many findings of one name are listed. Nobody reads more, and a list of the
// firmware may have thousands of keys.
const maxAlike = 10

// bounded puts one finding in the place of those that are too many.
func bounded(findings []Finding) (list []Finding) {
	type kind struct {
		level Level
		name  string
	}
	seen := make(map[kind]int)
	for _, f := range findings {
		k := kind{f.Level, f.Name}
		if seen[k]++; seen[k] <= maxAlike {
			list = append(list, f)
		}
	}
	for i := len(list) - 1; i >= 0; i-- {
		f := list[i]
		more := seen[kind{f.Level, f.Name}] - maxAlike
		if more <= 0 {
			continue
		}
		seen[kind{f.Level, f.Name}] = 0
		f.About = fmt.Sprintf("%d more", more)
		f.Text = fmt.Sprintf("There are %d more findings like this one (%s).", more, f.Name)
		list = slices.Insert(list, i+1, f)
	}
	return list
}

func loadCerts(path string) ([][]byte, error) {
	l, err := verify.ReadList(path)
	return l.Certificates(), err
}

type examination struct {
	state      *State
	keys       *verify.Keyring
	policy     verify.Policy
	incomplete bool // the kernel may have keys that the Keyring was not given
	again      string
	findings   []Finding
}

func (e *examination) add(f Finding) { e.findings = append(e.findings, f) }

// enforced reports whether the kernel refuses modules without a good signature.
func (e *examination) enforced() verify.Fact { return e.policy.Enforced() }

// refusing is the level of a reason for which a kernel that enforces signatures refuses a
// module's key.
func (e *examination) refusing() Level {
	if e.enforced() == verify.No {
		return Note
	}
	return Refuses
}

// rejected is what a user sees of a module whose key does not count.
func (e *examination) rejected() string {
	if e.policy.Enforcement == verify.Lockdown {
		return "the kernel refuses modules signed with this key, for lockdown: modprobe fails with \"Operation not " +
			"permitted\" (EPERM), and the kernel logs \"Lockdown: modprobe: unsigned module loading is restricted\""
	}
	const rejected = `modprobe fails with "Key was rejected by service" (EKEYREJECTED), and the kernel logs ` +
		`"Loading of module with unavailable key is rejected"`
	switch e.enforced() {
	case verify.No:
		return "this kernel does not enforce signatures, and loads such a module; one that does refuses it: " + rejected
	case verify.Unknown:
		return "a kernel that enforces signatures refuses modules signed with this key: " + rejected
	}
	return "the kernel refuses modules signed with this key: " + rejected
}

func (e *examination) enforcement() {
	s := e.state
	if s.ModulesDisabled == verify.Yes {
		e.add(Finding{Refuses, "modules-disabled", "kernel.modules_disabled",
			"kernel.modules_disabled is 1.",
			"The kernel loads no module until the next boot, whatever its signature: modprobe fails with EPERM.",
			"grep -rs modules_disabled /etc/sysctl.conf /etc/sysctl.d /usr/lib/sysctl.d"})
	}
	if e.enforced() == verify.No {
		text := "The kernel does not enforce signatures: module.sig_enforce is off, and so is lockdown."
		switch {
		case s.SigEnforce != verify.Unknown:
		case s.Cmdline != "":
			text = "The kernel's configuration and command line do not have it enforce signatures."
		default:
			text = "The kernel's configuration does not have it enforce signatures; module.sig_enforce or lockdown on its " +
				"command line may."
		}
		e.add(Finding{Note, "not-enforced", "module.sig_enforce", text,
			"It loads modules without a signature, or with an unknown key, and is tainted by them.",
			"grep -o 'module.sig_enforce[^ ]*\\|lockdown=[^ ]*' /proc/cmdline"})
	}
	if s.SetupMode == verify.Yes {
		e.add(Finding{Note, "setup-mode", "SetupMode",
			"The firmware is in setup mode: it has no platform key.",
			"Secure Boot is off, whatever the menu of the firmware says, and the kernel reads no machine owner key.",
			"mokutil --pk"})
	}
	if len(s.Pending) > 0 {
		e.add(Finding{Note, "pending", strings.Join(s.Pending, ", "),
			"A request to shim waits for the next boot.",
			"What mokutil was told is done only when MokManager has asked for the password, on the console.",
			"systemctl reboot"})
	}
}

// lists looks for what is odd in the lists of the firmware and shim.
func (e *examination) lists() {
	f := e.state.Firmware
	all := []struct {
		lists  []verify.List
		reject bool
		clear  string
	}{
		{f.DB, false, "mokutil --db"}, {f.DBX, true, "mokutil --dbx"},
		{f.MokList, false, "mokutil --list-enrolled"}, {f.MokListX, true, "mokutil --list-enrolled --mokx"},
	}
	for _, kind := range all {
		for _, l := range kind.lists {
			if l.Problem() != nil {
				level, meaning := e.refusing(), "The kernel takes what is in front of that place, and nothing behind it."
				if last := kind.lists[len(kind.lists)-1]; last.Problem() == nil { // after shim's table
					level, meaning = Note, "The kernel takes what is in front of that place, and then the variable MokListRT."
				}
				e.add(Finding{level, "malformed-list", l.Source, fmt.Sprintf("%s is malformed: %v.", l.Source, l.Problem()),
					meaning, kind.clear})
			}
			if n := l.Ineffective(); kind.reject && n > 0 {
				e.add(Finding{Note, "ineffective-hashes", l.Source,
					fmt.Sprintf("%s has hashes of certificates with a time of revocation: %d.", l.Source, n),
					"The kernel takes the time for a part of the hash, which then matches no certificate: modules signed " +
						"with such a key are not refused.", kind.clear})
			}
		}
	}
}

// machineOwnerKeys looks for keys that shim has and modules do not get.
func (e *examination) machineOwnerKeys() {
	rejected := make(map[string]string) // the sources by the certificates
	for _, known := range e.keys.Known() {
		if known.Ring == verify.Blacklist && known.Counts {
			rejected[string(known.DER)] = known.Source
		}
	}
	for _, known := range e.keys.Known() {
		if !e.isMok(known) || known.Counts {
			source, listed := rejected[string(known.DER)]
			if e.isMok(known) && known.Ring != verify.Blacklist && listed {
				command := "mokutil --dbx"
				isSource := func(l verify.List) bool { return l.Source == source }
				if slices.ContainsFunc(e.state.Firmware.MokListX, isSource) {
					command = "mokutil --list-enrolled --mokx"
				}
				// The kernel refuses these whether it enforces signatures or not.
				e.add(Finding{Refuses, "mok-revoked", known.Name,
					fmt.Sprintf("The machine owner key %q is in the kernel's .blacklist too.", known.Name),
					"The kernel rejects modules signed with this key: modprobe fails with EKEYREJECTED.", command})
			}
			continue
		}
		level := e.refusing()
		text := fmt.Sprintf("The machine owner key %q is in %s, where the kernel does not look for the keys of modules.",
			known.Name, known.Ring)
		switch {
		case known.Name == "":
			text = fmt.Sprintf("%s has a machine owner key that no kernel can read.", known.Source)
		case known.Ring == "":
			text = fmt.Sprintf("The kernel has the machine owner key %q in none of its keyrings.", known.Name)
		}
		if known.Problem != "" {
			text += " " + sentence(known.Problem)
		}
		e.add(Finding{level, "mok-unused", cmp.Or(known.Name, known.Source), text, sentence(e.rejected()),
			e.mokCommand(known)})
	}
}

// isMok reports whether a certificate is on shim's list.
func (e *examination) isMok(known verify.Known) bool {
	return slices.ContainsFunc(e.state.Firmware.MokList, func(l verify.List) bool { return l.Source == known.Source })
}

// mokCommand is what to do about a machine owner key that does not count.
func (e *examination) mokCommand(known verify.Known) string {
	facts, f := e.keys.Facts(), e.state.Firmware
	switch {
	case known.Name == "":
		return "mokutil --list-enrolled"
	case strings.Contains(known.Problem, "blacklist"):
		return "mokutil --list-enrolled --mokx"
	case f.SecureBoot == verify.No:
		return "mokutil --sb-state"
	case facts.Machine == verify.No || facts.LoadUEFI == verify.No || facts.SecureBoot == verify.No:
		return "grep -E 'INTEGRITY_(MACHINE|PLATFORM)_KEYRING|LOAD_UEFI_KEYS|IMA_ARCH_POLICY' /boot/config-$(uname -r)"
	case facts.MachineCA == verify.Yes && known.Ring == verify.Platform:
		return "grep CA_MACHINE_KEYRING /boot/config-$(uname -r)"
	case f.MokListTrusted == verify.No && e.state.ShimTable:
		return "mokutil --trust-mok"
	case f.MokListTrusted == verify.No:
		return "efibootmgr -v" // not by shim, or by an old one
	}
	return "keyctl list %:.machine"
}

// running compares the running kernel's keyrings with what they should hold.
func (e *examination) running() {
	for _, known := range e.keys.Known() {
		if !e.isMok(known) && strings.Contains(known.Problem, "the running kernel does not have it") {
			e.add(Finding{e.refusing(), "not-loaded", known.Name,
				fmt.Sprintf("The certificate %q in %s is not in the running kernel.", known.Name, known.Source),
				sentence(e.rejected()), "systemctl reboot"})
		}
	}
	for _, ring := range verify.Rings[:4] {
		for _, description := range e.keys.Unmatched(ring) {
			e.add(Finding{Note, "unknown-key", description,
				fmt.Sprintf("The running kernel has the key %q in %s, and its certificate was not found.", description, ring),
				"modsign gives no verdict on a module that may be signed with it.",
				fmt.Sprintf("keyctl list %%:%s", ring)})
		}
	}
}

// moduleCerts looks for certificates that sign modules and are not trusted.
func (e *examination) moduleCerts(certs []moduleCert) {
	for _, c := range certs {
		for _, der := range c.ders {
			if e.keys.Holds(der) {
				continue
			}
			text := fmt.Sprintf("%s signs modules with the key of %s, which the kernel does not have.", c.program, c.path)
			command, level := "mokutil --import "+shell.Quote(c.path), e.refusing()
			if e.incomplete {
				text = fmt.Sprintf("%s signs modules with the key of %s, which was not found in what could be read.", c.program,
					c.path)
				command, level = e.again, Note
			}
			for _, known := range e.keys.Known() {
				if string(known.DER) != string(der) {
					continue
				}
				text = fmt.Sprintf("%s signs modules with the key of %s, which does not count. %s", c.program, c.path,
					sentence(known.Problem))
				command, level = e.mokCommand(known), e.refusing()
			}
			if slices.Contains(e.state.Pending, "MokNew") {
				command = "systemctl reboot"
			}
			e.add(Finding{level, "module-key-unknown", c.path, text, sentence(e.rejected()), command})
		}
	}
}

func (e *examination) privateKeys(keys []keyFile) {
	for _, k := range keys {
		if k.open == "" {
			continue
		}
		e.add(Finding{Leaks, "key-readable", k.path,
			fmt.Sprintf("%s holds a private key, and %s: its mode is %04o.", k.path, k.open, k.info.Mode().Perm()),
			"Whoever has it signs modules that every kernel with its certificate loads: take the key for known, and " +
				"make a new one.", "chmod 0600 " + shell.Quote(k.path)})
	}
}

// sentence makes a sentence of words.
func sentence(words string) string {
	if words == "" {
		return ""
	}
	return strings.ToUpper(words[:1]) + strings.TrimSuffix(words[1:], ".") + "."
}
