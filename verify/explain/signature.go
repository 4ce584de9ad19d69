package explain

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/verify"
)

// signature goes through module_sig_check, and returns the size of the module without what the
// kernel takes off.
func (j *judge) signature() (size int64, err error) {
	if j.Policy.Enforcement == verify.NoSignatures {
		return j.content.size, nil
	}
	result := verify.Module(module.At(j.ctx, j.content), j.content.size, j.Keys)
	result.Path, result.Target = j.r.Path, j.r.Target
	j.r.Signed = result
	size = j.content.size
	outer, splitErr := module.Split(j.content, size)
	if splitErr == nil && result.Verdict != verify.NotSigned {
		size = outer.Offset
	}
	switch {
	case result.Verdict == verify.Unreadable:
		return 0, result.Err
	case result.Verdict == verify.Trusted || result.Cause == syscall.ENOEXEC: // the signature is good
		if !result.ByHash {
			j.algorithms(result)
		}
		return size, nil
	}
	switch result.Verdict {
	case verify.NotSigned:
		err = j.notSigned(result)
	case verify.UnknownKey:
		j.unknownKey(result)
	case verify.BadSignature:
		err = j.badSignature(result, outer)
	case verify.Unsupported:
		j.unsupported(result)
	case verify.Revoked:
		c := Cause{ID: KeyRevoked, Mend: j.resign(""),
			Reason: "The kernel is told to reject the key or the certificate that signed the module: it is on " +
				"its blacklist."}
		if len(result.Dmesg) > 0 && strings.HasPrefix(result.Dmesg[len(result.Dmesg)-1], "Module hash ") {
			c = Cause{ID: ModuleBlacklisted, Mend: j.replace(),
				Reason: "The kernel is told to reject this very module: its hash is on the blacklist, as that " +
					"of a module with a hole is."}
		}
		j.fatal(result, c)
	case verify.Foreign:
		j.fatal(result, Cause{ID: ForeignProof, Mend: j.replace(),
			Reason: "The module carries a Merkle proof of another build of the kernel. Kernel and modules have " +
				"to come from one build."})
	default:
		j.fatal(result, Cause{ID: SignatureFormat, Mend: j.resign(""),
			Reason: "The kernel cannot read the signature, and refuses the module even if it does not enforce " +
				"signatures."})
	}
	return size, err
}

// fatal adds a cause for which the kernel refuses a module whether or not it enforces
// signatures.
func (j *judge) fatal(r verify.Result, c Cause) {
	if r.Tolerated {
		j.judged(r, c)
		return
	}
	c.Effect, c.Errno, c.Inner, c.Log = Refuses, r.Errno, r.Cause, r.Dmesg
	c.Evidence = append(c.Evidence, r.Err.Error())
	j.found(c)
}

// judged adds a cause that the kernel tolerates if it does not enforce signatures.
func (j *judge) judged(r verify.Result, c Cause) {
	j.tolerated(&c, r.Cause, r.Dmesg)
	j.found(c)
}

// tolerated fills in what the kernel does about an error that it tolerates if it does not
// enforce signatures (module_sig_check). The last of the lines is the one that an enforcing
// kernel logs.
func (j *judge) tolerated(c *Cause, inner syscall.Errno, log []string) {
	c.Effect, c.Errno, c.Inner = Refuses, syscall.EKEYREJECTED, inner
	c.Log = slices.Clone(log)
	last := max(0, len(c.Log)-1)
	switch j.Policy.Enforcement {
	case verify.Lockdown:
		c.Errno = syscall.EPERM
		c.Log = append(c.Log[:last],
			"Lockdown: modprobe: unsigned module loading is restricted; see man kernel_lockdown.7")
		c.Evidence = append(c.Evidence, j.Policy.Evidence...)
	case verify.SigEnforce:
		c.Evidence = append(c.Evidence, j.Policy.Evidence...)
	case verify.Tolerant:
		c.Effect, c.Errno, c.Inner = TaintsIt, 0, 0
		c.Log = append(c.Log[:last], j.nameOr()+
			": module verification failed: signature and/or required key missing - tainting kernel")
		if unless := j.unless(); unless != "" {
			j.r.Notes = append(j.r.Notes, unless)
		}
		for _, what := range j.Policy.Unchecked {
			j.unchecked("%s", what)
		}
	case verify.Undecided:
		j.unchecked("whether the kernel enforces signatures: %s", strings.Join(j.Policy.Evidence, ", "))
	}
}

