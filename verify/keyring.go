package verify

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/vmlinux"
)

// A Keyring holds the certificates that a kernel trusts, those that it is told to reject,
// and the hashes of its modules if it has them. Its verdicts are those of the kernel of
// [Keyring.AddImage], or of the newest one that this package knows. The zero value trusts
// nothing. Fill it before it is used by several goroutines.
//
// The certificates are in the rings of the kernel: see [Ring]. Which of them count, and
// where a certificate of the firmware goes, follows [Facts] of the kernel.
type Keyring struct {
	rules    *cms.Rules // nil: the newest
	image    bool       // an image was added
	release  string     // of the kernel in the image added last
	facts    Facts
	added    []added
	firmware []Firmware
	live     map[Ring][]string // nil: not known
	unread   map[Ring]string   // what could not be read of a ring
	hashes   []string          // that kernels have on their blacklists from the beginning
	warnings []string

	parsed map[[sha256.Size]byte]parsed // by the rules, of the certificates with these hashes

	// Derived from the above by index.
	held     []held
	vouching *cms.Keyring       // those that vouch for others in .secondary_trusted_keys
	certs    []*cms.Certificate // those that count
	trusted  *cms.Keyring       // .builtin_trusted_keys, .secondary_trusted_keys and .machine, as far as they count
	platform *cms.Keyring       // nil if it does not count
	revoked  *cms.Keyring
	source   map[*cms.Certificate]string
	late     map[string]bool // hashes that came to the blacklist from the firmware
	noted    []string        // warnings about what was derived
	doubts   []doubt

	hashList           Hashes
	hashed, hashesOnly bool
}

// ErrNoCertificates reports a file or a kernel image without certificates.
var ErrNoCertificates = errors.New("no certificate found")

// Add trusts a certificate. source says where it comes from, for Result.Source. A
// certificate that no kernel would load is an error.
func (k *Keyring) Add(cert *x509.Certificate, source string) error {
	switch {
	case k == nil:
		return errNoKeyring
	case cert == nil:
		return errors.New("no certificate is given")
	case len(cert.Raw) == 0:
		return errors.New("certificate was not parsed: it has no encoding")
	}
	parsed, err := k.kernel().ParseCertificate(cert.Raw)
	if err != nil {
		return err
	}
	k.add(Builtin, source, parsed)
	return nil
}

// AddFile trusts all certificates in a file of at most 4 MiB. The file holds PEM, of which
// AddFile skips other blocks, or DER certificates one after the other; zero bytes may
// follow them. A certificate that no kernel would load is an error.
func (k *Keyring) AddFile(path string) error {
	if k == nil {
		return errNoKeyring
	}
	b, err := readFile(path)
	if err != nil {
		return err
	}
	certs, err := k.parse(path, b)
	if err != nil {
		return err
	}
	k.add(Builtin, path, certs...)
	return nil
}

// readFile reads a file of certificates whole. Its errors have the path.
func readFile(path string) ([]byte, error) {
	b, err := keyfile.Read(path)
	if _, named := errors.AsType[*fs.PathError](err); err == nil || named {
		return b, err
	}
	return nil, fmt.Errorf("%s: %w", path, err)
}

