package verify

import (
	"slices"
	"strings"
)

// Enforcement is what a kernel does with a module whose signature is missing, or by a key or
// with algorithms that it does not have.
type Enforcement string

const (
	SigEnforce   Enforcement = "sig_enforce"   // CONFIG_MODULE_SIG_FORCE or module.sig_enforce: EKEYREJECTED
	Lockdown     Enforcement = "lockdown"      // EPERM
	Tolerant     Enforcement = "none"          // it loads the module and is tainted
	NoSignatures Enforcement = "no signatures" // no CONFIG_MODULE_SIG or _HASHES: it looks at none
	Undecided    Enforcement = "unknown"       // not enough is known
)

// Policy is how a kernel enforces signatures, and which modules it refuses unseen.
type Policy struct {
	Enforcement Enforcement
	Evidence    []string // what says so
	// SecureBoot is what the kernel does with Secure Boot, if it is not known whether that is
	// on, and Enforcement is for a machine without. Else it is empty.
	SecureBoot Enforcement
	// Unchecked is what may have the kernel enforce signatures after all, and is not known.
	Unchecked []string

	Disabled   bool     // it loads no module at all until it is rebooted
	DisabledBy string   // the parameter that does so; empty for a sysctl
	Blacklist  []string // names of modules that its command line forbids
}

// Enforced reports whether the kernel refuses modules without a good signature.
func (p Policy) Enforced() Fact {
	switch p.Enforcement {
	case SigEnforce, Lockdown:
		return Yes
	case Tolerant, NoSignatures:
		if p.SecureBoot == "" && len(p.Unchecked) == 0 {
			return No
		}
	}
	return Unknown
}

// The files of a running kernel that tell its [Policy], for [PolicyFacts].
const (
	SigEnforceFile = "/sys/module/module/parameters/sig_enforce"
	LockdownFile   = "/sys/kernel/security/lockdown"
	DisabledFile   = "/proc/sys/kernel/modules_disabled"
	CmdlineFile    = "/proc/cmdline"
)

// PolicyFacts are what tells the [Policy] of a kernel. The zero value knows nothing.
type PolicyFacts struct {
	// SigEnforce and Disabled are what a running kernel says in [SigEnforceFile] and
	// [DisabledFile]. Lockdown is the word in brackets in [LockdownFile]: none, integrity or
	// confidentiality; empty is unknown.
	SigEnforce, Disabled Fact
	Lockdown             string
	// Cmdline is the whole command line of a kernel if Booted says so, as in [CmdlineFile]. Else
	// it is what the boot loader gives to the kernel, to which its configuration may add.
	Cmdline string
	Booted  bool
	// Config is the configuration, symbols such as CONFIG_MODULE_SIG with their values; nil is
	// unknown.
	Config map[string]string
	// SecureBoot says whether Secure Boot is on, or Assumed to be on.
	SecureBoot Fact
	Assumed    bool
}

func (f *PolicyFacts) is(symbol string) bool    { return f.Config["CONFIG_"+symbol] == "y" }
func (f *PolicyFacts) isNot(symbol string) bool { return f.Config != nil && !f.is(symbol) }

// Policy decides as the kernel does (kernel/module/signing.c, security/lockdown/lockdown.c,
// arch_ima_policy.c). What a running kernel says counts before its configuration.
func (f PolicyFacts) Policy() Policy {
	cmdline, fallback := f.Cmdline, ""
	if !f.Booted {
		cmdline, fallback = f.joinedCmdline()
	}
	params := parameters(cmdline)
	p := Policy{Blacklist: forbidden(params)}
	if none, ok := loadsNone(params); f.Disabled == Unknown && ok {
		p.Disabled, p.DisabledBy = true, none.text
	}
	p.Disabled = p.Disabled || f.Disabled == Yes
	p.Enforcement, p.Evidence = f.enforcement(params, f.SecureBoot)
	if p.Enforcement != Tolerant {
		return p
	}
	if f.SecureBoot == Unknown {
		if with, _ := f.enforcement(params, Yes); with != Tolerant {
			p.SecureBoot = with
		}
	}
	if with, _ := f.enforcement(parameters(fallback), f.SecureBoot); fallback != "" && with != Tolerant {
		p.Unchecked = append(p.Unchecked, "the boot loader's parameters: without any, the kernel takes those of "+
			builtinCmdline+", which have it enforce signatures")
	}
	if f.SigEnforce == Unknown && f.bootconfig(params) {
		p.Unchecked = append(p.Unchecked, "the bootconfig in the kernel or at the end of the initramfs, which may have "+
			"module.sig_enforce")
	}
	return p
}

