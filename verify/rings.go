package verify

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/cms"
)

// A Ring is a keyring of the kernel, by its name in /proc/keys.
type Ring string

const (
	Builtin   Ring = ".builtin_trusted_keys"   // from the image
	Secondary Ring = ".secondary_trusted_keys" // added by root, signed by a trusted key; has .builtin and .machine inside
	Machine   Ring = ".machine"                // machine owner keys that shim says are for the kernel
	Platform  Ring = ".platform"               // db of the firmware, and other machine owner keys
	Blacklist Ring = ".blacklist"              // what to reject
)

// Rings are all of them, those first in which the kernel looks first.
var Rings = []Ring{Builtin, Secondary, Machine, Platform, Blacklist}

// Known is a certificate of which a Keyring knows.
type Known struct {
	Ring    Ring   // where the kernel has it; empty if nowhere
	Source  string // the file, or the source given to [Keyring.Add]
	Name    string // as the kernel's log names it: the subject, and the subject key identifier or the serial number
	Issuer  string // as the kernel names it
	Serial  string // hexadecimal
	KeyID   string // the subject key identifier, hexadecimal; empty if it has none
	DER     []byte
	Counts  bool   // the kernel looks there when it verifies a module; for .blacklist, to reject it
	Problem string // why the kernel does not have it, does not look there, or cannot use the key; empty if there is none
}

// A Match is a certificate that has something in common with the signer of a module.
type Match struct {
	Known
	// SameKey tells that the certificate is the signer's. Else it has the name of the
	// signer's issuer alone: of a key that was made again with the same name, say.
	SameKey bool
}

// held is a certificate with its place.
type held struct {
	cert    *cms.Certificate // nil if nobody can parse it
	raw     []byte
	ring    Ring
	source  string
	problem string
	reject  bool // it was given in order to reject it
}

// AddTo gives a certificate to a ring, as a kernel may have it there. [Keyring.Known] tells
// if it does not count, and why. A certificate that cannot be parsed is an error.
func (k *Keyring) AddTo(ring Ring, cert *x509.Certificate, source string) error {
	switch {
	case k == nil:
		return errNoKeyring
	case cert == nil || len(cert.Raw) == 0:
		return errors.New("no certificate is given")
	case !slices.Contains(Rings, ring):
		return fmt.Errorf("unknown keyring %q", ring)
	}
	parsed, err := cms.ParseCertificate(cert.Raw)
	if err != nil {
		return err
	}
	k.added = append(k.added, added{ring: ring, raw: parsed.Raw, source: source})
	k.index()
	return nil
}

// AddFileTo gives all certificates in a file to a ring, as [Keyring.AddTo] does. The file is
// as for [Keyring.AddFile]. For [Blacklist] it may also be a list of hashes as for
// CONFIG_SYSTEM_BLACKLIST_HASH_LIST: tbs: or bin: and hexadecimal digits.
func (k *Keyring) AddFileTo(ring Ring, path string) error {
	switch {
	case k == nil:
		return errNoKeyring
	case !slices.Contains(Rings, ring):
		return fmt.Errorf("unknown keyring %q", ring)
	}
	b, err := readFile(path)
	if err != nil {
		return err
	}
	if ring == Blacklist {
		hashes, err := parseHashes(b)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if len(hashes) > 0 {
			k.hashes = append(k.hashes, hashes...)
			k.index()
			return nil
		}
	}
	any := &Keyring{rules: cms.Any}
	certs, err := any.parse(path, b)
	if err != nil {
		return err
	}
	for _, c := range certs {
		k.added = append(k.added, added{ring: ring, raw: c.Raw, source: path})
	}
	k.index()
	return nil
}

// parseHashes reads a list of hashes. It returns none if the file is something else.
func parseHashes(b []byte) (hashes []string, err error) {
	isSeparator := func(r rune) bool { return strings.ContainsRune(" \t\r\n,\"", r) }
	for i, field := range strings.FieldsFunc(string(b), isSeparator) {
		kind, digits, _ := strings.Cut(field, ":")
		_, notHex := hex.DecodeString(digits)
		switch {
		case kind != "tbs" && kind != "bin":
			if i == 0 {
				return nil, nil
			}
			return nil, fmt.Errorf("entry %d of the list does not begin with tbs: or bin: as the others", i+1)
		case notHex != nil || digits == "" || len(digits) > 128 || strings.ToLower(digits) != digits:
			return nil, fmt.Errorf("entry %d of the list has no hash in lower-case hexadecimal", i+1)
		}
		hashes = append(hashes, field)
	}
	return hashes, nil
}

