//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/verify"
	"github.com/modsign/modsign/verify/explain"
	"github.com/modsign/modsign/verify/machine"
)

// A reason is a case with the cause that explain must find first. The kernel must load a
// module without a cause.
type reason struct {
	Case
	id explain.ID
}

// openImage opens a kernel image until the test ends.
func openImage(t testing.TB, path string) *verify.Image {
	t.Helper()
	image, err := verify.OpenImage(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Close() })
	return image
}

// openExplained opens a kernel for explain, with some of its modules as they are installed. local
// are keys on the machine.
func openExplained(t testing.TB, tree *Tree, keys *verify.Keyring, cmdline string, local ...explain.KeyPair,
) *explain.Kernel {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "lib/modules/installed")
	for _, name := range []string{"md4", "wp512"} {
		path := filepath.Join(dir, "kernel/crypto", name+".ko")
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, read(t, filepath.Join(tree.Objtree, "crypto", name+".ko")), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	image := openImage(t, tree.Image())
	s := explain.Source{Image: image, Modules: dir, Keys: keys, Cmdline: cmdline, KeyPairs: local}
	config, err := kbuild.OpenConfig(tree.config())
	if err != nil {
		t.Fatal(err)
	}
	if config.Bool("MODVERSIONS") { // else explain says that it does not read it
		s.Symvers = filepath.Join(tree.Objtree, "Module.symvers")
	}
	s.Config = config
	if config.Bool("IKCONFIG") {
		text, _, err := image.Config()
		if err == nil {
			s.Config, err = kbuild.ReadConfig(bytes.NewReader(text))
		}
		if err != nil || !maps.Equal(s.Config, map[string]string(config)) {
			t.Errorf("the configuration in the image is not that of the build: %v", err)
		}
	}
	k, err := explain.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if k.Vermagic == "" || len(k.Notes) > 0 {
		t.Fatalf("explain finds the vermagic %q, and notes %q", k.Vermagic, k.Notes)
	}
	return k
}

