package verify

import (
	"strings"
	"testing"
)

// symbols reads lines of a configuration.
func symbols(lines string) map[string]string {
	if lines == "" {
		return nil
	}
	config := make(map[string]string)
	for line := range strings.Lines(lines) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		config[name] = value
	}
	return config
}

// The policy of a running kernel, and of another one by its configuration and command line.
func TestPolicy(t *testing.T) {
	const signed = "CONFIG_MODULE_SIG=y\n"
	const lsm = signed + "CONFIG_SECURITY_LOCKDOWN_LSM=y\n"
	const enforcing = signed + "CONFIG_CMDLINE=module.sig_enforce=1\n"
	for _, test := range []struct {
		enforce                   Fact
		lockdown, cmdline, config string
		want                      Enforcement
	}{
		{Yes, "none", "", "", SigEnforce},
		{No, "none", "", "", Tolerant},
		{No, "integrity", "", "", Lockdown},
		{Unknown, "confidentiality", "", "", Lockdown},
		{Unknown, "none", "", "", Undecided},
		{No, "", "lockdown=integrity", "", Lockdown}, // securityfs is not mounted
		{No, "", "", "", Undecided},
		{No, "", "", lsm, Tolerant},
		{No, "", "", lsm + "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY=y\n", Lockdown},
		{No, "none", "lockdown=integrity", "", Tolerant},
		{Unknown, "", "", "", Undecided},
		{Unknown, "", "", signed, Tolerant},
		{Unknown, "", "", signed + "CONFIG_MODULE_SIG_FORCE=y\n", SigEnforce},
		{Unknown, "", "", "CONFIG_MODULES=y\n", NoSignatures},
		{Unknown, "", "", "CONFIG_MODULE_HASHES=y\nCONFIG_MODULE_SIG_FORCE=y\n", SigEnforce},
		{Unknown, "", "", "CONFIG_MODULE_HASHES=y\n", Tolerant},
		{Unknown, "", "module.sig_enforce=1", signed, SigEnforce},
		{Unknown, "", "module.sig_enforce", signed, SigEnforce},
		{Unknown, "", "module.sig_enforce=0", signed, Tolerant},
		{Unknown, "", "lockdown=confidentiality", lsm, Lockdown},
		{Unknown, "", "lockdown=integrity", signed, Tolerant},
		{Unknown, "", "", lsm + "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y\n", Lockdown},
		{Unknown, "", "lockdown=integrity lsm=capability", lsm, Tolerant},
		{Unknown, "", "lockdown=integrity lsm=yama,lockdown", lsm + "CONFIG_LSM=yama\n", Lockdown},
		{Unknown, "", "lockdown=integrity", lsm + "CONFIG_LSM=yama\n", Tolerant},
		{Unknown, "", "lockdown=integrity lsm=capability", lsm + "CONFIG_SECURITY_LOCKDOWN_LSM_EARLY=y\n", Lockdown},
		{Unknown, "", "module.sig-enforce=1", signed, SigEnforce},
		{Unknown, "", `"module.sig_enforce=1"`, signed, SigEnforce},
		{Unknown, "", "module.sig_enforce=1 module.sig_enforce=0", signed, SigEnforce},
		{Unknown, "", "-- module.sig_enforce=1", signed, Tolerant},
		{Unknown, "", `foo="a module.sig_enforce=1"`, signed, Tolerant},
		// What is built in: alone, in front of the boot loader's parameters or behind them.
		{Unknown, "", "quiet", enforcing, Tolerant},
		{Unknown, "", "quiet", enforcing + "CONFIG_CMDLINE_EXTEND=y\n", SigEnforce},
		{Unknown, "", "quiet --", enforcing + "CONFIG_CMDLINE_EXTEND=y\n", Tolerant},
		{Unknown, "", "quiet --", enforcing + "CONFIG_CMDLINE_FORCE=y\n", SigEnforce},
		{Unknown, "", "quiet --", enforcing + "CONFIG_CMDLINE_BOOL=y\nCONFIG_X86=y\n", SigEnforce},
		{Unknown, "", "module.sig_enforce=1", signed + "CONFIG_CMDLINE=quiet\nCONFIG_CMDLINE_OVERRIDE=y\n", Tolerant},
		{Unknown, "", "module.sig_enforce=1", signed + "CONFIG_CMDLINE=quiet\nCONFIG_CMDLINE_OVERWRITE=y\n", Tolerant},
		{Unknown, "", "module.sig_enforce=1", signed + "CONFIG_CMDLINE=\nCONFIG_CMDLINE_FORCE=y\n", SigEnforce},
		{Unknown, "", "lsm=yama", lsm + "CONFIG_CMDLINE=lockdown=integrity\nCONFIG_CMDLINE_EXTEND=y\n", Tolerant},
	} {
		f := PolicyFacts{SigEnforce: test.enforce, Lockdown: test.lockdown, Cmdline: test.cmdline, Disabled: No,
			Config: symbols(test.config)}
		p := f.Policy()
		if p.Enforcement != test.want || len(p.Evidence) == 0 || p.Disabled {
			t.Errorf("%+v: %+v", test, p)
		}
		if strings.Contains(test.config, enforcing) && p.Enforcement == SigEnforce &&
			!strings.Contains(p.Evidence[0], "CONFIG_CMDLINE") {
			t.Errorf("%+v: %q", test, p.Evidence)
		}
	}
	// The command line of a kernel that has booted is whole.
	f := PolicyFacts{Cmdline: "quiet", Booted: true, Config: symbols(enforcing + "CONFIG_CMDLINE_FORCE=y\n")}
	if p := f.Policy(); p.Enforcement != Tolerant || p.Enforced() != No {
		t.Errorf("%+v", p)
	}
}