// nameOr is the name of the module before its facts are read.
func (j *judge) nameOr() string {
	if name := j.tag("name"); name != "" {
		return name
	}
	return "MODULE"
}

// tag reads a tag of .modinfo before the facts are read. It is empty without one.
func (j *judge) tag(name string) string {
	tags, err := module.Modinfo(j.kernelELF(j.content.size), j.content.size)
	if err != nil {
		return ""
	}
	for _, tag := range tags {
		if value, ok := strings.CutPrefix(tag, name+"="); ok {
			return value
		}
	}
	return ""
}

// notSigned finds out whether a module has lost a signature.
func (j *judge) notSigned(r verify.Result) error {
	c := Cause{ID: NotSigned, Reason: "The module carries no signature.", Mend: j.resign("")}
	if len(r.Dmesg) > 0 && strings.Contains(r.Dmesg[0], "hash list") {
		c.ID, c.Mend = NotInHashList, j.replace()
		c.Reason = "The kernel loads modules by their hashes, and does not have this one's. The module carries " +
			"no signature either."
		j.judged(r, c)
		return nil
	}
	behind, err := j.behindSignature()
	if err != nil {
		return err
	}
	if behind > 0 {
		c.ID = DataAfterSignature
		c.Reason = "The module has a signature, and something was appended after it. The kernel looks for the " +
			"signature at the very end."
		c.Evidence = append(c.Evidence, fmt.Sprintf("%d bytes follow the signature", behind))
		good := verify.Module(j.content, j.content.size-behind, j.Keys)
		if good.Verdict == verify.Trusted {
			c.Evidence = append(c.Evidence, "without them the signature is good")
		}
		if j.r.Compression == "none" && good.Verdict == verify.Trusted {
			c.Mend = Mend{Command: shell.Quote("truncate", "-s", fmt.Sprint(j.content.size-behind), "--", j.path)}
		}
		j.judged(r, c)
		return nil
	}
	lost, listed, err := j.lost()
	if err != nil {
		return err
	}
	cut, rest := j.cutOff()
	switch {
	case cut != "":
		c.Reason = "The module carries no signature: the file is cut off, and a signature would be at its end."
		c.Evidence, c.Mend = append(c.Evidence, cut), j.replace()
	case rest != "":
		c.ID = SignatureLost
		c.Reason = "The module carries no whole signature, and something follows the ELF file: most likely the file is " +
			"cut off within its signature."
		c.Evidence, c.Mend = append(append(c.Evidence, rest), lost...), j.replace()
	case len(lost) > 0:
		c.ID = SignatureLost
		c.Reason = "The module carries no signature, and others of its build do: it was never signed, as one fresh from a " +
			"build tree, or a strip or another program that rewrites ELF files has dropped its signature."
		if listed {
			c.Reason = "The module carries no signature, and it is known as a signed one: most likely a strip or another " +
				"program that rewrites ELF files has dropped it."
		}
		c.Evidence = append(c.Evidence, lost...)
		if dir, _ := j.inTree(j.path); dir == "kernel" {
			c.Mend = j.replace()
		}
	}
	j.judged(r, c)
	return nil
}

// behindSignature returns how many bytes follow the last marker of a signature near the end.
func (j *judge) behindSignature() (int64, error) {
	const near = 1 << 20
	n := min(near, j.content.size)
	b := make([]byte, n)
	if _, err := j.content.ReadAt(b, j.content.size-n); err != nil && err != io.EOF {
		return 0, err
	}
	i := bytes.LastIndex(b, []byte(module.Marker))
	if i < 0 {
		return 0, nil
	}
	end := j.content.size - n + int64(i+len(module.Marker))
	if _, err := module.Split(j.content, end); err != nil {
		return 0, nil // the marker is a text in the module
	}
	return j.content.size - end, nil
}