// explainCases makes modules for each cause that this kernel can show.
func explainCases(t testing.TB, pairs keys, tree *Tree, format compress.Format, payload []byte) []reason {
	t.Helper()
	var reasons []reason
	add := func(id explain.ID, name string, data []byte) {
		reasons = append(reasons, reason{Case{Name: "explain, " + name, Data: data}, id})
	}
	p256 := keygen.ECDSAP256.String()
	sign := func(b []byte) []byte { return pairs.signed(t, p256, b) }
	message := func(b []byte) []byte { return pairs.cms(t, p256, crypto.SHA256, false, b) }
	good := sign(payload)
	config, err := kbuild.OpenConfig(tree.config())
	if err != nil {
		t.Fatal(err)
	}
	facts, err := module.ReadFacts(bytes.NewReader(payload), int64(len(payload)))
	if err != nil {
		t.Fatal(err)
	}

	// The signature.
	add("", "good", good)
	foreign := read(t, "../../testdata/modules/amd64-6.12/plain/hello.ko")
	add(explain.NotSigned, "never signed", foreign)
	add(explain.SignatureLost, "signature lost", payload)
	add(explain.DataAfterSignature, "data after the signature", append(slices.Clone(good), '\n'))
	add(explain.UnknownKey, "unknown key", pairs.signed(t, "unknown", payload))
	add(explain.KeyNotEnrolled, "key on the machine", pairs.signed(t, "stranger", payload))
	template := keygen.DefaultTemplate()
	name, err := keygen.NewAttribute("CN", "modsign kernel test: "+p256)
	if err != nil {
		t.Fatal(err)
	}
	template.Subject = []keygen.Attribute{name}
	again, err := keygen.Generate(keygen.ECDSAP256, template)
	if err != nil {
		t.Fatal(err)
	}
	add(explain.KeyRegenerated, "key made anew", keys{"again": again}.signed(t, "again", payload))
	if tree.Path != "" || strings.Contains(tree.Srctree, "6.12") { // 6.1 takes it
		add(explain.KeyRevoked, "revoked", pairs.signed(t, "revoked", payload))
	}
	add(explain.SignatureType, "Merkle proof", module.AppendSignature(slices.Clone(payload), module.TypeMerkle,
		make([]byte, 68)))
	add(explain.SignatureFormat, "trailer wrong", changed(good, -40))
	add(explain.SignatureFormat, "message wrong", withCMS(payload, message(payload)[:40]))

	add(explain.KeyDropped, "certificate on the blacklist of the image", pairs.signed(t, "blacklisted", payload))
	listed := explain.OtherStruct
	if strings.Contains(tree.Srctree, "/6.12.") { // Debian's patch, which its 7.2 has no more
		listed = explain.ModuleBlacklisted
	}
	if !strings.Contains(tree.Srctree, "/6.1.") {
		add(listed, "module on the blacklist of the image", pairs.listed(t))
	}

	// The signature is of something else.
	unstripped := read(t, filepath.Join(tree.Objtree, "crypto/md4.ko"))
	stripped := explain.Changed
	if config.Bool("DEBUG_INFO") {
		stripped = explain.Stripped
	}
	add(stripped, "stripped after signing", withCMS(payload, message(unstripped)))
	add(stripped, "changed", changed(good, len(payload)/2))
	add(explain.Padded, "padded", withCMS(append(slices.Clone(payload), 0, 0, 0, 0), message(payload)))
	add(explain.SignedFirst, "signed twice, the second time without the first", withCMS(good, message(payload)))
	add(explain.SignedCompress, "signature of the compressed module", withCMS(payload, message(modsignCompress(t,
		compress.Gzip, payload))))

	// Compression.
	compressed := func(id explain.ID, name string, data []byte) {
		add(id, name, data)
		reasons[len(reasons)-1].Compressed = true
	}
	compressed("", "compressed", modsignCompress(t, format, good))
	compressed(explain.SignedCompressedFile, "compressed, and then signed", sign(modsignCompress(t, format, payload)))
	compressed("", "signed, compressed, and signed", sign(modsignCompress(t, format, good)))
	compressed("", "compressed, with something behind it", append(modsignCompress(t, format, good), "rubbish"...))
	compressed(explain.CompressionRefused, "xz with CRC64", filter(t, good, "xz", "-c"))
	compressed(explain.CompressionRefused, "xz with SHA-256", filter(t, good, "xz", "--check=sha256", "-c"))
	compressed(explain.CompressionRefused, "xz with a delta filter",
		filter(t, good, "xz", "--check=crc32", "--delta", "--lzma2", "-c"))

	// The module.
	other := func(dir string) []byte { return read(t, "../../testdata/modules/"+dir+"/plain/hello.ko") }
	add(explain.WrongArchitecture, "arm64", sign(other("arm64")))
	add(explain.WrongArchitecture, "s390x", sign(other("s390x")))
	add(explain.WrongArchitecture, "armhf", sign(other("armhf")))
	add(explain.NotModule, "text", sign([]byte(strings.Repeat("no module\n", 10))))
	add(explain.NotModule, "short text", sign([]byte("no module\n")))
	executable := slices.Clone(payload)
	executable[16] = 2
	add(explain.NotModule, "a program", sign(executable))
	poked := func(at int, with ...byte) []byte {
		b := slices.Clone(payload)
		copy(b[at:], with)
		return sign(b)
	}
	add(explain.NotModule, "cut off", sign(payload[:len(payload)/2]))
	add(explain.NotModule, "section headers of another size", poked(58, 40))
	add(explain.NotModule, "too many sections", poked(60, 0xff, 0xff))
	add(explain.NotModule, "no names of sections", poked(62, 0xf0, 0xff))
	add(explain.NotModule, "section 0 is one", poked(int(binary.LittleEndian.Uint64(payload[40:]))+4, 1))
	add(explain.NotModule, "a section beyond the end", poked(int(binary.LittleEndian.Uint64(payload[40:]))+64+24+6, 1))
	add("", "claims 32 bits", poked(4, 1))
	add("", "claims another byte order", poked(5, 2))
	path := filepath.Join(t.TempDir(), "stripped.ko")
	testmod.Run(t, "strip", "--strip-all", "-o", path, filepath.Join(tree.Objtree, "crypto/md4.ko"))
	add(explain.NoSymbols, "all symbols stripped", sign(read(t, path)))
	if !strings.Contains(tree.Srctree, "/6.1.") {
		add(explain.OtherStruct, "of another kernel", sign(foreign))
	}
	replaced := func(old, new string) []byte {
		b := bytes.Replace(payload, []byte(old), []byte(new), 1)
		if bytes.Equal(b, payload) || len(b) != len(payload) {
			t.Fatalf("%q does not become %q", old, new)
		}
		return sign(b)
	}
	add(explain.Vermagic, "flags of another kernel", replaced(" mod_unload ", " mod_UNLOAD "))
	add(explain.Livepatch, "livepatch", replaced("\x00description=", "\x00livepatch=Y\x00"))
	add(explain.NoVermagic, "no vermagic", replaced("vermagic=", "xermagic="))
	release := explain.Vermagic
	if config.Bool("MODVERSIONS") {
		release = "" // versions of symbols make up for it
	}
	add(release, "another release", replaced("-kerneltest ", "-kernelTEST "))
	if config.Bool("MODVERSIONS") {
		for _, v := range facts.Versions {
			if v.Name == "module_layout" || v.Name == "crypto_register_shash" {
				old := append(binary.LittleEndian.AppendUint64(nil, uint64(v.CRC)), v.Name...)
				new := append(binary.LittleEndian.AppendUint64(nil, uint64(v.CRC^1)), v.Name...)
				add(explain.SymbolVersion, "another version of "+v.Name, replaced(string(old), string(new)))
			}
		}
		add(explain.NoSymbolVersions, "no version of module_layout", replaced("\x00module_layout\x00",
			"\x00module_LAYOUT\x00"))
	}
	return reasons
}

