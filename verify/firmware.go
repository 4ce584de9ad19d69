package verify

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/efi"
)

// Firmware is what the firmware and shim tell a kernel when it boots. The kernel puts it into
// its keyrings by rules that [Facts] choose (security/integrity/platform_certs).
type Firmware struct {
	DB, DBX           []List // db and dbx of the firmware
	MokList, MokListX []List // shim's lists as the kernel gets them: MokListRT, MokListXRT

	SecureBoot     Fact // it is on. If not, the kernel does not read shim's lists. Unknown counts as Yes
	MokListTrusted Fact // shim says that machine owner keys are for the kernel too. Unknown counts as Yes
	IgnoreDB       bool // MokIgnoreDB exists: the kernel does not read db

	Unread UnreadFacts // which of these three could not be read
}

// UnreadFacts names the sources of facts of a [Firmware] that may be there and could not be
// read; it is empty for the other facts. A verdict that hangs on such a fact is [Unreadable].
type UnreadFacts struct{ SecureBoot, MokListTrusted, IgnoreDB string }

// A doubt is a Keyring as the kernel's may be too, because sources could not be read.
type doubt struct {
	sources string
	keys    *Keyring
}

// findDoubts makes the Keyrings of all other answers to the facts that could not be read.
func (k *Keyring) findDoubts() {
	k.doubts = nil
	const secureBoot, trusted, ignored, all = 1, 2, 4, 8
	for choice := 1; choice < all; choice++ {
		var sources []string
		chosen := func(fact int, source string) bool {
			if choice&fact == 0 || source == "" {
				return false
			}
			sources = append(sources, source)
			return true
		}
		firmware := slices.Clone(k.firmware)
		for i := range firmware {
			f := &firmware[i]
			if chosen(secureBoot, f.Unread.SecureBoot) {
				f.SecureBoot = No
			}
			if chosen(trusted, f.Unread.MokListTrusted) {
				f.MokListTrusted = No
			}
			f.IgnoreDB = f.IgnoreDB || chosen(ignored, f.Unread.IgnoreDB)
			f.Unread = UnreadFacts{}
		}
		if len(sources) < bits.OnesCount(uint(choice)) { // a smaller choice says the same
			continue
		}
		other := &Keyring{rules: k.rules, facts: k.facts, added: k.added, firmware: firmware, live: k.live,
			hashes: k.hashes, parsed: k.parsed}
		other.index()
		k.doubts = append(k.doubts, doubt{strings.Join(sources, " and "), other})
	}
}

// doubted returns an error if the verdict of a check hangs on what could not be read.
func (k *Keyring) doubted(message *cms.Message, digest func(cms.Hash) ([]byte, error), err error) error {
	for _, d := range k.doubts {
		if _, other := d.keys.check(message, digest); kindOf(other) != kindOf(err) {
			return d.err()
		}
	}
	return nil
}

func (d doubt) err() error {
	return errNoVerdict("it hangs on %s, and that could not be read", d.sources)
}

// kindOf is the kind of a refusal, and 0 without one.
func kindOf(err error) cms.Kind {
	if refusal, ok := errors.AsType[*cms.Error](err); ok {
		return refusal.Kind
	}
	return 0
}

// A List is a list of certificates and hashes, as db and MokListRT are.
type List struct {
	Source   string // for [Known]
	elements []efi.Element
	problem  error
}

// ParseList parses signature lists of the UEFI Specification, bare or as efivarfs shows a
// variable with them. [List.Problem] tells what is malformed.
func ParseList(source string, data []byte) List {
	elements, err := efi.ParseFile(bytes.Clone(data))
	return List{source, elements, err}
}

