package explain

import (
	"os"
	"strings"

	"github.com/modsign/modsign/verify"
)

// policy finds out how the kernel enforces signatures.
func (k *Kernel) policy() verify.Policy {
	facts := verify.PolicyFacts{Cmdline: k.Cmdline, Config: k.Config}
	if f := k.Firmware; f != nil {
		facts.SecureBoot = f.SecureBoot
		// As verify.Keyring takes it: machine owner keys count, and they do so with Secure Boot alone.
		if f.SecureBoot == verify.Unknown && len(f.MokList) > 0 {
			facts.SecureBoot, facts.Assumed = verify.Yes, true
		}
	}
	if k.Running {
		k.Cmdline = read(verify.CmdlineFile)
		facts.Booted, facts.Cmdline = true, k.Cmdline
		facts.SigEnforce, facts.Disabled = told(verify.SigEnforceFile), told(verify.DisabledFile)
		_, level, _ := strings.Cut(read(verify.LockdownFile), "[")
		facts.Lockdown, _, _ = strings.Cut(level, "]")
	}
	return facts.Policy()
}

// read is the text of a file of the kernel, empty if it is not to be had.
func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// told reads a file of the kernel that says Y or N, 1 or 0.
func told(path string) verify.Fact {
	switch read(path) {
	case "":
		return verify.Unknown
	case "Y", "1":
		return verify.Yes
	}
	return verify.No
}

// unless says what may still make a tolerant kernel enforce signatures.
func (k *Kernel) unless() string {
	if k.Running {
		return ""
	}
	switch k.Policy.SecureBoot {
	case verify.SigEnforce:
		return "with Secure Boot it enforces signatures (CONFIG_IMA_ARCH_POLICY=y) and refuses the module; " +
			"so it does with module.sig_enforce=1 or lockdown=integrity on its command line"
	case verify.Lockdown:
		return "with Secure Boot it is locked down (CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y) and refuses the module; " +
			"so it does with module.sig_enforce=1 on its command line"
	}
	if k.isNot("SECURITY_LOCKDOWN_LSM") {
		return "with module.sig_enforce=1 on its command line it refuses the module"
	}
	return "with module.sig_enforce=1 or lockdown=integrity on its command line it refuses the module"
}