// damagedCases are compressed modules that do not decompress.
func damagedCases(t testing.TB, pairs keys, tree *Tree, format compress.Format, payload []byte) []reason {
	t.Helper()
	config, err := kbuild.OpenConfig(tree.config())
	if err != nil {
		t.Fatal(err)
	}
	bent := explain.Changed
	if config.Bool("DEBUG_INFO") { // and the payload has none
		bent = explain.Stripped
	}
	good := pairs.signed(t, keygen.ECDSAP256.String(), payload)
	packed := modsignCompress(t, format, good)
	cases := []reason{
		{Case{Name: "cut off", Data: packed[:len(packed)/2]}, explain.Damaged},
		{Case{Name: "cut off before the end", Data: packed[:len(packed)-30]}, explain.Damaged},
	}
	switch format {
	case compress.XZ:
		cases = append(cases, reason{Case{Name: "changed", Data: changed(packed, len(packed)/2)}, explain.Damaged})
	case compress.Gzip: // the kernel does not look at the checksum
		cases = append(cases, reason{Case{Name: "checksum changed", Data: changed(packed, -5)}, ""})
		other := modsignCompress(t, format, changed(good, len(payload)/2))
		cases = append(cases, reason{Case{Name: "checksum of another",
			Data: slices.Concat(other[:len(other)-8], packed[len(packed)-8:])}, bent})
	}
	for i := range cases {
		cases[i].Name, cases[i].Compressed = "explain, compressed, "+cases[i].Name, true
	}
	return cases
}

// noise matches lines about a module that say nothing about why it is refused.
var noise = regexp.MustCompile(`taints kernel|^PKCS7: (Unknown OID|Data already supplied)|Unknown symbol`)

// compareReasons compares what explain says with the kernel, and with the expected causes.
func compareReasons(t *testing.T, k *explain.Kernel, reasons []reason, judged []Verdict) {
	t.Helper()
	dir := t.TempDir()
	// This line has no end, and comes with the next one.
	const unfinished = "livepatch support is disabled"
	at := slices.IndexFunc(reasons, func(r reason) bool { return r.id == explain.Livepatch })
	for i := at + 1; at >= 0 && i < len(judged); i++ {
		if log := judged[i].Log; len(log) > 0 && strings.HasSuffix(log[0], unfinished) {
			judged[at].Log, judged[i].Log = log[:1], log[1:]
		}
	}
	for i, r := range reasons {
		report, id := compareReason(t, k, dir, r.Case, judged[i])
		if id != r.id {
			t.Errorf("%s: the cause is %q, expected %q: %+v", r.Name, id, r.id, report.Causes)
		}
	}
}

