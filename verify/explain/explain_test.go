package explain

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testcms"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/verify"
)

const release = "6.12.117+deb12-amd64"

// real returns a module that Debian's kernel of that release loads.
func real(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/" + name + ".ko")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// replaced returns a module with another text of the same length.
func replaced(t testing.TB, b []byte, old, new string) []byte {
	t.Helper()
	changed := bytes.Replace(b, []byte(old), []byte(new), 1)
	if bytes.Equal(changed, b) || len(changed) != len(b) {
		t.Fatalf("%q does not become %q", old, new)
	}
	return changed
}

// inTree makes a module one that was built with its kernel.
func inTree(t testing.TB, b []byte) []byte {
	return replaced(t, b, "retpoline=Y\x00", "intree=Y\x00\x00\x00\x00")
}

func appended(payload, der []byte) []byte {
	return module.AppendSignature(slices.Clone(payload), module.TypePKCS7, der)
}

func sign(t testing.TB, key *testmod.Key, payload []byte) []byte {
	return testcms.Signed(t, key, payload)
}

func packed(t testing.TB, format compress.Format, b []byte) []byte {
	t.Helper()
	encoder, err := compress.NewEncoder(compress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var w bytes.Buffer
	if err := encoder.Compress(t.Context(), format, &w, bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	return w.Bytes()
}

// config is the configuration of a kernel that enforces signatures.
const config = `CONFIG_CRYPTO_ECDSA=y
CONFIG_CRYPTO_RSA=y
CONFIG_CRYPTO_SHA256=y
CONFIG_CRYPTO_SHA512=m
CONFIG_INTEGRITY_MACHINE_KEYRING=y
CONFIG_INTEGRITY_PLATFORM_KEYRING=y
CONFIG_LOAD_UEFI_KEYS=y
CONFIG_HAVE_ARCH_GET_SECUREBOOT=y
CONFIG_MODULE_COMPRESS_XZ=y
CONFIG_MODULE_DECOMPRESS=y
CONFIG_MODULE_SIG=y
CONFIG_MODULE_SIG_FORCE=y
CONFIG_MODULE_SIG_HASH="sha256"
CONFIG_MODVERSIONS=y
CONFIG_SECONDARY_TRUSTED_KEYRING=y
CONFIG_SECURITY_LOCKDOWN_LSM=y
CONFIG_SYSTEM_BLACKLIST_KEYRING=y
CONFIG_SYSTEM_REVOCATION_LIST=y
`

// with parses the configuration with other values of some symbols.
func with(t testing.TB, lines ...string) map[string]string {
	t.Helper()
	c, err := kbuild.ReadConfig(strings.NewReader(config + strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(c, func(_, value string) bool { return value == "n" })
	return c
}

// source is a kernel that trusts some keys, below a root directory with two of its modules.
func source(t testing.TB, trusted ...*testmod.Key) Source {
	t.Helper()
	keys := new(verify.Keyring)
	for _, key := range trusted {
		if err := keys.Add(key.Certificate, "test"); err != nil {
			t.Fatal(err)
		}
	}
	if err := keys.FollowRelease("6.12.117"); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "lib/modules", release)
	for _, name := range []string{"ring", "counter", "hello"} {
		path := filepath.Join(dir, "kernel", name+".ko")
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, inTree(t, real(t, name)), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Source{
		Name: "kernel " + release, Release: release, Modules: dir, Keys: keys, Config: with(t),
		ConfigFile: "config",
	}
}

// hashes are a kernel's that has a list, or a tree.
func hashes(t testing.TB, k *verify.Keyring, h *hashlist.Embedded) {
	t.Helper()
	if err := k.AddHashes(h); err != nil {
		t.Fatal(err)
	}
}

// again makes another key, whose certificate has the name of the first.
func again(t testing.TB, key *testmod.Key) *testmod.Key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: key.Certificate.Subject,
		NotBefore: time.Unix(1<<30, 0), NotAfter: time.Unix(1<<31, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testmod.Key{Private: private, Certificate: cert}
}

// blacklist puts hashes on the blacklist of a kernel.
func blacklist(t testing.TB, k *verify.Keyring, hashes ...string) {
	t.Helper()
	if err := k.AddFileTo(verify.Blacklist, testmod.WriteFile(t, "list", []byte(strings.Join(hashes,
		"\n")))); err != nil {
		t.Fatal(err)
	}
}

func sha256Of(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// shown are the causes that tests have shown.
var shown = make(map[ID]bool)

func testCauses(t *testing.T) {
	key, other := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "rsa:2048")
	hello := real(t, "hello")
	good := sign(t, key, hello)
	spoil := func(b []byte, at int) []byte {
		b = slices.Clone(b)
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 1
		return b
	}
	facts, err := module.ReadFacts(bytes.NewReader(hello), int64(len(hello)))
	if err != nil {
		t.Fatal(err)
	}
	crc := func(name string, change uint32) []byte {
		for _, v := range facts.Versions {
			if v.Name == name {
				old := append(binary.LittleEndian.AppendUint64(nil, uint64(v.CRC)), name...)
				new := append(binary.LittleEndian.AppendUint64(nil, uint64(v.CRC^change)), name...)
				return sign(t, key, replaced(t, hello, string(old), string(new)))
			}
		}
		t.Fatalf("no version of %s in %v", name, facts.Versions)
		return nil
	}
	stripped := filepath.Join(t.TempDir(), "stripped.ko")
	testmod.Run(t, testmod.Program(t, "strip", "binutils"), "--strip-all", "-o", stripped,
		"../../testdata/modules/amd64-6.12/plain/hello.ko")
	noSymbols, err := os.ReadFile(stripped)
	if err != nil {
		t.Fatal(err)
	}
	testmod.Run(t, "strip", "--strip-debug", "-o", stripped, "../../testdata/modules/amd64-6.12/plain/hello.ko")
	noDebug, err := os.ReadFile(stripped)
	if err != nil {
		t.Fatal(err)
	}
	const (
		unsigned = "Loading of unsigned module is rejected"
		unknown  = "Loading of module with unavailable key is rejected"
		crypto_  = "Loading of module with unsupported crypto is rejected"
	)
	known := func(line string) func(*Source) {
		return func(s *Source) {
			var err error
			if s.Known, err = ParseKnown(strings.NewReader(line)); err != nil {
				t.Fatal(err)
			}
		}
	}
	configured := func(lines ...string) func(*Source) {
		return func(s *Source) { s.Config = with(t, lines...) }
	}
	decompresses := func(format string) func(*Source) {
		return configured("CONFIG_MODULE_COMPRESS_XZ=n", "CONFIG_MODULE_COMPRESS_"+format+"=y")
	}
	sum := hashlist.Hash{1}
	tree := hashlist.NewTree([]hashlist.Hash{sum, {2}})
	root := tree.Root()
	for _, test := range []struct {
		name   string
		data   []byte
		change func(*Source)
		want   []ID // of the causes in their order, without those that may be
		errno  syscall.Errno
		log    string // the last line of the first cause
		file   string // m.ko if it is empty
	}{
		{"good", good, nil, nil, 0, "", ""},
		{"never signed", hello, nil, []ID{NotSigned}, syscall.EKEYREJECTED, unsigned, ""},
		{"never signed, compressed", packed(t, compress.XZ, hello), nil, []ID{NotSigned}, syscall.EKEYREJECTED,
			unsigned, "m.ko.xz"},
		{"build id on a list", hello, known(fmt.Sprintf("# signed\n%x kernel/hello.ko\n", facts.BuildID)),
			[]ID{SignatureLost},
			syscall.EKEYREJECTED, unsigned, ""},
		{"hash on a list", hello, func(s *Source) {
			var b bytes.Buffer
			hash, size, err := hashlist.Sum(bytes.NewReader(hello))
			if err == nil {
				err = (&hashlist.List{Release: release, Modules: []hashlist.Module{{Path: "kernel/hello.ko",
					Hash: hash, Size: size}}}).Write(&b)
			}
			if err != nil {
				t.Fatal(err)
			}
			known(b.String())(s)
		}, []ID{SignatureLost}, syscall.EKEYREJECTED, unsigned, ""},
		{"of a build that signs", inTree(t, hello), configured("CONFIG_MODULE_SIG_ALL=y"), []ID{SignatureLost},
			syscall.EKEYREJECTED,
			unsigned, ""},
		{"data after the signature", append(slices.Clone(good), "\n"...), nil, []ID{DataAfterSignature},
			syscall.EKEYREJECTED, unsigned, ""},
		{"trailer wrong", spoil(good, -40), nil, []ID{SignatureFormat}, syscall.EBADMSG,
			"module: PKCS#7 signature info has unexpected non-zero params", ""},
		{"a proof for a kernel without hashes", module.AppendSignature(slices.Clone(hello), module.TypeMerkle,
			make([]byte, 36)), nil,
			[]ID{SignatureType}, syscall.EKEYREJECTED, crypto_, ""},
		{"a proof of another kernel", module.AppendSignature(slices.Clone(hello), module.TypeMerkle,
			tree.Prove(0).Append(nil)),
			func(s *Source) { hashes(t, s.Keys, &hashlist.Embedded{Root: &root}) }, []ID{ForeignProof},
			syscall.EKEYREJECTED,
			unknown, ""},
		{"not in the list", hello, func(s *Source) {
			hashes(t, s.Keys,
				&hashlist.Embedded{Hashes: []hashlist.Hash{sum}})
		},
			[]ID{NotInHashList}, syscall.EKEYREJECTED,
			"Loading of unsigned module that is not in the hash list is rejected", ""},
		{"unknown key", sign(t, other, hello), nil, []ID{UnknownKey}, syscall.EKEYREJECTED, unknown, ""},
		{"key made anew", sign(t, again(t, key), hello), nil, []ID{KeyRegenerated}, syscall.EKEYREJECTED, unknown,
			""},
		{"revoked", good, func(s *Source) {
			if err := s.Keys.AddTo(verify.Blacklist, key.Certificate, "list"); err != nil {
				t.Fatal(err)
			}
		}, []ID{KeyRevoked}, syscall.EKEYREJECTED, "", ""},
		{"hash of the module on the blacklist", good, func(s *Source) {
			blacklist(t, s.Keys, "bin:"+sha256Of(good))
			if err := s.Keys.Follow(verify.Facts{ModuleHashes: verify.Yes}); err != nil {
				t.Fatal(err)
			}
		}, []ID{ModuleBlacklisted}, syscall.EKEYREJECTED, "Module hash " + sha256Of(good) + " is blacklisted", ""},
		{"hash of the certificate on the blacklist", good, func(s *Source) {
			parsed, err := cms.RulesOf(6, 12, false).ParseCertificate(key.Certificate.Raw)
			if err != nil {
				t.Fatal(err)
			}
			blacklist(t, s.Keys, "tbs:"+hex.EncodeToString(parsed.TBSHash()))
		}, []ID{KeyDropped}, syscall.EKEYREJECTED, unknown, ""},
		{"hash that the configuration lacks", appended(hello, testcms.Message(t, key, crypto.SHA3_256, hello)), nil,
			[]ID{HashNotInKernel},
			syscall.EKEYREJECTED, crypto_, ""},
		{"hash that the version lacks", appended(hello, testcms.Message(t, key, crypto.SHA3_256, hello)), func(s *Source) {
			if err := s.Keys.FollowRelease("6.1.0"); err != nil {
				t.Fatal(err)
			}
			s.Release, s.Modules = "6.1.0", ""
			s.Config = with(t, "CONFIG_MODVERSIONS=n", "CONFIG_CRYPTO_SHA3=y")
		}, []ID{HashNotInKernel}, syscall.EKEYREJECTED, crypto_, ""},
		{"ECDSA that the configuration lacks", good, configured("CONFIG_CRYPTO_ECDSA=n"), []ID{AlgorithmMissing},
			syscall.EKEYREJECTED,
			unknown, ""},
		{"ECDSA in a module", good, configured("CONFIG_CRYPTO_ECDSA=m"), []ID{AlgorithmMissing},
			syscall.EKEYREJECTED, unknown, ""},

		{"changed", spoil(good, 100), nil, []ID{Changed}, syscall.EKEYREJECTED, "", ""},
		{"stripped after signing", appended(noDebug, testcms.Message(t, key, crypto.SHA256, hello)),
			configured("CONFIG_DEBUG_INFO=y"),
			[]ID{Stripped}, syscall.EKEYREJECTED, "", ""},
		{"padded", appended(append(slices.Clone(hello), 0, 0), testcms.Message(t, key, crypto.SHA256, hello)), nil,
			[]ID{Padded},
			syscall.EKEYREJECTED, "", ""},
		{"signed again without the first", appended(good, testcms.Message(t, key, crypto.SHA256, hello)), nil,
			[]ID{SignedFirst},
			syscall.EKEYREJECTED, "", ""},
		{"signature of the compressed file", appended(hello, testcms.Message(t, key, crypto.SHA256, packed(t, compress.Zstd,
			hello))), nil,
			[]ID{SignedCompress}, syscall.EKEYREJECTED, "", ""},

		{"signed after compressing", sign(t, key, packed(t, compress.XZ, hello)), nil, []ID{SignedCompressedFile,
			NotSigned},
			syscall.EKEYREJECTED, unsigned, "m.ko.xz"},
		{"signed after compressing, and kmod decompresses", sign(t, key, packed(t, compress.XZ, good)),
			configured("CONFIG_MODULE_DECOMPRESS=n"), []ID{SignedCompressedFile}, syscall.EINVAL, "", "m.ko.xz"},
		{"cut off", packed(t, compress.XZ, good)[:900], nil, []ID{Damaged}, syscall.EINVAL,
			"decompression failed with status 0", "m.ko.xz"},
		{"gzip cut off", packed(t, compress.Gzip, good)[:900], decompresses("GZIP"), []ID{Damaged}, syscall.EINVAL,
			"decompression failed with status -5", "m.ko.gz"},
		{"gzip with a wrong checksum", spoil(packed(t, compress.Gzip, good), len(packed(t, compress.Gzip, good))-5),
			decompresses("GZIP"), nil, 0, "", "m.ko.gz"},
		{"gzip with a wrong checksum, for kmod", spoil(packed(t, compress.Gzip, good), len(packed(t, compress.Gzip, good))-5),
			configured("CONFIG_MODULE_DECOMPRESS=n"), []ID{Damaged}, syscall.EINVAL, "", "m.ko.gz"},
		{"zstd cut off", packed(t, compress.Zstd, good)[:900], decompresses("ZSTD"), []ID{Damaged}, syscall.EKEYREJECTED,
			unsigned, "m.ko.zst"},

		{"text", sign(t, key, []byte(strings.Repeat("text", 20))), nil, []ID{NotModule}, syscall.ENOEXEC,
			`Invalid ELF header magic: != \x7fELF`, ""},
		{"short text", []byte("text"), configured("CONFIG_MODULE_SIG=n", "CONFIG_MODULE_SIG_FORCE=n"),
			[]ID{NotModule}, syscall.ENOEXEC,
			"Invalid ELF header len 4", ""},
		{"cut off", sign(t, key, hello[:3000]), nil, []ID{NotModule}, syscall.ENOEXEC,
			"Invalid ELF section header overflow", ""},
		{"sections beyond the end", sign(t, key, poke(hello, 40, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)), nil,
			[]ID{NotModule}, syscall.ENOEXEC, "Invalid ELF section header overflow", ""},
		{"too many sections", sign(t, key, poke(hello, 60, 0xff, 0xff)), nil, []ID{NotModule}, syscall.ENOEXEC,
			"Invalid ELF section header overflow", ""},
		{"no names of sections", sign(t, key, poke(hello, 62, 0xf0, 0xff)), nil, []ID{NotModule}, syscall.ENOEXEC,
			fmt.Sprintf("Invalid ELF section name index: 65520 || e_shstrndx (65520) >= e_shnum (%d)",
				binary.LittleEndian.Uint16(hello[60:])), ""},
		{"section headers of another size", sign(t, key, poke(hello, 58, 40)), nil, []ID{NotModule}, syscall.ENOEXEC,
			"Invalid ELF section header size", ""},
		{"claims 32 bits", sign(t, key, poke(hello, 4, 1)), nil, nil, 0, "", ""},
		{"claims another byte order", sign(t, key, poke(hello, 5, 2)), nil, nil, 0, "", ""},
		{"object of a compiler", sign(t, key, testmod.ELF()), nil, []ID{NotModule}, syscall.ENOEXEC,
			"module made: Exactly one .gnu.linkonce.this_module section must exist.", ""},
		{"arm64", sign(t, key, otherModule(t, "arm64")), nil, []ID{WrongArchitecture}, syscall.ENOEXEC,
			"Invalid architecture in ELF header: 183", ""},
		{"s390x", sign(t, key, otherModule(t, "s390x")), nil, []ID{WrongArchitecture}, syscall.ENOEXEC,
			"Invalid ELF header type: 256 != 1", ""},
		{"all symbols stripped", sign(t, key, noSymbols), nil, []ID{NoSymbols}, syscall.ENOEXEC,
			"hello: module has no symbols (stripped?)", ""},
		{"name forbidden", good, func(s *Source) { s.Cmdline = "quiet module_blacklist=pcspkr,hello" },
			[]ID{NameBlacklisted},
			syscall.EPERM, "Module hello is blacklisted", ""},
		{"flags of another kernel", sign(t, key, replaced(t, hello, " SMP preempt ", " SMP PREEMPT ")), nil,
			[]ID{Vermagic},
			syscall.ENOEXEC, "hello: version magic '" + release +
				" SMP PREEMPT mod_unload modversions ' should be '" + release +
				" SMP preempt mod_unload modversions '", ""},
		{"no vermagic", sign(t, key, replaced(t, hello, "vermagic=", "xermagic=")), nil, []ID{NoVermagic},
			syscall.ENOEXEC, "", ""},
		{"another release", sign(t, key, replaced(t, hello, "+deb12-amd64 SMP", "+deb13-amd64 SMP")), nil, nil, 0,
			"", ""},
		{"another release, without versions", sign(t, key, replaced(t, hello, "+deb12-amd64 SMP",
			"+deb13-amd64 SMP")),
			func(s *Source) { s.Modules, s.Config = "", with(t, "CONFIG_MODVERSIONS=n") }, nil, 0, "", ""},
		{"another version of module_layout", crc("module_layout", 1), nil, []ID{SymbolVersion}, syscall.ENOEXEC,
			"hello: disagrees about version of symbol module_layout", ""},
		{"another version of a symbol", crc("_printk", 1), nil, []ID{SymbolVersion}, syscall.EINVAL,
			"hello: disagrees about version of symbol _printk", ""},
		{"no version of module_layout", sign(t, key, replaced(t, hello, "\x00module_layout\x00",
			"\x00module_LAYOUT\x00")), nil,
			[]ID{NoSymbolVersions}, syscall.ENOEXEC, "hello: no symbol version for module_layout", ""},
		{"a livepatch", sign(t, key, replaced(t, hello, "retpoline=Y\x00", "livepatch=Y\x00")), nil,
			[]ID{Livepatch}, syscall.ENOEXEC,
			"hello: module is marked as livepatch module, but livepatch support is disabled", ""},

		// Several at once.
		{"unknown key, then vermagic", sign(t, other, replaced(t, hello, " SMP preempt ", " SMP PREEMPT ")),
			nil, []ID{UnknownKey, Vermagic}, syscall.EKEYREJECTED, unknown, ""},
		{"tolerant", replaced(t, hello, " SMP preempt ", " SMP PREEMPT "), configured("CONFIG_MODULE_SIG_FORCE=n"),
			[]ID{NotSigned, Vermagic}, 0,
			"hello: module verification failed: signature and/or required key missing - tainting kernel", ""},
		{"locked down", hello, func(s *Source) {
			s.Config, s.Cmdline = with(t, "CONFIG_MODULE_SIG_FORCE=n"), "lockdown=integrity"
		}, []ID{NotSigned}, syscall.EPERM,
			"Lockdown: modprobe: unsigned module loading is restricted; see man kernel_lockdown.7", ""},
		{"signatures off", hello, configured("CONFIG_MODULE_SIG=n", "CONFIG_MODULE_SIG_FORCE=n"), nil, 0, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := source(t, key)
			if test.change != nil {
				test.change(&s)
			}
			k, err := Open(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			name := test.file
			if name == "" {
				name = "m.ko"
			}
			r := k.Module(t.Context(), testmod.WriteFile(t, name, test.data))
			check(t, r, test.want, test.errno, test.log)
		})
	}
}

// check compares a report with what is expected.
func check(t *testing.T, r *Report, want []ID, errno syscall.Errno, log string) {
	t.Helper()
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	var got []ID
	var first *Cause
	for i, c := range r.Causes {
		shown[c.ID] = true
		if c.Reason == "" || c.Mend.Command+c.Mend.Then == "" {
			t.Errorf("%s has no reason, or nothing to do: %+v", c.ID, c)
		}
		if c.Effect == May {
			continue
		}
		if got = append(got, c.ID); first == nil {
			first = &r.Causes[i]
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("causes %q, expected %q: %+v", got, want, r.Causes)
	}
	if first == nil {
		if r.Verdict != Loads {
			t.Errorf("verdict %s without a cause", r.Verdict)
		}
		return
	}
	last := ""
	if len(first.Log) > 0 {
		last = first.Log[len(first.Log)-1]
	}
	if first.Errno != errno || last != log {
		t.Errorf("errno %d and the line %q, expected %d and %q", int(first.Errno), last, int(errno), log)
	}
}

// poke changes bytes.
func poke(b []byte, at int, bytes ...byte) []byte {
	b = slices.Clone(b)
	copy(b[at:], bytes)
	return b
}

func otherModule(t testing.TB, arch string) []byte {
	t.Helper()
	b, err := os.ReadFile("../../testdata/modules/" + arch + "/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The rest of the causes: what may be, and what only a machine shows.
func testPossible(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	good := sign(t, key, real(t, "hello"))
	may := func(name, file string, data []byte, change func(*Source), want ID) {
		t.Run(name, func(t *testing.T) {
			s := source(t, key)
			if change != nil {
				change(&s)
			}
			k, err := Open(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			r := k.Module(t.Context(), testmod.WriteFile(t, file, data))
			check(t, r, nil, 0, "")
			if len(r.Causes) != 1 || r.Causes[0].ID != want || r.Causes[0].Effect != May {
				t.Errorf("causes %+v, expected that %s may be", r.Causes, want)
			}
		})
	}
	may("hash in a module", "m.ko", appended(real(t, "hello"), testcms.Message(t, key, crypto.SHA512, real(t, "hello"))),
		nil, HashIsModule)
	may("name of another compression", "m.ko", packed(t, compress.XZ, good), nil, Misnamed)
	may("signed inside and outside", "m.ko.xz", sign(t, key, packed(t, compress.XZ, good)), nil, SignedCompressedFile)
	may("something behind the xz data", "m.ko.xz", append(packed(t, compress.XZ, good), "rubbish"...), nil, Damaged)
	bad := testmod.WriteFile(t, "m.ko", good)
	testmod.Run(t, testmod.Program(t, "xz", "xz-utils"), bad)
	crc64, err := os.ReadFile(bad + ".xz")
	if err != nil {
		t.Fatal(err)
	}
	may("CRC64, and nothing known of the kernel", "m.ko.xz", crc64, func(s *Source) { s.Config = nil },
		CompressionRefused)

	s := source(t, key)
	k, err := Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	check(t, k.Module(t.Context(), testmod.WriteFile(t, "m.ko.xz", crc64)), []ID{CompressionRefused}, syscall.EINVAL,
		"decompression failed with status 6")
	k.Compression = "none" // kmod decompresses
	r := k.Module(t.Context(), testmod.WriteFile(t, "m.ko.xz", crc64))
	if check(t, r, nil, 0, ""); len(r.Causes) > 0 || len(r.Notes) == 0 {
		t.Errorf("causes %+v and notes %q, where kmod decompresses", r.Causes, r.Notes)
	}
	k.Policy.Disabled = true
	check(t, k.Module(t.Context(), testmod.WriteFile(t, "m.ko", good)), []ID{ModulesDisabled}, syscall.EPERM, "")
	k.Policy.Disabled = false
	k.structure++ // as that of another kernel
	check(t, k.Module(t.Context(), testmod.WriteFile(t, "m.ko", good)), []ID{OtherStruct}, syscall.ENOEXEC,
		"module hello: .gnu.linkonce.this_module section size must match the kernel's built struct module size "+
			"at run time")
}

// What people reported in public, rebuilt: a module signed with a key of the machine.
func testReports(t *testing.T) {
	key, builtin := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p256")
	data := sign(t, key, real(t, "hello"))
	mok := func(trusted, secureBoot verify.Fact) func(*testing.T, *Source) {
		return func(t *testing.T, s *Source) {
			list, err := verify.ReadList(testmod.WriteFile(t, "MokListRT", key.CertPEM))
			if err != nil {
				t.Fatal(err)
			}
			f := verify.Firmware{MokList: []verify.List{list}, MokListTrusted: trusted, SecureBoot: secureBoot}
			s.Firmware = &f
			// Debian's kernels verify modules with .platform; these do not, and an image says so.
			err = s.Keys.Follow(verify.Facts{PlatformModules: verify.No, MachineAlways: verify.No})
			if err == nil {
				err = s.Keys.AddFirmware(f)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	dkms := func(t *testing.T, s *Source) {
		s.Root = t.TempDir()
		for name, b := range map[string][]byte{"mok.key": key.KeyPEM, "mok.pub": key.Certificate.Raw} {
			path := filepath.Join(s.Root, "var/lib/dkms", name)
			err := os.MkdirAll(filepath.Dir(path), 0o755)
			if err == nil {
				err = os.WriteFile(path, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		s.KeyPairs = MachineKeys(s.Root, release)
	}
	for _, test := range []struct {
		name    string
		lines   []string // of the configuration
		change  func(*testing.T, *Source)
		want    ID
		words   string // of the reason
		command string
	}{
		{"CachyOS/linux-cachyos 743: enrolled, and MokListTrustedRT is missing", nil, mok(verify.No, verify.Yes),
			MokNotTrusted,
			"MokListTrustedRT is missing", "mokutil --trust-mok"},
		{"CachyOS/linux-cachyos 862: IMA is off, so that the list of shim is not read",
			[]string{"CONFIG_HAVE_ARCH_GET_SECUREBOOT=n"},
			mok(verify.Yes, verify.Yes), MokNotRead, "cannot tell whether Secure Boot is on", ""},
		{"deepin-community/kernel 2144: no keyring .machine", []string{"CONFIG_INTEGRITY_MACHINE_KEYRING=n"},
			mok(verify.Yes, verify.Yes),
			NoMachineKeyring, "CONFIG_INTEGRITY_MACHINE_KEYRING is not set", ""},
		{"dkms-project/dkms 429: the key of DKMS was never enrolled", nil, dkms, KeyNotEnrolled, "never enrolled",
			"mokutil --import "},
		{"pop-os/linux 447: the certificate is in .platform", nil, mok(verify.No, verify.Yes), MokNotTrusted,
			".platform",
			"mokutil --trust-mok"},
		{"only authorities", []string{"CONFIG_INTEGRITY_CA_MACHINE_KEYRING=y", "CONFIG_INTEGRITY_TRUSTED_KEYRING=y"},
			mok(verify.Yes, verify.Yes), NotAuthority, "only certificates of authorities",
			"test ! -e /root/module-ca-key.pem && test ! -e /root/module-ca.der && openssl req "},
		{"only authorities, and no .machine for them",
			[]string{"CONFIG_INTEGRITY_CA_MACHINE_KEYRING=y", "CONFIG_INTEGRITY_TRUSTED_KEYRING=n"},
			mok(verify.Yes, verify.Yes), NoMachineKeyring, "without CONFIG_INTEGRITY_TRUSTED_KEYRING", ""},
		{"Secure Boot is off", nil, mok(verify.Yes, verify.No), MokNotRead, "Secure Boot is off", ""},
		{"in db alone", nil, func(t *testing.T, s *Source) {
			mok(verify.Yes, verify.Yes)(t, s)
			s.Keys = source(t, builtin).Keys
			err := s.Keys.Follow(verify.Facts{PlatformModules: verify.No})
			if err == nil {
				err = s.Keys.AddTo(verify.Platform, key.Certificate, "db")
			}
			if err != nil {
				t.Fatal(err)
			}
			s.Firmware = nil
		}, KeyElsewhere, "in .platform, which does not count", "modsign keygen "},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := source(t, builtin)
			s.Config, s.Release, s.Modules = with(t, test.lines...), "6.19.3-report", ""
			test.change(t, &s)
			k, err := Open(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			r := k.Module(t.Context(), testmod.WriteFile(t, "m.ko", data))
			check(t, r, []ID{test.want}, syscall.EKEYREJECTED, "Loading of module with unavailable key is rejected")
			c := r.Causes[0]
			if !strings.Contains(c.Reason, test.words) || !strings.HasPrefix(c.Mend.Command, test.command) ||
				(c.Mend.Command == "") != (test.command == "") {
				t.Errorf("the reason is %q and the command %q", c.Reason, c.Mend.Command)
			}
		})
	}
}

func TestModule(t *testing.T) {
	t.Run("causes", testCauses)
	t.Run("possible", testPossible)
	t.Run("reports", testReports)
	if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // some of them
	}
	// Each cause is shown, and documented.
	source, err := os.ReadFile("explain.go")
	if err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile("../../docs/explain.md")
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ +ID = "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1) {
		ids = append(ids, m[1])
		if !shown[ID(m[1])] {
			t.Errorf("no test shows the cause %s", m[1])
		}
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(string(document), -1) {
		documented = append(documented, m[1])
	}
	if slices.Sort(ids); len(ids) < 30 {
		t.Errorf("only %d causes", len(ids))
	}
	if slices.Sort(documented); !slices.Equal(ids, documented) {
		t.Errorf("docs/explain.md has the causes\n%q, and the package\n%q", documented, ids)
	}
}