// ReadList reads a list from a file of at most 4 MiB: signature lists of the UEFI
// Specification, or certificates as in [Keyring.AddFile], such as those of mokutil --export.
// A list that is malformed behind some elements is no error: see [List.Problem].
func ReadList(path string) (List, error) {
	b, err := readFile(path)
	if err != nil {
		return List{}, err
	}
	elements, malformed := efi.ParseFile(b)
	if len(elements) > 0 {
		return List{path, elements, malformed}, nil
	}
	any := &Keyring{rules: cms.Any}
	certs, err := any.parse(path, b)
	switch {
	case err != nil && malformed != nil && efi.IsList(b):
		return List{}, fmt.Errorf("%s: %w", path, malformed)
	case errors.Is(err, ErrNoCertificates):
		return List{}, fmt.Errorf("%w; nor is it a list of EFI", err)
	case err != nil:
		return List{}, err
	}
	l := List{Source: path}
	for _, c := range certs {
		l.elements = append(l.elements, efi.Element{Type: efi.X509, Owner: efi.Shim, Data: c.Raw})
	}
	return l, nil
}

// Problem is what is malformed in the list. The kernel takes the elements in front of that.
func (l List) Problem() error { return l.problem }

// Len is the number of elements.
func (l List) Len() int { return len(l.elements) }

// Certificates returns the certificates in the list, in DER.
func (l List) Certificates() (ders [][]byte) {
	for _, e := range l.elements {
		if e.Type == efi.X509 {
			ders = append(ders, e.Data)
		}
	}
	return ders
}

// Skipped counts the elements that no kernel reads in such a list, by the names of their
// types. reject is for lists such as dbx.
func (l List) Skipped(reject bool) map[string]int {
	skipped := make(map[string]int)
	for _, e := range l.elements {
		switch {
		case e.Type == efi.X509, reject && (e.Type == efi.SHA256 || e.Type == efi.X509SHA256):
		default:
			skipped[efi.TypeName(e.Type)]++
		}
	}
	return skipped
}

// Ineffective counts the hashes of certificates that come with a time of revocation. The
// kernel takes that for a part of the hash, and so rejects nothing for it.
func (l List) Ineffective() (n int) {
	for _, e := range l.elements {
		if e.Type == efi.X509SHA256 && len(e.Data) == 32+16 {
			n++
		}
	}
	return n
}

// AddFirmware adds what the firmware and shim tell. Where it goes follows the facts of the
// kernel, also those that become known later.
func (k *Keyring) AddFirmware(f Firmware) error {
	if k == nil {
		return errNoKeyring
	}
	k.firmware = append(k.firmware, f)
	k.index()
	return nil
}

// loadFirmware does what load_uefi_certs does, in its order
// (security/integrity/platform_certs/load_uefi.c).
func (k *Keyring) loadFirmware() {
	for _, f := range k.firmware {
		for _, l := range slices.Concat(f.DB, f.DBX, f.MokListX, f.MokList) {
			if l.problem != nil {
				k.note("%s: %v: the kernel takes what is in front of that", l.Source, l.problem)
			}
		}
		k.loadTrusted(f.DB, Platform, k.skipsDB(f))
		k.loadRejected(f.DBX, k.skipsLists())
		skip := k.skipsMok(f)
		k.loadRejected(f.MokListX, skip)
		ring, why := k.mokRing(f)
		if len(f.MokList) > 0 && skip == "" {
			if why != "" {
				k.note("%s", why)
			}
			if f.SecureBoot == Unknown && f.Unread.SecureBoot == "" {
				k.note("Secure Boot is taken to be on; if it is off, the kernel has no machine owner key")
			}
		}
		k.loadTrusted(f.MokList, ring, skip)
	}
}

func (k *Keyring) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(k.noted, text) {
		k.noted = append(k.noted, text)
	}
}

// skipsLists tells why the kernel reads no list of the firmware.
func (k *Keyring) skipsLists() string {
	if k.facts.LoadUEFI == No {
		return "the kernel reads no keys of the firmware (CONFIG_LOAD_UEFI_KEYS)"
	}
	return ""
}

func (k *Keyring) skipsDB(f Firmware) string {
	if f.IgnoreDB {
		return "shim is told to ignore db (MokIgnoreDB), and the kernel then does not read it"
	}
	return k.skipsLists()
}