// compareReason compares the errno and all lines of a case, and returns the cause that decides.
func compareReason(t *testing.T, k *explain.Kernel, dir string, c Case, kernel Verdict) (*explain.Report, explain.ID) {
	t.Helper()
	path := filepath.Join(dir, made{Case: c}.file())
	if err := os.WriteFile(path, c.Data, 0o644); err != nil {
		t.Fatal(err)
	}
	report := k.Module(t.Context(), path)
	if report.Err != nil {
		t.Errorf("%s: %v", c.Name, report.Err)
	}
	var first explain.Cause
	for _, cause := range report.Causes {
		if cause.Effect == explain.May {
			continue
		}
		if first = cause; cause.Effect == explain.Refuses {
			break
		}
	}
	log := slices.DeleteFunc(slices.Clone(kernel.Log), noise.MatchString)
	for i := range log {
		log[i] = strings.Replace(log[i], "Lockdown: init:", "Lockdown: modprobe:", 1)
	}
	if kernel.Errno != first.Errno || !slices.Equal(log, first.Log) {
		t.Errorf("%s: the kernel says %d and logs %q; explain says %d and %q", c.Name, int(kernel.Errno), kernel.Log,
			int(first.Errno), first.Log)
	}
	return report, first.ID
}

// explains compares what explain says of cases with a machine whose variables are files below a
// root directory, and returns the causes by the names of the cases.
func explains(
	t *testing.T, console []byte, cases []Case, kernel testmod.Kernel, keys *verify.Keyring, root string,
) map[string]explain.ID {
	t.Helper()
	verdicts, err := parseConsole(console, cases)
	if err != nil {
		t.Fatal(err)
	}
	state, err := machine.Read(root, false)
	if err != nil {
		t.Fatal(err)
	}
	config, err := kbuild.OpenConfig(kernel.Config)
	if err != nil {
		t.Fatal(err)
	}
	k, err := explain.Open(t.Context(), explain.Source{
		Image: openImage(t, kernel.Image), Release: kernel.Version, Keys: keys, Firmware: &state.Firmware, Config: config,
	})
	if err != nil {
		t.Fatal(err)
	}
	dir, causes := t.TempDir(), make(map[string]explain.ID)
	for i, v := range verdicts {
		_, causes[v.Name] = compareReason(t, k, dir, cases[i], v)
	}
	return causes
}

// tolerates compares explain with the kernel without CONFIG_MODULE_SIG_FORCE: as it is, locked
// down, and with parameters. It lacks ECDSA and SHA-3 too, has SHA-1 as a module, and root may add
// keys.
func (j judge) tolerates(t *testing.T, tree *Tree, pairs keys) {
	tree.Reconfigure(t, "# CONFIG_MODULE_SIG_FORCE is not set\n# CONFIG_CRYPTO_ECDSA is not set\n"+
		"# CONFIG_CRYPTO_SHA3 is not set\nCONFIG_CRYPTO_SHA1=m\nCONFIG_SECONDARY_TRUSTED_KEYRING=y\n")
	tree.Make(t, "bzImage", "modules")
	payload := modulePayload(t, tree)
	rsa := keygen.RSA2048.String()
	good := pairs.signed(t, rsa, payload)
	magic := bytes.Replace(payload, []byte(" mod_unload "), []byte(" mod_UNLOAD "), 1)
	trusted := imageKeyring(t, tree)
	boot := func(cmdline string, ids ...explain.ID) {
		var reasons []reason
		var toBoot []Case
		for i, c := range []Case{
			{Name: "good", Data: good},
			{Name: "not signed", Data: payload},
			{Name: "changed", Data: changed(good, len(payload)/2)},
			{Name: "not signed, vermagic of another", Data: magic},
			{Name: "ECDSA", Data: pairs.signed(t, keygen.ECDSAP256.String(), payload)},
			{Name: "SHA-3", Data: withCMS(payload, pairs.cms(t, rsa, crypto.SHA3_256, false, payload))},
		} {
			c.Name = "explain, " + cmdline + ": " + c.Name
			reasons, toBoot = append(reasons, reason{c, ids[i]}), append(toBoot, c)
		}
		judged, _ := bootCases(t, tree.Image(), toBoot, cmdline)
		for i, v := range judged { // a tainted kernel says so once
			if i > 1 && v.Errno == 0 && len(v.Log) == 0 {
				v.Log = []string{"md4: module verification failed: signature and/or required key missing - tainting kernel"}
			}
			judged[i] = v
		}
		compareReasons(t, openExplained(t, tree, trusted, cmdline), reasons, judged)
	}
	boot("", "", explain.SignatureLost, explain.Changed, explain.Vermagic, explain.AlgorithmMissing,
		explain.HashNotInKernel)
	boot("lockdown=integrity", "", explain.SignatureLost, explain.Changed, explain.NotSigned, explain.AlgorithmMissing,
		explain.HashNotInKernel)
	boot("module.sig_enforce=1 module_blacklist=md4", explain.NameBlacklisted, explain.SignatureLost, explain.Changed,
		explain.NotSigned, explain.AlgorithmMissing, explain.HashNotInKernel)
	boot("nomodule", slices.Repeat([]explain.ID{explain.ModulesDisabled}, 6)...)
	hashOfModule(t, tree, openExplained(t, tree, trusted, "module.sig_enforce=1"), pairs)
	takesKeys(t, tree, pairs, false)
	if full() {
		tree.Reconfigure(t, "CONFIG_SECONDARY_TRUSTED_KEYRING_SIGNED_BY_BUILTIN=y\n")
		tree.Make(t, "bzImage")
		takesKeys(t, tree, pairs, true)
	}
}

