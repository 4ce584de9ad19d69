package explain

import (
	"os"
	"slices"
	"strings"

	"github.com/modsign/modsign/verify"
)

// Enforcement is what a kernel does with a module whose signature is missing, or by a key or
// with algorithms that it does not have.
type Enforcement string

const (
	SigEnforce   Enforcement = "sig_enforce"   // CONFIG_MODULE_SIG_FORCE or module.sig_enforce: EKEYREJECTED
	Lockdown     Enforcement = "lockdown"      // EPERM
	Tolerant     Enforcement = "none"          // it loads the module and is tainted
	NoSignatures Enforcement = "no signatures" // no CONFIG_MODULE_SIG or _HASHES: it looks at none
	Unknown      Enforcement = "unknown"       // taken for SigEnforce
)

// Policy is how a kernel enforces signatures.
type Policy struct {
	Enforcement Enforcement
	Evidence    []string // what says so
	Disabled    bool     // it loads no module at all until it is rebooted
	Blacklist   []string // names of modules that its command line forbids

	disabledBy string // the parameter that does so; empty for a sysctl
}

// The files of a running kernel.
const (
	enforceFile  = "/sys/module/module/parameters/sig_enforce"
	lockdownFile = "/sys/kernel/security/lockdown"
	disabledFile = "/proc/sys/kernel/modules_disabled"
	cmdlineFile  = "/proc/cmdline"
)

// policy finds out how the kernel enforces signatures.
func (k *Kernel) policy() Policy {
	read := func(path string) string {
		if !k.Running {
			return ""
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	if k.Running {
		k.Cmdline = read(cmdlineFile)
	}
	return k.policyOf(read(enforceFile), read(lockdownFile), k.Cmdline, read(disabledFile))
}

// policyOf decides by what the running kernel says, which is empty for another kernel, and by
// the configuration.
func (k *Kernel) policyOf(enforce, lockdown, cmdline, disabled string) Policy {
	params := parameters(cmdline)
	p := Policy{Blacklist: forbidden(params)}
	if none, ok := loadsNone(params); disabled == "" && ok {
		p.Disabled, p.disabledBy = true, none.text
	}
	p.Disabled = p.Disabled || disabled == "1"
	decide := func(e Enforcement, evidence ...string) Policy {
		p.Enforcement, p.Evidence = e, evidence
		return p
	}
	enforcing, onCmdline := enforced(params)
	switch {
	case enforce == "Y":
		return decide(SigEnforce, enforceFile+" is Y")
	case enforce == "" && k.isNot("MODULE_SIG") && !k.is("MODULE_HASHES"): // hashes are enforced as signatures are
		return decide(NoSignatures, "CONFIG_MODULE_SIG is not set")
	case enforce == "" && onCmdline:
		return decide(SigEnforce, enforcing.text+" on the command line")
	case enforce == "" && k.is("MODULE_SIG_FORCE"):
		return decide(SigEnforce, "CONFIG_MODULE_SIG_FORCE=y")
	case enforce == "" && k.Config == nil:
		return decide(Unknown, "neither the configuration nor "+enforceFile+" is known")
	}
	tolerant := "CONFIG_MODULE_SIG_FORCE is not set"
	if enforce != "" {
		tolerant = enforceFile + " is " + enforce
	}
	_, rest, _ := strings.Cut(lockdown, "[")
	level, _, _ := strings.Cut(rest, "]")
	switch {
	case level == "integrity" || level == "confidentiality":
		return decide(Lockdown, lockdownFile+" is "+level)
	case level != "": // none
		return decide(Tolerant, tolerant, lockdownFile+" is "+level)
	}
	mayLock := k.hasLockdown(params)
	for _, level := range []string{"integrity", "confidentiality"} {
		if !mayLock {
			break
		}
		if slices.ContainsFunc(params, func(p parameter) bool { return p.name == "lockdown" && p.value == level }) {
			return decide(Lockdown, "lockdown="+level+" on the command line")
		}
		if symbol := "LOCK_DOWN_KERNEL_FORCE_" + strings.ToUpper(level); k.is(symbol) {
			return decide(Lockdown, "CONFIG_"+symbol+"=y")
		}
	}
	// Another kernel on a machine with Secure Boot, as it is after the next boot.
	if on := k.secureBoot(); enforce == "" && on != "" {
		switch {
		case k.is("IMA_ARCH_POLICY"):
			return decide(SigEnforce, on+", and CONFIG_IMA_ARCH_POLICY=y")
		case mayLock && k.is("LOCK_DOWN_IN_EFI_SECURE_BOOT"):
			return decide(Lockdown, on+", and CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y")
		}
	}
	return decide(Tolerant, tolerant)
}

// secureBoot says that Secure Boot is on, or taken to be on as verify.Keyring takes it: if it
// is unknown, machine owner keys count, and they do so with Secure Boot alone. It is empty if
// nothing is assumed.
func (k *Kernel) secureBoot() string {
	switch f := k.Firmware; {
	case f == nil:
	case f.SecureBoot == verify.Yes:
		return "Secure Boot is on"
	case f.SecureBoot == verify.Unknown && len(f.MokList) > 0:
		return "Secure Boot is taken to be on, as machine owner keys are given"
	}
	return ""
}

// unless says what may still make a tolerant kernel enforce signatures.
func (k *Kernel) unless() string {
	switch {
	case k.Running:
		return ""
	case k.secureBoot() != "" || k.Firmware != nil && k.Firmware.SecureBoot == verify.No:
	case k.is("IMA_ARCH_POLICY"):
		return "with Secure Boot it enforces signatures (CONFIG_IMA_ARCH_POLICY=y) and refuses the module; " +
			"so it does with module.sig_enforce=1 or lockdown=integrity on its command line"
	case k.is("LOCK_DOWN_IN_EFI_SECURE_BOOT"):
		return "with Secure Boot it is locked down (CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y) and refuses the module; " +
			"so it does with module.sig_enforce=1 on its command line"
	}
	if k.isNot("SECURITY_LOCKDOWN_LSM") {
		return "with module.sig_enforce=1 on its command line it refuses the module"
	}
	return "with module.sig_enforce=1 or lockdown=integrity on its command line it refuses the module"
}
