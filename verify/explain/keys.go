package explain

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/verify"
)

// unknownKey finds out where the certificate of the signer is, and which others look like it.
func (j *judge) unknownKey(r verify.Result) {
	if len(r.Signers) == 0 {
		j.judged(r, Cause{ID: UnknownKey, Reason: "The kernel does not have the key that signed the module.",
			Mend: j.resign("")})
		return
	}
	signer, matches := r.Signers[0].Signer, []verify.Match(nil)
	for _, s := range r.Signers {
		found := slices.DeleteFunc(j.Keys.Lookup(s.Signer),
			func(m verify.Match) bool { return m.Ring == verify.Blacklist })
		if len(found) > 0 {
			signer, matches = s.Signer, found
			break
		}
	}
	name, local := nameOfSigner(&signer), j.localPair(&signer)
	c := Cause{
		ID:     UnknownKey,
		Reason: fmt.Sprintf("The module is signed by %s. The kernel does not have that certificate.", name),
		Mend:   j.resign(""),
	}
	trusted := slices.IndexFunc(matches, func(m verify.Match) bool { return !m.SameKey && m.Counts })
	switch {
	case len(matches) > 0 && matches[0].SameKey:
		c.ID = j.misplaced(&c, name, matches[0].Known, local)
		c.Evidence = append(c.Evidence, "the certificate is in "+placeOf(matches[0].Known))
	case trusted >= 0:
		c.ID = KeyRegenerated
		c.Reason = fmt.Sprintf("The module is signed by %s. The kernel trusts another certificate of that name, serial %s: "+
			"the key was made anew, and the module or the kernel is from before.", name, short(matches[trusted].Serial))
		if dir, _ := j.inTree(j.path); dir == "kernel" {
			c.Mend = j.replace()
		} else if local != nil {
			c.Mend = j.enrolLocal(local)
		}
	case local != nil:
		c.ID = KeyNotEnrolled
		c.Reason = fmt.Sprintf("The module is signed by %s. That key is on this machine, and the kernel does not have its "+
			"certificate: it was never enrolled, or the machine was not rebooted since.", name)
		c.Mend = j.enrolLocal(local)
	}
	if local != nil {
		c.Evidence = append(c.Evidence, fmt.Sprintf("the certificate is in %s, its key in %s", local.Cert, local.Key))
	}
	c.Evidence = append(c.Evidence, j.similar(&signer, matches)...)
	c.Evidence = append(c.Evidence, j.lookedAt())
	j.judged(r, c)
}

// enrolLocal is how to enrol the key on this machine that signed the module.
func (j *judge) enrolLocal(local *pair) Mend {
	_, ok := j.signingPair()
	if why := j.noOwnerKeys(); !ok && why != "" {
		return j.builtin(why, nil)
	}
	if !j.mayEnrol(local.cert) {
		return j.resign("")
	}
	return j.enrol(local.KeyPair, "")
}

// similar lists certificates that could be taken for the signer's.
func (j *judge) similar(s *verify.Signer, matches []verify.Match) (evidence []string) {
	for _, m := range matches {
		if !m.SameKey {
			evidence = append(evidence, fmt.Sprintf("same name, other key: %s, serial %s, in %s", m.Name,
				short(m.Serial),
				placeOf(m.Known)))
		}
	}
	for _, known := range j.Keys.Known() {
		related := slices.ContainsFunc(matches, func(m verify.Match) bool { return bytes.Equal(m.DER, known.DER) })
		if !related && s.Serial != "" && s.Serial == known.Serial {
			evidence = append(evidence, fmt.Sprintf("same serial number, other name: %s, in %s", known.Name,
				placeOf(known)))
		}
	}
	for i := range j.pairs {
		if p := &j.pairs[i]; s.Issuer != "" && s.Issuer == p.cert.Issuer() && !isOf(s, p.cert) {
			evidence = append(evidence, fmt.Sprintf("same name, other key: serial %s, in %s",
				short(hex.EncodeToString(p.cert.Serial)),
				p.Cert))
		}
	}
	return evidence
}