// cutOff tells what says that the end of an unsigned module is missing: that of the ELF file, or
// that of the signature behind it.
func (j *judge) cutOff() (cut, rest string) {
	file := j.kernelELF(j.content.size)
	end, err := module.End(file, j.content.size)
	switch {
	case err != nil && strings.Contains(err.Error(), "cut off"):
		return err.Error(), ""
	case err != nil: // elf says what it is
	case end < j.content.size:
		return "", fmt.Sprintf("the ELF file ends at offset %d, and %d bytes follow", end, j.content.size-end)
	}
	return "", ""
}

// lost returns what says that an unsigned module was signed, and whether a list does.
func (j *judge) lost() (evidence []string, listed bool, err error) {
	facts, err := module.ReadFacts(j.kernelELF(j.content.size), j.content.size)
	if err != nil {
		return nil, false, nil // elf says so
	}
	if name, ok := j.Known.find(fmt.Sprintf("%x", facts.BuildID)); ok {
		evidence = append(evidence,
			fmt.Sprintf("the build id %x is that of %s, which is on the list of signed modules",
				facts.BuildID, name))
	}
	if j.Known.Len() > 0 {
		sum, err := j.sum(j.content.size)
		if err != nil {
			return nil, false, err
		}
		if name, ok := j.Known.find(sum); ok {
			evidence = append(evidence,
				fmt.Sprintf("its SHA-256 is that of %s, which is on the list of signed modules", name))
		}
	}
	listed = len(evidence) > 0
	magic, _ := facts.Tag("vermagic")
	_, in := facts.Tag("intree")
	if own := in && j.Kernel.Vermagic != "" && magic == j.Kernel.Vermagic; own {
		switch {
		case j.signs:
			evidence = append(evidence,
				"it was built with the kernel, and other modules of that build are signed: "+j.reference)
		case j.is("MODULE_SIG_ALL"):
			evidence = append(evidence,
				"it was built with the kernel, which signs all its modules (CONFIG_MODULE_SIG_ALL=y)")
		}
	}
	if stripped := j.stripped(facts); len(evidence) > 0 && stripped != "" {
		evidence = append(evidence, stripped)
	}
	return evidence, listed, nil
}

// unsupported explains a signature of a kind or with algorithms that the kernel does not have.
func (j *judge) unsupported(r verify.Result) {
	c := Cause{ID: HashNotInKernel, Evidence: []string{r.Err.Error()}, Mend: j.resign("", "--hash", j.bestHash())}
	c.Reason = "The kernel cannot verify the signature: it does not know its hash or its algorithm."
	switch {
	case errors.Is(r.Err, module.ErrIDType) || strings.Contains(r.Err.Error(), "Merkle"):
		c.ID, c.Mend = SignatureType, j.resign("")
		c.Reason = "The kernel takes signatures of the kind PKCS#7 alone, and the module has another kind."
	case j.Keys.HashesOnly():
		c.ID, c.Mend = NotInHashList, j.replace()
		c.Reason = "The kernel loads modules by their hashes, and does not have this one's. It accepts no signatures."
	case len(r.Signers) > 0 && !j.hasHash(r.Signers[0].Hash):
		c.Reason = fmt.Sprintf("The signature uses %s, which this kernel does not know.", r.Signers[0].Hash)
	case len(r.Signers) > 0:
		c.ID, c.Mend = AlgorithmMissing, j.resign("")
		c.Reason = fmt.Sprintf("The signature uses %s with %s, which this kernel cannot verify.",
			r.Signers[0].Algorithm,
			r.Signers[0].Hash)
	}
	j.judged(r, c)
}

// symbolOf is the symbol of the configuration for a hash or an algorithm.
func symbolOf(name string) string {
	switch {
	case name == "sha1":
		return "CRYPTO_SHA1"
	case name == "sha224" || name == "sha256":
		return "CRYPTO_SHA256"
	case name == "sha384" || name == "sha512":
		return "CRYPTO_SHA512"
	case strings.HasPrefix(name, "sha3-"):
		return "CRYPTO_SHA3"
	case strings.HasPrefix(name, "ecdsa"):
		return "CRYPTO_ECDSA"
	case strings.HasPrefix(name, "ml-dsa") || strings.HasPrefix(name, "mldsa"):
		return "CRYPTO_MLDSA"
	case name == "rsa":
		return "CRYPTO_RSA"
	}
	return ""
}