// enforcement decides for a command line, with Secure Boot on or not.
func (f *PolicyFacts) enforcement(params []parameter, secureBoot Fact) (Enforcement, []string) {
	decide := func(e Enforcement, evidence ...string) (Enforcement, []string) { return e, evidence }
	enforcing, onCmdline := enforced(params)
	unknown := f.SigEnforce == Unknown
	switch {
	case f.SigEnforce == Yes:
		return decide(SigEnforce, SigEnforceFile+" is Y")
	case unknown && f.isNot("MODULE_SIG") && !f.is("MODULE_HASHES"): // hashes are enforced as signatures are
		return decide(NoSignatures, "CONFIG_MODULE_SIG is not set")
	case unknown && onCmdline:
		return decide(SigEnforce, enforcing.text+f.where(enforcing))
	case unknown && f.is("MODULE_SIG_FORCE"):
		return decide(SigEnforce, "CONFIG_MODULE_SIG_FORCE=y")
	case unknown && f.Config == nil && (f.Lockdown == "" || f.Lockdown == "none"):
		return decide(Undecided, "neither the configuration nor "+SigEnforceFile+" is known")
	}
	switch f.Lockdown {
	case "":
	case "none":
		return decide(Tolerant, f.tolerant(), LockdownFile+" is "+f.Lockdown)
	default:
		return decide(Lockdown, LockdownFile+" is "+f.Lockdown)
	}
	mayLock := f.hasLockdown(params)
	for _, level := range []string{"integrity", "confidentiality"} {
		if !mayLock {
			break
		}
		for _, p := range params {
			if p.name == "lockdown" && p.value == level {
				return decide(Lockdown, p.text+f.where(p))
			}
		}
		if symbol := "LOCK_DOWN_KERNEL_FORCE_" + strings.ToUpper(level); f.is(symbol) {
			return decide(Lockdown, "CONFIG_"+symbol+"=y")
		}
	}
	// A kernel that tells nothing, as it is after the next boot.
	on := "Secure Boot is on"
	if f.Assumed {
		on = "Secure Boot is taken to be on, as machine owner keys are given"
	}
	switch {
	case f.Config == nil:
		return decide(Undecided, "neither the configuration nor "+LockdownFile+" is known")
	case secureBoot == Yes && unknown && f.is("IMA_ARCH_POLICY"):
		return decide(SigEnforce, on+", and CONFIG_IMA_ARCH_POLICY=y")
	case secureBoot == Yes && mayLock && f.is("LOCK_DOWN_IN_EFI_SECURE_BOOT"):
		return decide(Lockdown, on+", and CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y")
	}
	return decide(Tolerant, f.tolerant())
}

// tolerant is why module.sig_enforce is off.
func (f *PolicyFacts) tolerant() string {
	if f.SigEnforce == No {
		return SigEnforceFile + " is N"
	}
	return "CONFIG_MODULE_SIG_FORCE is not set"
}

// where says where a parameter is.
func (f *PolicyFacts) where(p parameter) string {
	if !f.Booted && slices.Contains(parameters(f.Config[builtinCmdline]), p) {
		return " in " + builtinCmdline
	}
	return " on the command line"
}

// builtinCmdline is the symbol of the parameters that are built into a kernel.
const builtinCmdline = "CONFIG_CMDLINE"

// hasLockdown reports whether the kernel has the security module lockdown, without which
// nothing locks it down: lsm= or CONFIG_LSM lists it, or it comes before all others.
func (f *PolicyFacts) hasLockdown(params []parameter) bool {
	switch {
	case f.isNot("SECURITY_LOCKDOWN_LSM"):
		return false
	case f.is("SECURITY_LOCKDOWN_LSM_EARLY"):
		return true
	}
	list, listed := f.Config["CONFIG_LSM"]
	for _, p := range params {
		if p.name == "lsm" && p.given {
			list, listed = p.value, f.Config != nil // else it may be early
		}
	}
	return !listed || slices.Contains(strings.Split(list, ","), "lockdown")
}

// joinedCmdline joins the boot loader's parameters and CONFIG_CMDLINE. fallback is not empty if
// the kernel takes CONFIG_CMDLINE alone, if the boot loader gives none, which is not known here:
// arch/x86/kernel/setup.c, arch/mips/kernel/setup.c, arch/sh/kernel/setup.c,
// arch/loongarch/kernel/setup.c, arch/powerpc/kernel/prom_init.c, arch/arm/kernel/atags_parse.c,
// and drivers/of/fdt.c for the others.
func (f *PolicyFacts) joinedCmdline() (cmdline, fallback string) {
	builtin := f.Config[builtinCmdline]
	switch {
	case builtin == "":
		return f.Cmdline, ""
	case f.is("CMDLINE_OVERRIDE"), f.is("CMDLINE_OVERWRITE"), f.is("CMDLINE_FORCE") && !f.is("CMDLINE_EXTEND"):
		return builtin, ""
	case f.is("CMDLINE_EXTEND"):
		return f.Cmdline + " " + builtin, ""
	case f.is("CMDLINE_BOOL") && (f.is("X86") || f.is("MIPS")):
		return builtin + " " + f.Cmdline, ""
	case f.Cmdline == "":
		return "", builtin
	}
	return f.Cmdline, ""
}

// bootconfig reports whether the kernel follows a bootconfig, which /proc/cmdline shows
// (setup_boot_config in init/main.c). It comes too late for lockdown=, which is an early
// parameter.
func (f *PolicyFacts) bootconfig(params []parameter) bool {
	if f.Booted || !f.is("BOOT_CONFIG") {
		return false
	}
	named := func(p parameter) bool { return p.name == "bootconfig" }
	return f.is("BOOT_CONFIG_FORCE") || slices.ContainsFunc(params, named)
}