// What is not known of a kernel that seems to be tolerant is said, and makes it no tolerant one.
func TestPolicyUnchecked(t *testing.T) {
	const signed = "CONFIG_MODULE_SIG=y\n"
	const fallback = signed + "CONFIG_CMDLINE=module.sig_enforce\nCONFIG_CMDLINE_FROM_BOOTLOADER=y\n"
	const may = signed + "CONFIG_BOOT_CONFIG=y\n"
	for _, test := range []struct {
		facts PolicyFacts
		want  string
	}{
		{PolicyFacts{Config: symbols(fallback)}, "boot loader"},
		{PolicyFacts{Config: symbols(fallback), Cmdline: "quiet"}, ""},
		{PolicyFacts{Config: symbols(fallback), SigEnforce: No, Lockdown: "none"}, ""},
		{PolicyFacts{Config: symbols(signed + "CONFIG_CMDLINE=quiet\n")}, ""},
		{PolicyFacts{Config: symbols(may)}, ""},
		{PolicyFacts{Config: symbols(may), Cmdline: "quiet bootconfig"}, "bootconfig"},
		{PolicyFacts{Config: symbols(signed), Cmdline: "bootconfig"}, ""},
		{PolicyFacts{Config: symbols(may + "CONFIG_BOOT_CONFIG_FORCE=y\n")}, "bootconfig"},
		{PolicyFacts{Config: symbols(may + "CONFIG_BOOT_CONFIG_FORCE=y\n"), Booted: true}, ""},
	} {
		p := test.facts.Policy()
		text := strings.Join(p.Unchecked, "\n")
		if (text != "") != (test.want != "") || !strings.Contains(text, test.want) || p.Enforcement != Tolerant {
			t.Errorf("%+v: %+v", test.facts, p)
		}
		if got := p.Enforced(); got != No && test.want == "" || got != Unknown && test.want != "" {
			t.Errorf("%+v: enforced %d", test.facts, got)
		}
	}
	secure := PolicyFacts{Config: symbols(signed + "CONFIG_IMA_ARCH_POLICY=y\n")}
	if p := secure.Policy(); p.SecureBoot != SigEnforce || p.Enforced() != Unknown {
		t.Errorf("%+v", p)
	}
	if secure.SecureBoot = No; secure.Policy().Enforced() != No {
		t.Errorf("%+v", secure.Policy())
	}
}

func TestPolicyOfCmdline(t *testing.T) {
	p := PolicyFacts{Cmdline: "quiet module_blacklist=a,b", Disabled: Yes}.Policy()
	if !p.Disabled || p.DisabledBy != "" || len(p.Blacklist) != 2 {
		t.Errorf("%+v", p)
	}
	for cmdline, want := range map[string]bool{
		"nomodule": true, "nomodule=0": false, "nomodule nomodule=n": false, "-- nomodule": false,
		"sysctl.kernel.modules_disabled=1": true, "sysctl/kernel/modules_disabled=1 quiet": true,
		"sysctl.kernel.modules-disabled=1": false, "sysctl.kernel.modules_disabled=0": false,
	} {
		if p := (PolicyFacts{Cmdline: cmdline}).Policy(); p.Disabled != want {
			t.Errorf("%s: %+v", cmdline, p)
		}
	}
	for _, cmdline := range []string{"module-blacklist=a,b", `module_blacklist="a,b"`, `"module_blacklist=a,b"`} {
		if p := (PolicyFacts{Cmdline: cmdline}).Policy(); len(p.Blacklist) != 2 || p.Blacklist[1] != "b" {
			t.Errorf("%s: %+v", cmdline, p)
		}
	}
}