// Follow has the Keyring follow what is known of a kernel. Facts that are not known leave
// what an image or an earlier call told.
func (k *Keyring) Follow(f Facts) error {
	if k == nil {
		return errNoKeyring
	}
	k.facts = f.or(k.facts)
	k.index()
	return nil
}

// Facts returns what the Keyring follows.
func (k *Keyring) Facts() Facts {
	if k == nil {
		return Facts{}
	}
	return k.facts
}

// Counts reports whether the kernel looks into a ring when it verifies a module, and if not,
// why. If that is not known, the ring counts if it would in a kernel of kernel.org that has
// it, and why says so.
func (k *Keyring) Counts(ring Ring) (counts bool, why string) {
	f := k.Facts()
	switch {
	case ring == Secondary && f.Secondary == No, ring == Machine && f.Machine != No && f.Secondary == No:
		return false, "the kernel has no .secondary_trusted_keys (CONFIG_SECONDARY_TRUSTED_KEYRING)"
	case ring == Machine && f.Machine == No:
		return false, "the kernel has no .machine (CONFIG_INTEGRITY_MACHINE_KEYRING)"
	case ring == Platform && f.Platform == No:
		return false, "the kernel has no .platform (CONFIG_INTEGRITY_PLATFORM_KEYRING)"
	case ring == Platform && f.PlatformModules == No:
		return false, "the kernel does not verify modules with .platform"
	case ring == Platform && f.PlatformModules == Unknown:
		return false, "kernels of kernel.org do not verify modules with .platform, those of Debian, Fedora, Red Hat " +
			"and SUSE do, and this one does not tell"
	case ring == Blacklist && f.Blacklist == No:
		return false, "the kernel has no .blacklist (CONFIG_SYSTEM_BLACKLIST_KEYRING)"
	case ring == Blacklist && f.Revocation == No:
		return false, "the kernel does not compare signers with certificates in .blacklist (CONFIG_SYSTEM_REVOCATION_LIST)"
	case ring == Blacklist && !k.kernel().RevokesModules() && f.PlatformModules != Yes:
		return false, k.Kernel() + " does not compare the signers of modules with .blacklist"
	}
	return ring != "", ""
}

// index finds the place of each certificate, and makes the keyrings.
func (k *Keyring) index() {
	k.held, k.vouching, k.late, k.noted = nil, cms.NewKeyring(), make(map[string]bool), nil
	k.source = make(map[*cms.Certificate]string)
	// The firmware's keys come when the built-in ones are there, and vouch for others.
	for _, ring := range []Ring{Builtin, Machine, Platform, Secondary, Blacklist} {
		if ring == Machine {
			k.loadFirmware()
		}
		for _, a := range k.added {
			if a.ring == ring {
				k.hold(ring, a.raw, a.source)
			}
		}
	}
	k.settle()
	rings := make(map[Ring][]*cms.Certificate)
	k.certs = nil
	for i := range k.held {
		h := &k.held[i]
		if h.cert == nil {
			continue
		}
		k.source[h.cert] = h.source
		if counts, _ := k.Counts(h.ring); !counts {
			continue
		}
		rings[h.ring] = append(rings[h.ring], h.cert)
		if h.ring != Blacklist {
			k.certs = append(k.certs, h.cert)
		}
	}
	k.trusted = cms.NewKeyring(slices.Concat(rings[Builtin], rings[Secondary], rings[Machine])...)
	k.platform = nil
	if counts, _ := k.Counts(Platform); counts {
		k.platform = cms.NewKeyring(rings[Platform]...)
	}
	k.revoked = cms.NewKeyring(rings[Blacklist]...)
	k.revoked.Blacklist(k.blacklists)
	k.findDoubts()
}

// hold puts a certificate into a ring, if the kernel takes it there. It reports whether it
// does.
func (k *Keyring) hold(ring Ring, raw []byte, source string) bool {
	h := held{raw: raw, source: source}
	cert, loads, err := k.parseOnce(raw)
	if h.cert = cert; loads {
		h.ring, h.problem = ring, k.refuses(ring, cert)
	} else {
		h.problem = fmt.Sprintf("%s cannot load it: %v", k.kernel(), err)
	}
	if h.problem != "" {
		h.ring = ""
	}
	if h.ring == Builtin || k.facts.SecondaryBuiltin != Yes && (h.ring == Machine || h.ring == Secondary) {
		k.vouching.Add(cert)
	}
	k.held = append(k.held, h)
	return h.ring != ""
}

// parsed is what parsing a certificate led to.
type parsed struct {
	cert  *cms.Certificate
	loads bool
	err   error
}