// parse returns the certificates in a file, at least one.
func (k *Keyring) parse(path string, b []byte) ([]*cms.Certificate, error) {
	certs, err := parseFile(k.kernel(), b)
	if err != nil {
		if _, parsed := parseFile(cms.Newest, b); parsed == nil {
			err = fmt.Errorf("%s cannot use it: %w", k.kernel(), err)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(certs) == 0 {
		what, hint := noCertificates(b)
		return nil, &keyfile.HintError{Err: fmt.Errorf("%s: %w: %s", path, ErrNoCertificates, what), Hint: hint}
	}
	return certs, nil
}

// noCertificates describes a file without certificates, and what to do.
func noCertificates(b []byte) (what, hint string) {
	if what, hint = keyfile.Mangled(b); what != "" {
		return "file is " + what, hint
	}
	for block := range keyfile.Blocks(b) {
		if block.Kind == keyfile.Trusted {
			return "file is an OpenSSL TRUSTED CERTIFICATE, which the kernel's tools do not accept", keyfile.TrustedHint
		}
	}
	return "neither PEM certificates nor DER", ""
}

func parseFile(rules *cms.Rules, b []byte) ([]*cms.Certificate, error) {
	if len(b) > 0 && b[0] == 0x30 {
		return rules.ParseCertificates(b)
	}
	var certs []*cms.Certificate
	for block := range keyfile.Blocks(b) {
		if !block.IsCertificate() {
			continue
		}
		decoded, err := block.Decode()
		if err != nil {
			return nil, err
		}
		cert, err := rules.ParseCertificate(decoded.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// Release is that of the kernel in the image added last, as uname -r prints it. It is empty
// without an image, and if the image does not tell.
func (k *Keyring) Release() string {
	if k == nil {
		return ""
	}
	return k.release
}

// Kernel names the kernel whose rules the Keyring follows: "Linux 6.12".
func (k *Keyring) Kernel() string { return k.kernel().String() }

func (k *Keyring) kernel() *cms.Rules {
	if k == nil || k.rules == nil {
		return cms.Newest
	}
	return k.rules
}

// FollowRelease has the Keyring follow the rules of a kernel of which only the release is
// known, as uname -r prints it. A release without a version changes nothing.
func (k *Keyring) FollowRelease(release string) error {
	if k == nil {
		return errNoKeyring
	}
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return nil
	}
	return k.obey(cms.RulesOf(major, minor, false))
}

// AcceptAttributes has the Keyring judge like a kernel with
// CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA. An image tells that itself.
func (k *Keyring) AcceptAttributes() error {
	if k == nil {
		return errNoKeyring
	}
	return k.obey(k.kernel().Waived())
}

// Reads returns an error if the kernel cannot read a signature: a message in DER.
func (k *Keyring) Reads(message []byte) error {
	_, err := k.kernel().Parse(message)
	return err
}

// Loads returns an error if the kernel cannot load a certificate, or verify modules with it.
func (k *Keyring) Loads(cert *x509.Certificate) error { return k.kernel().Loadable(cert.Raw) }

// follow takes the rules of the kernel in an image. Of several kernels, the oldest counts: it
// knows least.
func (k *Keyring) follow(path string, image *vmlinux.Image) error {
	release, err := image.Release()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	k.image, k.release = true, release
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		k.warnings = append(k.warnings, fmt.Sprintf("%s: the image does not tell its version: modules are judged as %s would",
			path, k.kernel()))
		return nil
	}
	waived, err := image.Contains(waivedLine)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	rules := cms.RulesOf(major, minor, waived)
	if old := k.rules; old != nil && *old != *rules {
		k.warnings = append(k.warnings, fmt.Sprintf("%s is %s, and another image is %s: modules are judged as the older would",
			path, rules, old))
		if !rules.OlderThan(old) {
			return nil
		}
	}
	return k.obey(rules)
}

// obey takes other rules, also for the certificates that are there.
func (k *Keyring) obey(rules *cms.Rules) error {
	k.rules, k.parsed = rules, nil
	for _, a := range k.added {
		if _, err := rules.ParseCertificate(a.raw); err != nil && a.usable {
			return fmt.Errorf("%s cannot use the certificate in %s: %w", rules, a.source, err)
		}
	}
	k.index()
	return nil
}

// waivedLine is what a kernel logs that takes signed attributes with ML-DSA, as
// CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA lets it. Only such a kernel has it.
const waivedLine = "Waived invalid module sig (has authattrs)"

// AddImage trusts the certificates built into a kernel image (a vmlinux, an Image, or a boot
// image of any architecture, also a unified kernel image), and rejects those that the image
// is built to reject. If the image has no symbols, AddImage uses a System.map beside it. An
// image without certificates is an error, unless it has the hashes of its modules: see
// [Keyring.Hashed]. One that accepts no signatures adds no certificates. A flat binary, as
// the Image of arm64 is, that has hashes of its modules is an error: it does not tell where.
func (k *Keyring) AddImage(path string) error {
	if k == nil {
		return errNoKeyring
	}
	image, err := OpenImage(path)
	if err != nil {
		return err
	}
	defer image.Close()
	return k.AddOpened(image)
}

// AddOpened is [Keyring.AddImage] for an image that is open. It is not read after AddOpened
// returns.
func (k *Keyring) AddOpened(image *Image) error {
	switch {
	case k == nil:
		return errNoKeyring
	case image == nil:
		return errors.New("no kernel image is given")
	}
	return k.addImage(image.name, image.image)
}

func (k *Keyring) addImage(path string, image *vmlinux.Image) error {
	if err := k.follow(path, image); err != nil {
		return err
	}
	facts, err := imageFacts(image, k.release)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	k.facts = facts.or(k.facts)
	if err := k.addHashed(image); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if k.hashesOnly {
		return nil
	}
	lists, err := image.Certificates()
	if err != nil {
		// The first error explains more if the map does not help.
		if useSystemMap(image, path) == nil {
			lists, err = image.Certificates()
		}
		if k.hashed && errors.Is(err, vmlinux.ErrNoCertificates) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	// A certificate that the kernel leaves out when it boots is no error.
	certs, err := k.kernel().ParseCertificateList(lists.Builtin)
	k.warn(path, err)
	if len(lists.Dropped) > 0 {
		k.warnings = append(k.warnings, fmt.Sprintf("%s: the kernel ignores the last %d bytes of its list of certificates",
			path, len(lists.Dropped)))
	}
	usable := slices.ContainsFunc(certs, func(c *cms.Certificate) bool { return !c.Blacklisted(lists.BlacklistHashes) })
	revoked, err := k.kernel().ParseCertificateList(lists.Revoked)
	k.warn(path+": revoked certificates", err)
	if !usable && !k.hashed {
		return fmt.Errorf("%s: %w that the kernel can use", path, ErrNoCertificates)
	}
	k.hashes = append(k.hashes, lists.BlacklistHashes...)
	k.add(Blacklist, path, revoked...)
	k.add(Builtin, path, certs...)
	return nil
}

// warn adds a warning for each of the errors that are joined in one, which may be nil.
func (k *Keyring) warn(what string, err error) {
	problems := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		problems = joined.Unwrap()
	}
	for _, err := range problems {
		if err != nil {
			k.warnings = append(k.warnings, fmt.Sprintf("%s: %v", what, err))
		}
	}
}

// useSystemMap reads the System.map-VERSION that Debian and Fedora install beside
// vmlinuz-VERSION.
func useSystemMap(image *vmlinux.Image, path string) error {
	dir, name := filepath.Split(path)
	_, version, ok := strings.Cut(name, "-")
	if !ok {
		return os.ErrNotExist
	}
	f, err := os.Open(filepath.Join(dir, "System.map-"+version))
	if err != nil {
		return err
	}
	defer f.Close()
	return image.UseSystemMap(f)
}

// added is a certificate that a ring was given.
type added struct {
	ring   Ring
	raw    []byte
	source string
	usable bool // it is an error if the kernel cannot read it
}

// add gives certificates to a ring, of which the kernel can read all.
func (k *Keyring) add(ring Ring, source string, certs ...*cms.Certificate) {
	for _, c := range certs {
		k.added = append(k.added, added{ring, c.Raw, source, true})
	}
	k.index()
}

// blacklists reports whether a kernel has a certificate on its blacklist.
func (k *Keyring) blacklists(c *cms.Certificate) bool {
	sum := c.TBSHash()
	return c.Blacklisted(k.hashes) || sum != nil && k.late["tbs:"+hex.EncodeToString(sum)]
}

// Len returns how many certificates the keyring trusts.
func (k *Keyring) Len() int { return len(k.list()) }

// list returns the trusted certificates, none if the keyring is nil.
func (k *Keyring) list() []*cms.Certificate {
	if k == nil {
		return nil
	}
	return k.certs
}

// Warnings describes certificates in kernel images that the kernel cannot use.
func (k *Keyring) Warnings() []string {
	if k == nil {
		return nil
	}
	return slices.Concat(k.warnings, k.noted)
}

// Names returns the trusted certificates in the words of the kernel's log.
func (k *Keyring) Names() []string {
	names := make([]string, k.Len())
	for i, c := range k.list() {
		names[i] = c.Description()
	}
	return names
}

// Holds reports whether the keyring trusts a certificate, given in DER.
func (k *Keyring) Holds(der []byte) bool {
	return slices.ContainsFunc(k.list(), func(c *cms.Certificate) bool { return bytes.Equal(c.Raw, der) })
}