// misplaced explains a certificate that the kernel does not have, or has where it does not look
// for the keys of modules.
func (j *judge) misplaced(c *Cause, name string, known verify.Known, local *pair) ID {
	facts := j.Keys.Facts()
	mok, f := j.isMok(known.DER)
	enrolled := "The module is signed by " + name + ", which is enrolled as a machine owner key"
	switch {
	case mok && known.Ring == verify.Platform && facts.Machine == verify.No:
		c.Reason = enrolled +
			". This kernel has no keyring .machine (CONFIG_INTEGRITY_MACHINE_KEYRING is not set), and machine " +
			"owner " +
			"keys do not count for modules."
		c.Mend = j.anotherKey("use a kernel with CONFIG_INTEGRITY_MACHINE_KEYRING=y: enrolling keys does not " +
			"help with this one")
		return NoMachineKeyring
	case mok && strings.Contains(known.Problem, "not in .machine"):
		c.Reason = enrolled +
			". This kernel takes only certificates of authorities into .machine " +
			"(CONFIG_INTEGRITY_CA_MACHINE_KEYRING), " +
			"and this one is none."
		c.Evidence = append(c.Evidence, known.Problem)
		c.Mend = j.resign("")
		return NotAuthority
	case mok && known.Ring == verify.Platform && f.MokListTrusted == verify.No:
		c.Reason = enrolled +
			". shim did not say that these keys are for the kernel too (MokListTrustedRT is missing), so that " +
			"it has them " +
			"in .platform, which does not count for modules."
		c.Mend = Mend{Command: "mokutil --trust-mok",
			Then: "reboot, and confirm in MokManager with the password that you give to mokutil"}
		if j.NoShimTable {
			c.Evidence = append(c.Evidence, "shim left no table of its variables")
			c.Mend = Mend{Command: "efibootmgr -v",
				Then: "shim did not start this kernel, or it is an old one: have the firmware start a shim of version 15.3 " +
					"or later, and reboot"}
		}
		return MokNotTrusted
	case known.Ring == "" && strings.Contains(known.Problem, "blacklist"):
		c.Reason = fmt.Sprintf("The module is signed by %s. The kernel does not take the certificate: %s.", name, known.Problem)
		return KeyDropped
	case mok && known.Ring == "":
		c.Reason = enrolled + ". The kernel has not read it: " + known.Problem + "."
		c.Mend = j.anotherKey("")
		return MokNotRead
	case known.Ring != "":
		c.Reason = fmt.Sprintf("The module is signed by %s. The kernel has the certificate in %s, which does "+
			"not count for modules.", name,
			known.Ring)
		c.Evidence = append(c.Evidence, known.Problem)
		if local != nil {
			c.Mend = j.enrolLocal(local)
		}
		return KeyElsewhere
	}
	c.Reason = fmt.Sprintf("The module is signed by %s. The kernel does not use the certificate: %s.", name,
		known.Problem)
	return KeyDropped
}

// isMok reports whether a certificate is a machine owner key, and what the firmware tells.
func (j *judge) isMok(der []byte) (bool, verify.Firmware) {
	if j.Firmware == nil {
		return false, verify.Firmware{}
	}
	for _, l := range j.Firmware.MokList {
		if slices.ContainsFunc(l.Certificates(), func(mok []byte) bool { return bytes.Equal(mok, der) }) {
			return true, *j.Firmware
		}
	}
	return false, *j.Firmware
}

// isOf reports whether a certificate is that of a signer, as the kernel identifies keys: by
// issuer and serial number, or by subject key identifier.
func isOf(s *verify.Signer, c *cms.Certificate) bool {
	return s.KeyID != "" && s.KeyID == hex.EncodeToString(c.SubjectKeyID) ||
		s.Issuer != "" && s.Issuer == c.Issuer() && s.Serial == hex.EncodeToString(c.Serial)
}

// localPair returns the key on this machine that is the signer's.
func (j *judge) localPair(s *verify.Signer) *pair {
	for i := range j.pairs {
		if isOf(s, j.pairs[i].cert) {
			return &j.pairs[i]
		}
	}
	return nil
}

// placeOf says where a certificate is.
func placeOf(known verify.Known) string {
	if known.Ring == "" {
		return known.Source
	}
	return fmt.Sprintf("%s, from %s", known.Ring, known.Source)
}

// nameOfSigner describes a signer with what tells it from another one of its name.
func nameOfSigner(s *verify.Signer) string {
	switch {
	case s.Issuer != "":
		return fmt.Sprintf("%q, serial %s", s.Issuer, short(s.Serial))
	case s.KeyID != "":
		return "key id " + short(s.KeyID)
	}
	return fmt.Sprintf("%q", s.Name)
}

// short cuts a long number: its first digits tell two apart.
func short(digits string) string {
	const enough = 16
	if len(digits) > enough {
		return digits[:enough] + "..."
	}
	return digits
}

// certificates counts certificates.
func certificates(n int) string {
	if n == 1 {
		return "1 certificate"
	}
	return fmt.Sprintf("%d certificates", n)
}

// lookedAt says which keyrings a signer was compared with.
func (j *judge) lookedAt() string {
	type count struct{ counting, other int }
	counts := make(map[verify.Ring]count)
	for _, known := range j.Keys.Known() {
		n := counts[known.Ring]
		if known.Counts {
			n.counting++
		} else {
			n.other++
		}
		counts[known.Ring] = n
	}
	var parts []string
	for _, ring := range verify.Rings {
		n := counts[ring]
		switch {
		case ring == verify.Blacklist || n == count{}:
		case n.counting == 0:
			parts = append(parts, fmt.Sprintf("%s: %s, which do not count for modules", ring, certificates(n.other)))
		default:
			parts = append(parts, fmt.Sprintf("%s: %s", ring, certificates(n.counting)))
		}
	}
	if n := counts[""]; n.other > 0 {
		parts = append(parts, fmt.Sprintf("%d that the kernel does not have", n.other))
	}
	if len(parts) == 0 {
		return "no certificate is known that the kernel trusts"
	}
	return "looked in " + strings.Join(parts, "; ")
}