// skipsMok tells why the kernel reads no list of shim.
func (k *Keyring) skipsMok(f Firmware) string {
	switch {
	case f.SecureBoot == No:
		return "Secure Boot is off, and the kernel then reads no list of shim"
	case k.facts.SecureBoot == No:
		return k.Kernel() + " cannot tell whether Secure Boot is on, and so reads no list of shim " +
			"(CONFIG_IMA_ARCH_POLICY, and CONFIG_EFI)"
	}
	return k.skipsLists()
}

// mokRing returns the ring for machine owner keys (get_handler_for_mok, keyring_handler.c). why
// is what is assumed.
func (k *Keyring) mokRing(f Firmware) (ring Ring, why string) {
	switch {
	case k.facts.Machine == No:
		return Platform, ""
	case k.facts.MachineAlways == Yes || f.MokListTrusted == Yes:
		return Machine, ""
	case f.MokListTrusted == No:
		return Platform, ""
	case f.Unread.MokListTrusted != "":
		return Machine, "" // the verdicts tell
	}
	return Machine, "machine owner keys are taken to be in .machine, as if shim had set MokListTrustedRT; " +
		"without that they are in .platform"
}

// loadTrusted gives the certificates of lists to a ring. A machine owner key that .machine does
// not take goes to .platform (add_to_machine_keyring).
func (k *Keyring) loadTrusted(lists []List, ring Ring, skip string) {
	for _, l := range lists {
		for _, der := range l.Certificates() {
			if skip != "" {
				k.drop(der, l.Source, skip)
				continue
			}
			if k.hold(ring, der, l.Source) || ring != Machine || k.facts.Platform == No {
				continue
			}
			refused := k.held[len(k.held)-1]
			if k.hold(Platform, der, l.Source) {
				k.held = slices.Delete(k.held, len(k.held)-2, len(k.held)-1)
				k.held[len(k.held)-1].problem = "not in .machine: " + refused.problem
			} else {
				k.held = k.held[:len(k.held)-1]
			}
		}
	}
}

// drop notes a certificate that the kernel does not have.
func (k *Keyring) drop(der []byte, source, problem string) {
	cert, _, err := k.parseOnce(der)
	if cert == nil && err != nil {
		problem = err.Error()
	}
	k.held = append(k.held, held{cert: cert, raw: der, source: source, problem: problem})
}

// loadRejected does what get_handler_for_dbx does with the elements of lists.
func (k *Keyring) loadRejected(lists []List, skip string) {
	for _, l := range lists {
		for _, e := range l.elements {
			switch {
			case e.Type == efi.X509 && skip != "":
				k.drop(e.Data, l.Source, skip)
				k.held[len(k.held)-1].reject = true
			case e.Type == efi.X509 && k.facts.Revocation == No:
				k.drop(e.Data, l.Source, "the kernel keeps no revoked certificates (CONFIG_SYSTEM_REVOCATION_LIST)")
				k.held[len(k.held)-1].reject = true
			case e.Type == efi.X509:
				k.hold(Blacklist, e.Data, l.Source)
			case skip != "" || k.facts.Blacklist == No:
			case e.Type == efi.X509SHA256:
				// The kernel takes the time of revocation for a part of the hash.
				k.late["tbs:"+hex.EncodeToString(e.Data)] = true
			case e.Type == efi.SHA256:
				k.late["bin:"+hex.EncodeToString(e.Data)] = true
			}
		}
	}
}

// FollowRunning tells what a running kernel has in its rings: the descriptions of keys as
// /proc/keys has them, "name: id" for a certificate, "tbs:hash" and "bin:hash" for what is
// on the blacklist. A ring that is absent was not read, and is taken to hold what it should.
// What [Builtin] should hold is not known without an image.
func (k *Keyring) FollowRunning(rings map[Ring][]string) error {
	if k == nil {
		return errNoKeyring
	}
	if rings == nil {
		return errors.New("no keyrings are given")
	}
	k.live = rings
	k.index()
	return nil
}