// hasHash reports whether the kernel knows a hash, as far as its version and configuration
// tell.
func (j *judge) hasHash(name string) bool {
	symbol := symbolOf(name)
	if symbol == "" || symbol == "CRYPTO_SHA3" && j.minor != (version{}) && !j.minor.since(6, 7) {
		return false
	}
	return j.Config == nil || j.Config["CONFIG_"+symbol] != ""
}

// bestHash is a hash that the kernel has built in: that with which it signs its own modules.
func (j *judge) bestHash() string {
	if hash := j.Config["CONFIG_MODULE_SIG_HASH"]; hash != "" {
		return hash
	}
	for _, hash := range []string{"sha512", "sha256"} {
		if j.is(symbolOf(hash)) {
			return hash
		}
	}
	return "sha256"
}

// algorithms checks that the kernel is configured for the hash and the algorithm of a good
// signature. One signer that it can verify suffices.
func (j *judge) algorithms(r verify.Result) {
	if j.Config == nil {
		return
	}
	var causes []Cause
	for _, s := range r.Signers {
		if s.Verdict != verify.Trusted {
			continue
		}
		c, ok := j.lacks(s.Signer, r)
		if !ok {
			return
		}
		causes = append(causes, c)
	}
	if len(causes) > 0 {
		j.found(causes[0])
	}
}

// lacks returns the cause if the kernel is not configured for a signer.
func (j *judge) lacks(s verify.Signer, r verify.Result) (Cause, bool) {
	file := j.ConfigFile
	if file == "" {
		file = "the configuration"
	}
	symbol := "CONFIG_" + symbolOf(s.Algorithm)
	if value := j.Config[symbol]; symbol != "CONFIG_" && value != "y" {
		c := Cause{
			ID: AlgorithmMissing, Mend: j.resign(""),
			Reason: fmt.Sprintf("The kernel cannot verify %s: %s is not set. It dropped the certificate when it "+
				"booted.",
				s.Algorithm, symbol),
			Evidence: []string{fmt.Sprintf("%s has no %s=y", file, symbol)},
		}
		if value == "m" {
			c.Reason = fmt.Sprintf("%s is a module of this kernel (%s=m). The kernel reads its certificates "+
				"before it can load modules, and dropped this one.",
				s.Algorithm, symbol)
			c.Evidence = []string{fmt.Sprintf("%s has %s=m", file, symbol)}
		}
		j.tolerated(&c, syscall.ENOKEY, []string{"Loading of module with unavailable key is rejected"})
		return c, true
	}
	if strings.HasPrefix(symbol, "CONFIG_CRYPTO_MLDSA") {
		return Cause{}, false // it hashes by itself
	}
	symbol = "CONFIG_" + symbolOf(s.Hash)
	switch value := j.Config[symbol]; {
	case symbol == "CONFIG_" || value == "y":
		return Cause{}, false
	case value == "m":
		return Cause{
			ID: HashIsModule, Effect: May, Errno: syscall.EKEYREJECTED, Inner: syscall.ENOPKG,
			Log: []string{"Loading of module with unsupported crypto is rejected"},
			Reason: fmt.Sprintf("The hash of the signature, %s, is a module of this kernel (%s=m). The kernel "+
				"loads it when it needs it, "+
				"and refuses the module where it cannot, as in an initramfs without it.", s.Hash, symbol),
			Evidence: []string{fmt.Sprintf("%s has %s=m", file, symbol)},
			Mend:     j.resign("", "--hash", j.bestHash()),
		}, true
	}
	c := Cause{
		ID: HashNotInKernel,
		Reason: fmt.Sprintf("The signature uses %s, and this kernel is built without it: %s is not set.", s.Hash,
			symbol),
		Evidence: []string{fmt.Sprintf("%s has no %s", file, symbol)},
		Mend:     j.resign("", "--hash", j.bestHash()),
	}
	j.tolerated(&c, syscall.ENOPKG, []string{"Loading of module with unsupported crypto is rejected"})
	return c, true
}

