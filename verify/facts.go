package verify

import (
	"strings"

	"github.com/modsign/modsign/internal/vmlinux"
)

// A Fact is true, false, or not known.
type Fact int8

const (
	Unknown Fact = iota
	No
	Yes
)

func factOf(b bool) Fact {
	if b {
		return Yes
	}
	return No
}

// Facts are what decides which keyrings a kernel has, how it fills them, and which of them
// verify modules. [ConfigFacts] takes them from a configuration; [Keyring.AddImage] takes
// from an image what its texts tell.
type Facts struct {
	Secondary        Fact // CONFIG_SECONDARY_TRUSTED_KEYRING: there is .secondary_trusted_keys
	SecondaryBuiltin Fact // CONFIG_SECONDARY_TRUSTED_KEYRING_SIGNED_BY_BUILTIN: only built-in keys vouch for others
	Machine          Fact // CONFIG_INTEGRITY_MACHINE_KEYRING: there is .machine
	MachineCA        Fact // CONFIG_INTEGRITY_CA_MACHINE_KEYRING: .machine takes certificates of authorities only
	MachineCAMax     Fact // CONFIG_INTEGRITY_CA_MACHINE_KEYRING_MAX: and not those with the usage digitalSignature
	Platform         Fact // CONFIG_INTEGRITY_PLATFORM_KEYRING: there is .platform
	LoadUEFI         Fact // CONFIG_LOAD_UEFI_KEYS: the kernel reads db, dbx and shim's lists
	Trusted          Fact // CONFIG_INTEGRITY_TRUSTED_KEYRING, without which MachineCA leaves no .machine
	// The kernel asks the firmware whether Secure Boot is on; else it takes it for off, and
	// reads no list of shim. In 7.2, and in later releases of 6.12, with
	// CONFIG_HAVE_ARCH_GET_SECUREBOOT, which EFI brings; in others with
	// CONFIG_IMA_SECURE_AND_OR_TRUSTED_BOOT, which CONFIG_IMA_ARCH_POLICY brings.
	SecureBoot Fact
	Blacklist  Fact // CONFIG_SYSTEM_BLACKLIST_KEYRING: there is .blacklist
	Revocation Fact // CONFIG_SYSTEM_REVOCATION_LIST: certificates in .blacklist count

	// What distributions change.

	// The kernel looks for the signer of a module in .platform too, if no other keyring has
	// it. Debian, Fedora, Red Hat and SUSE have the patch; kernel.org does not.
	PlatformModules Fact
	// Machine owner keys go to .machine although shim did not say so (MokListTrustedRT).
	// Debian's 6.1 and 6.12 are such kernels.
	MachineAlways Fact
	// The kernel rejects a module whose SHA-256 is on the blacklist (bin:). Debian's 6.1 and
	// 6.12 are such kernels.
	ModuleHashes Fact
}

// fields returns pointers to all facts.
func (f *Facts) fields() []*Fact {
	return []*Fact{
		&f.Secondary, &f.SecondaryBuiltin, &f.Machine, &f.MachineCA, &f.MachineCAMax, &f.Platform, &f.LoadUEFI, &f.Trusted,
		&f.SecureBoot, &f.Blacklist, &f.Revocation, &f.PlatformModules, &f.MachineAlways,
		&f.ModuleHashes,
	}
}

// or returns the facts, and those of others where they are not known.
func (f Facts) or(others Facts) Facts {
	all, more := f.fields(), others.fields()
	for i := range all {
		if *all[i] == Unknown {
			*all[i] = *more[i]
		}
	}
	return f
}

// ConfigFacts takes the facts from a kernel's configuration and its release, as uname -r
// prints it. set reports whether a symbol, without CONFIG_, is y.
func ConfigFacts(release string, set func(symbol string) bool) Facts {
	fact := func(symbol string) Fact { return factOf(set(symbol)) }
	platform := patchedBy(release)
	if set("MODULE_SIG_PLATFORM") { // of a proposed patch that some kernels have
		platform = Yes
	}
	return Facts{
		Secondary:        fact("SECONDARY_TRUSTED_KEYRING"),
		SecondaryBuiltin: fact("SECONDARY_TRUSTED_KEYRING_SIGNED_BY_BUILTIN"),
		Machine:          fact("INTEGRITY_MACHINE_KEYRING"),
		MachineCA:        fact("INTEGRITY_CA_MACHINE_KEYRING"),
		MachineCAMax:     fact("INTEGRITY_CA_MACHINE_KEYRING_MAX"),
		Platform:         fact("INTEGRITY_PLATFORM_KEYRING"),
		LoadUEFI:         fact("LOAD_UEFI_KEYS"),
		Trusted:          fact("INTEGRITY_TRUSTED_KEYRING"),
		// A version with the newer symbol does not ask for the older one.
		SecureBoot:      factOf(set("IMA_SECURE_AND_OR_TRUSTED_BOOT") || set("HAVE_ARCH_GET_SECUREBOOT")),
		Blacklist:       fact("SYSTEM_BLACKLIST_KEYRING"),
		Revocation:      fact("SYSTEM_REVOCATION_LIST"),
		PlatformModules: platform,
	}
}

// patchedBy tells from a release, or from the whole banner of a kernel, whether it is of a
// distribution that has modules verified by .platform.
func patchedBy(release string) Fact {
	for _, mark := range []string{
		"+deb", "debian-kernel@lists.debian.org", // Debian's kernels of stable releases, and all of them
		".fc", ".el", "geeko@buildhost", // Fedora, Red Hat and its kin, SUSE
	} {
		if strings.Contains(release, mark) {
			return Yes
		}
	}
	return Unknown
}

// Texts that a kernel has only if it is configured or patched so.
const (
	textInit       = "Initialise system trusted keyrings" // every kernel that prints and has keyrings
	textSecondary  = ".secondary_trusted_keys"
	textMachine    = "Machine keyring initialized"
	textPlatform   = "Platform Keyring initialized"
	textUEFI       = "UEFI:MokListXRT"
	textTrusted    = "MokListTrustedRT"
	textSecureBoot = "secureboot mode enabled"
	textBlacklist  = "blacklisting failed"
	textRevocation = "Loading compiled-in revocation X.509 certificates"
	textHashes     = "Module hash %*phN is blacklisted"
	textDebian     = "debian-kernel@lists.debian.org"
	textSUSE       = "geeko@buildhost"
)

// imageFacts takes from an image what its texts tell, and from its release.
func imageFacts(image *vmlinux.Image, release string) (Facts, error) {
	has, err := image.Texts(textInit, textSecondary, textMachine, textPlatform, textUEFI, textTrusted, textSecureBoot,
		textBlacklist, textRevocation, textHashes, textDebian, textSUSE)
	if err != nil {
		return Facts{}, err
	}
	fact := func(text string) Fact {
		if !has[text] && !has[textInit] { // the kernel may have no texts for its log
			return Unknown
		}
		return factOf(has[text])
	}
	f := Facts{
		Secondary: fact(textSecondary), Machine: fact(textMachine), Platform: fact(textPlatform), LoadUEFI: fact(textUEFI),
		SecureBoot: fact(textSecureBoot), Blacklist: fact(textBlacklist), Revocation: fact(textRevocation),
		ModuleHashes: fact(textHashes), PlatformModules: patchedBy(release),
	}
	if has[textMachine] {
		f.MachineAlways = factOf(!has[textTrusted])
	}
	if has[textDebian] || has[textSUSE] {
		f.PlatformModules = Yes
	}
	return f, nil
}