// hashOfModule compares explain with a kernel that has a hash as a module: the kernel cannot load
// it by itself, as there is no modprobe, and then root loads it.
func hashOfModule(t *testing.T, tree *Tree, k *explain.Kernel, pairs keys) {
	rsa := keygen.RSA2048.String()
	payload := modulePayload(t, tree)
	built := func(name string) []byte {
		path := filepath.Join(t.TempDir(), "stripped.ko")
		testmod.Run(t, "strip", "--strip-debug", "-o", path, filepath.Join(tree.Objtree, name))
		return pairs.signed(t, rsa, read(t, path))
	}
	signed := withCMS(payload, pairs.cms(t, rsa, crypto.SHA1, false, payload))
	judged, _ := bootCases(t, tree.Image(), []Case{{Name: "before", Data: signed},
		{Name: "libsha1", Data: built("lib/crypto/libsha1.ko"), Keep: true},
		{Name: "sha1", Data: built("crypto/sha1.ko"), Keep: true}, {Name: "after", Data: signed},
	}, "module.sig_enforce=1")
	report := k.Module(t.Context(), testmod.WriteFile(t, "md4.ko", signed))
	if len(report.Causes) != 1 || report.Causes[0].ID != explain.HashIsModule || report.Causes[0].Effect != explain.May {
		t.Fatalf("explain says %+v", report.Causes)
	}
	if c := report.Causes[0]; judged[0].Errno != c.Errno || !slices.Equal(judged[0].Log, c.Log) {
		t.Errorf("the kernel says %v and logs %q; explain says %v and %q", judged[0].Errno, judged[0].Log, c.Errno, c.Log)
	}
	for _, v := range judged[1:] {
		if v.Errno != 0 {
			t.Errorf("%s: %v %q", v.Name, v.Errno, v.Log)
		}
	}
}

// explainsHashes compares explain with a kernel that has the root of a tree of hashes, and takes no
// signatures.
func explainsHashes(t *testing.T, tree *Tree) {
	t.Helper()
	config, err := kbuild.OpenConfig(tree.config())
	if err != nil {
		t.Fatal(err)
	}
	k, err := explain.Open(t.Context(), explain.Source{Image: openImage(t, tree.Image()),
		Keys: newHashJudge(t, tree, nil).keys, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := keygen.Generate(keygen.ECDSAP384, keygen.DefaultTemplate())
	if err != nil {
		t.Fatal(err)
	}
	payload := read(t, filepath.Join(tree.Objtree, "crypto/md4.ko"))
	proven := func(proof hashlist.Proof) []byte {
		return module.AppendSignature(slices.Clone(payload), module.TypeMerkle, proof.Append(nil))
	}
	fewer := proven(hashlist.NewTree([]hashlist.Hash{{1}, {2}}).Prove(0))
	reasons := []reason{
		{Case{Name: "no proof", Data: payload}, explain.NotSigned},
		{Case{Name: "changed", Data: changed(payload, len(payload)/2)}, explain.NotSigned},
		{Case{Name: "proof of nothing", Data: proven(hashlist.Proof{})}, explain.ForeignProof},
		{Case{Name: "from a build with fewer modules", Data: fewer}, explain.ForeignProof},
		{Case{Name: "signed with a key", Data: keys{"a": pair}.signed(t, "a", payload)}, explain.NotInHashList},
		{Case{Name: "trailer wrong", Data: changed(fewer, -40)}, explain.SignatureFormat},
	}
	toBoot := make([]Case, len(reasons))
	for i, r := range reasons {
		toBoot[i] = r.Case
	}
	compareReasons(t, k, reasons, Boot(t, tree.Image(), toBoot))
}