// stripped tells what says that a module was stripped. Distributions strip all modules, and then
// it says nothing that this one is.
func (j *judge) stripped(facts *module.Facts) string {
	switch {
	case facts.Debug || j.plain:
		return ""
	case j.reference != "":
		return "it has no debug information, and other modules have: " + j.reference
	case j.is("DEBUG_INFO"):
		return "it has no debug information, and the kernel is built with it (CONFIG_DEBUG_INFO=y)"
	}
	return ""
}

// badSignature finds out what a signature was made for that does not match the module.
func (j *judge) badSignature(r verify.Result, outer module.Layer) error {
	c := Cause{
		ID: Changed, Mend: j.resign(""),
		Reason: "A key that the kernel has signed something else than this module: the module was changed after " +
			"it was signed.",
	}
	facts, err := module.ReadFacts(j.content, outer.Offset)
	if err != nil {
		facts = &module.Facts{Debug: true} // elf says what it is
	}
	if stripped := j.stripped(facts); stripped != "" {
		c.ID = Stripped
		c.Reason = "The module was changed after it was signed: it seems to have been stripped by a program " +
			"that kept the signature."
		c.Evidence = append(c.Evidence, stripped)
	}
	what, err := j.signedInstead(outer)
	if err != nil {
		return err
	}
	if what.ID != "" {
		c.ID, c.Reason, c.Evidence = what.ID, what.Reason, what.Evidence
	}
	if m := j.own(); m.Command != "" {
		c.Mend = m
	}
	j.fatal(r, c)
	return nil
}

// signedInstead tries what the signature may be of, and compares.
func (j *judge) signedInstead(outer module.Layer) (Cause, error) {
	trailer := make([]byte, j.content.size-outer.Offset)
	if _, err := j.content.ReadAt(trailer, outer.Offset); err != nil && err != io.EOF {
		return Cause{}, err
	}
	// matches reports whether the signature is good behind something else.
	matches := func(payload io.ReaderAt, size int64) bool {
		whole := module.Join(payload, size, trailer)
		r := verify.Appended(module.At(j.ctx, whole), size+int64(len(trailer)), j.Keys)
		return r.Verdict == verify.Trusted || r.Cause == syscall.ENOEXEC
	}
	layers, _ := module.Layers(j.content, outer.Offset)
	for i, l := range layers {
		if !matches(j.content, l.Offset) {
			continue
		}
		return Cause{
			ID: SignedFirst,
			Reason: fmt.Sprintf("The module was signed before, and %d older signatures stand between it and "+
				"this one. To the kernel they are a "+
				"part of the module, and this signature was made without them.", i+1),
			Evidence: []string{fmt.Sprintf("the signature is good for the first %d bytes", l.Offset)},
		}, nil
	}
	if end, err := module.End(j.content, outer.Offset); err == nil && end < outer.Offset && matches(j.content, end) {
		return Cause{
			ID:     Padded,
			Reason: fmt.Sprintf("%d bytes were added between the module and its signature.", outer.Offset-end),
			Evidence: []string{fmt.Sprintf("the signature is good for the first %d bytes, where the ELF file ends",
				end)},
		}, nil
	}
	const limit = 16 << 20 // compressing more takes too long
	if outer.Offset > limit {
		j.unchecked("whether the signature is of the module in compressed form: it is large")
		return Cause{}, nil
	}
	encoder, err := compress.NewEncoder(compress.Options{})
	if err != nil {
		return Cause{}, err
	}
	for _, format := range []compress.Format{compress.Gzip, compress.XZ, compress.Zstd} {
		var packed bytes.Buffer
		if err := encoder.Compress(j.ctx, format, &packed, j.content.first(outer.Offset), outer.Offset); err != nil {
			if j.ctx.Err() != nil {
				return Cause{}, err
			}
			continue // without the program xz, say
		}
		if matches(bytes.NewReader(packed.Bytes()), int64(packed.Len())) {
			return Cause{
				ID: SignedCompress,
				Reason: fmt.Sprintf("The signature was made over the module as a %s file, and appended to the "+
					"module itself. The kernel verifies "+
					"it after decompressing.", format),
				Evidence: []string{fmt.Sprintf("the signature is good for the %d bytes of the module compressed "+
					"with %s", packed.Len(), format)},
			}, nil
		}
	}
	return Cause{}, nil
}