// parseOnce returns a certificate, nil if nobody can parse it, and whether the kernel loads it;
// err is why not. It parses a certificate once, as that verifies its signature: the same may be
// on several lists, and the index is made again with each addition.
func (k *Keyring) parseOnce(raw []byte) (cert *cms.Certificate, loads bool, err error) {
	sum := sha256.Sum256(raw)
	p, known := k.parsed[sum]
	if !known {
		p.cert, p.err = k.kernel().ParseCertificate(raw)
		if p.loads = p.err == nil; !p.loads {
			p.cert, _ = cms.ParseCertificate(raw)
		}
		if k.parsed == nil {
			k.parsed = make(map[[sha256.Size]byte]parsed)
		}
		k.parsed[sum] = p
	}
	if p.cert == nil {
		return nil, false, p.err
	}
	own := *p.cert // its source is its own
	return &own, p.loads, p.err
}

// refuses tells why the kernel does not take a certificate into a ring.
func (k *Keyring) refuses(ring Ring, c *cms.Certificate) string {
	f := k.facts
	switch {
	case k.blacklists(c):
		return "its hash is on the kernel's blacklist"
	case ring == Machine && f.MachineCA == Yes && f.Trusted == No:
		return "the kernel has no .machine: CONFIG_INTEGRITY_CA_MACHINE_KEYRING needs CONFIG_INTEGRITY_TRUSTED_KEYRING"
	case ring == Machine && f.MachineCA == Yes && !(c.CA && c.CertSign):
		return "it is not the certificate of an authority, which alone .machine takes " +
			"(CA:TRUE and keyCertSign; CONFIG_INTEGRITY_CA_MACHINE_KEYRING)"
	case ring == Machine && f.MachineCA == Yes && f.MachineCAMax == Yes && c.DigitalSignature:
		return "it has the key usage digitalSignature, with which .machine does not take it " +
			"(CONFIG_INTEGRITY_CA_MACHINE_KEYRING_MAX)"
	case ring == Secondary && f.Secondary != No:
		if err := c.VouchedBy(k.vouching); err != nil {
			return ".secondary_trusted_keys does not take it: " + err.Error()
		}
	}
	return ""
}

// Known returns all certificates of which the Keyring knows, in the order of [Rings], and
// those that the kernel does not have last.
func (k *Keyring) Known() []Known {
	if k == nil {
		return nil
	}
	list := make([]Known, 0, len(k.held))
	for _, ring := range append(slices.Clone(Rings), "") {
		for i := range k.held {
			if k.held[i].ring == ring {
				list = append(list, k.describe(&k.held[i]))
			}
		}
	}
	return list
}

func (k *Keyring) describe(h *held) Known {
	d := Known{Ring: h.ring, Source: h.source, DER: h.raw, Problem: h.problem}
	if h.ring != "" {
		counts, why := k.Counts(h.ring)
		d.Counts, d.Problem = counts, joined(why, h.problem)
	}
	c := h.cert
	if c == nil {
		return d
	}
	if d.Problem == "" && c.PublicKey == nil {
		d.Problem = c.KeyProblem
	}
	d.Name, d.Issuer = c.Description(), c.Issuer()
	d.Serial, d.KeyID = hex.EncodeToString(c.Serial), hex.EncodeToString(c.SubjectKeyID)
	return d
}

// joined is two texts as one.
func joined(a, b string) string {
	if a != "" && b != "" {
		return a + "; " + b
	}
	return a + b
}

// Lookup returns the certificates that have something in common with a signer, the signer's
// own first: in all rings, and those that the kernel does not have. Names are compared as the
// kernel writes them.
func (k *Keyring) Lookup(s Signer) []Match {
	if k == nil {
		return nil
	}
	var same, similar []Match
	for i := range k.held {
		if k.held[i].cert == nil {
			continue
		}
		known := k.describe(&k.held[i])
		switch {
		case s.KeyID != "" && s.KeyID == known.KeyID, s.Issuer != "" && s.Issuer == known.Issuer && s.Serial == known.Serial:
			same = append(same, Match{known, true})
		case s.Issuer != "" && (s.Issuer == known.Issuer || s.Issuer == k.held[i].cert.Name()):
			similar = append(similar, Match{known, false})
		}
	}
	return append(same, similar...)
}

// known describes the certificates of an unknown signer that do not count.
func (k *Keyring) known(s Signer) (warnings []string) {
	for _, m := range k.Lookup(s) {
		place := "is in " + string(m.Ring)
		if m.Ring == "" {
			place = "is in no keyring of the kernel"
		}
		switch {
		case m.SameKey && !m.Counts:
			warnings = append(warnings, fmt.Sprintf("the key is known from %s and %s: %s", m.Source, place, m.Problem))
		case !m.SameKey && m.Counts:
			warnings = append(warnings, fmt.Sprintf("%s has another certificate of the name %q, with serial number %s",
				m.Source, m.Issuer, m.Serial))
		}
	}
	return warnings
}
