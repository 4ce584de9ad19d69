package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/verify"
)

// receiptKernel is what a kernel image says about the certificate of a receipt.
type receiptKernel struct {
	release string
	others  []string // the other certificates that are built in, by their names
	hashes  bool     // it loads modules for their hashes, too
}

// holdsCertificate checks that the certificate of a receipt is built into a kernel image.
func holdsCertificate(path string, r *agent.Receipt) (*receiptKernel, error) {
	cert, err := r.X509()
	if err != nil {
		return nil, err
	}
	var keys verify.Keyring
	if err := keys.AddImage(path); err != nil {
		return nil, err
	}
	k := &receiptKernel{release: keys.Release(), hashes: keys.Hashed()}
	found := false
	for _, known := range keys.Known() {
		switch {
		case known.Ring != verify.Builtin:
		case slices.Equal(known.DER, cert.Raw):
			found = true
		default:
			k.others = append(k.others, fmt.Sprintf("%q, serial %s", known.Name, known.Serial))
		}
	}
	if !found {
		return nil, &failure{code: exitRefused, err: fmt.Errorf(
			"%s: the certificate of this receipt, SHA-256 %s, is not built into this kernel", path, r.CertificateSHA256)}
	}
	return k, nil
}

// besides names what else the kernel trusts.
func (k *receiptKernel) besides() string {
	if len(k.others) == 0 {
		return ", and no other"
	}
	return ", besides " + strings.Join(k.others, ", and ")
}

// paragraph, in lines, is the answer to a reviewer who asks whether the key of the modules is ephemeral, and
// if it is not, how a kernel is kept from loading the modules of another. It says what was
// checked, what follows, and what does not.
func paragraph(r *agent.Receipt, modules int, k *receiptKernel) []string {
	const minute = "2006-01-02 15:04 UTC"
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	kernel := "this kernel"
	if k.release != "" {
		kernel = "Linux " + k.release
	}
	say("Yes, the modules of %s are signed with an ephemeral key.", kernel)
	say(" modsign made the key (%s) for this build on %s in the memory of a process, and destroyed it on %s;"+
		" it was never in a file.", r.Algorithm, r.Born.UTC().Format(minute), r.Died.UTC().Format(minute))
	say(" Its certificate has the SHA-256 fingerprint %s and is built into the kernel image.", r.CertificateSHA256)
	say(" As its last act the key signed a receipt of the digests of all that it had signed (SHA-256 of their list: %s).",
		r.DigestsSHA256)
	say(" modsign has compared it with the modules as they are shipped: the key has signed exactly these %s, and"+
		" nothing else.", plural(modules, "module"))
	switch {
	case len(k.others) > 0:
		say(" The kernel has other certificates built in, too, and loads what their keys have signed: %s.",
			strings.Join(k.others, "; "))
	case k.hashes:
		say(" The kernel has no other certificate built in. It also loads modules whose hashes are built into it.")
	default:
		say(" The kernel has no other certificate built in: unless keys are added to its keyrings (machine owner keys," +
			" those of the firmware), it loads no module of another build, and no other kernel loads these.")
	}
	if !r.MemoryHidden {
		say(" Other processes of the building user could have read the key while it existed.")
	}
	if !r.MemoryLocked {
		say(" The key's memory could have been swapped out.")
	}
	if !strings.HasPrefix(r.Algorithm, "rsa:") {
		say(" With a key of this kind, whoever was allowed to use the key could have made another receipt.")
	}
	say(" A receipt cannot show that the key was not copied while it existed: for that, the machine that built the" +
		" kernel has to be trusted.")
	return wrapped(b.String(), 100)
}

// wrapped breaks a text into lines of at most width characters, where words allow it.
func wrapped(text string, width int) (lines []string) {
	for word := range strings.FieldsSeq(text) {
		if last := len(lines) - 1; last >= 0 && len(lines[last])+1+len(word) <= width {
			lines[last] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}