// Unmatched returns the descriptions of keys that a running kernel has in a ring and that are
// of no certificate that the Keyring knows.
func (k *Keyring) Unmatched(ring Ring) (descriptions []string) {
	if k == nil {
		return nil
	}
	if len(k.live[ring]) == 0 {
		return nil
	}
	known := make(map[string]bool)
	for _, h := range k.held {
		if h.ring == ring && h.cert != nil {
			known[h.cert.Description()] = true
		}
	}
	for _, d := range k.live[ring] {
		if !isHash(d) && !known[d] {
			descriptions = append(descriptions, d)
		}
	}
	return descriptions
}

func isHash(description string) bool {
	return strings.HasPrefix(description, "tbs:") || strings.HasPrefix(description, "bin:")
}

// settle moves the certificates to where a running kernel has them.
func (k *Keyring) settle() {
	if k.live == nil {
		return
	}
	for _, d := range k.live[Blacklist] {
		if isHash(d) {
			k.late[d] = true
		}
	}
	live := make(map[Ring]map[string]bool)
	for ring, descriptions := range k.live {
		live[ring] = make(map[string]bool)
		for _, d := range descriptions {
			live[ring][d] = true
		}
	}
	for i := range k.held {
		h := &k.held[i]
		if h.cert == nil {
			continue
		}
		name := h.cert.Description()
		has := func(ring Ring) bool { return live[ring][name] }
		_, read := k.live[h.ring]
		switch {
		case h.reject || h.ring == Blacklist || h.ring != "" && (!read || has(h.ring)):
			continue
		}
		expected := h.ring
		h.ring = ""
		for _, ring := range Rings[:4] {
			if has(ring) {
				h.ring = ring
				break
			}
		}
		switch {
		case h.ring != "" && expected != "":
			h.problem = fmt.Sprintf("the running kernel has it in %s; %s was expected", h.ring, expected)
		case h.ring != "":
			h.problem = ""
		case expected != "":
			h.problem = fmt.Sprintf("the running kernel does not have it in %s or elsewhere", expected)
		}
	}
}

// Unread tells that the kernel may have more in a ring than the Keyring was given, because
// source could not be read. Then there is no verdict on a module whose key may be there; for
// [Blacklist], on one that would be trusted.
func (k *Keyring) Unread(ring Ring, source string) error {
	if k == nil {
		return errNoKeyring
	}
	if k.unread == nil {
		k.unread = make(map[Ring]string)
	}
	k.unread[ring] = source
	return nil
}

// errNoVerdict is the error of a module whose key may or may not be known to the kernel.
func errNoVerdict(format string, args ...any) error {
	return fmt.Errorf("no verdict: "+format, args...)
}

// maybeKnown returns an error if the kernel may have a key that signed a module although the
// Keyring does not.
func (k *Keyring) maybeKnown(signers []cms.SignerInfo) error {
	if _, read := k.live[Builtin]; k.live != nil && !read && !k.image {
		return errNoVerdict("the key may be in %s, which could not be read", Builtin)
	}
	for _, ring := range Rings[:4] {
		counts, _ := k.Counts(ring)
		if source := k.unread[ring]; counts && source != "" {
			return errNoVerdict("the key may be in %s, and %s could not be read", ring, source)
		}
		if !counts {
			continue
		}
		for _, d := range k.Unmatched(ring) {
			for _, s := range signers {
				// The description has the subject key identifier if there is one: it rules the key
				// out only if the signer is named by that.
				if s.SubjectKeyID == nil || strings.HasSuffix(d, ": "+hex.EncodeToString(s.SubjectKeyID)) {
					return errNoVerdict("the running kernel has the key %q in %s, which may be the signer's, and its "+
						"certificate is not known", d, ring)
				}
			}
		}
	}
	return nil
}

// maybeRejected returns an error if the kernel may reject a module that would be trusted.
func (k *Keyring) maybeRejected() error {
	counts, _ := k.Counts(Blacklist)
	if source := k.unread[Blacklist]; source != "" && (counts || k.facts.ModuleHashes == Yes) {
		return errNoVerdict("the kernel may reject the module, and %s could not be read", source)
	}
	return nil
}
