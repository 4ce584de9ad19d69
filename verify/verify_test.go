package verify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testcms"
	"github.com/modsign/modsign/internal/testmod"
)

// signature makes the CMS message of a module.
func signature(t testing.TB, key *testmod.Key, payload []byte) []byte {
	t.Helper()
	return testcms.Message(t, key, crypto.SHA256, payload)
}

func signed(t testing.TB, key *testmod.Key, payload []byte) []byte {
	t.Helper()
	return testcms.Signed(t, key, payload)
}

// keyring trusts the certificates of some keys.
func keyring(t testing.TB, trusted ...*testmod.Key) *Keyring {
	t.Helper()
	keys := new(Keyring)
	for _, key := range trusted {
		if err := keys.AddFile(testmod.WriteFile(t, "cert.pem", key.CertPEM)); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

func TestVerdicts(t *testing.T) {
	key, other := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "ecdsa:p384")
	payload := testmod.ELF()
	good := signed(t, key, payload)
	// spoil changes one byte, counted from the end where at is negative.
	spoil := func(b []byte, at int, value byte) []byte {
		b = slices.Clone(b)
		if at < 0 {
			at += len(b)
		}
		b[at] = value
		return b
	}
	revoking := keyring(t, key)
	revoked, err := parseFile(cms.Newest, other.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	revoking.add(Blacklist, "a revocation list", revoked...)
	executable := spoil(payload, 16, 2)
	// Kernels that have the hash of the payload, or of a tree of two modules.
	more := append(slices.Clone(payload), 0)
	listing, alone, proving := keyring(t, key), keyring(t, key), keyring(t, key)
	sum, tree := hashlist.Hash(sha256.Sum256(payload)), hashlist.NewTree([]hashlist.Hash{leaf(0, payload), leaf(1, more)})
	root := tree.Root()
	for keys, hashes := range map[*Keyring]*hashlist.Embedded{
		listing: {Hashes: []hashlist.Hash{{}, sum}}, alone: {Hashes: []hashlist.Hash{sum}}, proving: {Root: &root},
	} {
		if err := keys.AddHashes(hashes); err != nil {
			t.Fatal(err)
		}
	}
	alone.hashesOnly = true
	proof := tree.Prove(0).Append(nil)
	proven := module.AppendSignature(slices.Clone(payload), module.TypeMerkle, proof)
	const (
		unlisted = "Loading of unsigned module that is not in the hash list is rejected"
		none     = "module hashes: the module is none of those that this kernel was built with"
	)
	tests := []struct {
		name      string
		file      string
		data      []byte
		keys      *Keyring
		verdict   Verdict
		errno     syscall.Errno
		cause     syscall.Errno
		tolerated bool
		dmesg     string
	}{
		{"good", "m.ko", good, keyring(t, other, key), Trusted, 0, 0, false, ""},
		{"stacked", "m.ko", signed(t, key, signed(t, other, payload)), keyring(t, key), Trusted, 0, 0, false, ""},
		{
			"not signed", "m.ko", payload, keyring(t, key), NotSigned, syscall.EKEYREJECTED, syscall.ENODATA, true,
			"Loading of unsigned module is rejected",
		},
		{
			"unknown key", "m.ko", good, keyring(t, other), UnknownKey, syscall.EKEYREJECTED, syscall.ENOKEY, true,
			"Loading of module with unavailable key is rejected",
		},
		{
			"no keys", "m.ko", good, new(Keyring), UnknownKey, syscall.EKEYREJECTED, syscall.ENOKEY, true,
			"Loading of module with unavailable key is rejected",
		},
		{
			"unknown key, changed", "m.ko", spoil(good, 70, 'x'), keyring(t, other), UnknownKey, syscall.EKEYREJECTED,
			syscall.ENOKEY, true, "",
		},
		{
			"known key, changed", "m.ko", spoil(good, 70, 'x'), keyring(t, key), BadSignature, syscall.EKEYREJECTED,
			syscall.EKEYREJECTED, false, "",
		},
		{
			"the inner signature alone is known", "m.ko", signed(t, other, good), keyring(t, key), UnknownKey,
			syscall.EKEYREJECTED, syscall.ENOKEY, true, "",
		},
		{
			"revoked", "m.ko", signed(t, other, payload), revoking, Revoked, syscall.EKEYREJECTED,
			syscall.EKEYREJECTED, false, "",
		},
		{"another is revoked", "m.ko", good, revoking, Trusted, 0, 0, false, ""},
		{
			"type", "m.ko", spoil(good, -38, 1), keyring(t, key), Unsupported, syscall.EKEYREJECTED, syscall.ENOPKG,
			true, "module: not signed with expected PKCS#7 message",
		},
		{
			"Merkle proof", "m.ko", spoil(good, -38, 3), keyring(t, key), Unsupported, syscall.EKEYREJECTED,
			syscall.ENOPKG, true, "module: not signed with expected PKCS#7 message",
		},
		{
			"field",
			"m.ko",
			spoil(good, -40, 1),
			keyring(t, key),
			Malformed,
			syscall.EBADMSG,
			syscall.EBADMSG,
			false,
			"module: PKCS#7 signature info has unexpected non-zero params",
		},
		{
			"before 4.3",
			"m.ko",
			testmod.OldSigned(t, testmod.NewKey(t, "rsa:2048"), "Example: kernel key", payload),
			keyring(t, key),
			Unsupported,
			syscall.EKEYREJECTED,
			syscall.ENOPKG,
			true,
			"module: not signed with expected PKCS#7 message",
		},
		{
			"before 4.3, lengths that do not fit", "m.ko", spoil(spoil(good, -38, 1), -37, 255), keyring(t, key),
			Unsupported, syscall.EKEYREJECTED, syscall.ENOPKG, true, "module: not signed with expected PKCS#7 message",
		},
		{
			"Merkle proof with a field", "m.ko", spoil(spoil(good, -38, 3), -40, 1), keyring(t, key), Unsupported,
			syscall.EKEYREJECTED, syscall.ENOPKG, true, "module: not signed with expected PKCS#7 message",
		},
		{
			"signer",
			"m.ko",
			spoil(good, -37, 1),
			keyring(t, key),
			Malformed,
			syscall.EBADMSG,
			syscall.EBADMSG,
			false,
			"module: PKCS#7 signature info has unexpected non-zero params",
		},
		{"length", "m.ko", spoil(good, -32, 0x7f), keyring(t, key), Malformed, syscall.EBADMSG, syscall.EBADMSG, false, ""},
		{
			"no message",
			"m.ko",
			module.AppendSignature(slices.Clone(payload), module.TypePKCS7, []byte("no message")),
			keyring(t, key),
			Malformed,
			syscall.EBADMSG,
			syscall.EBADMSG,
			false,
			"",
		},
		{
			"a message too long",
			"m.ko",
			module.AppendSignature(slices.Clone(payload), module.TypePKCS7, make([]byte, 1<<16)),
			keyring(t, key),
			Malformed,
			syscall.EMSGSIZE,
			syscall.EMSGSIZE,
			false,
			"",
		},
		{
			"a signed text", "m.ko", signed(t, key, []byte("no module")), keyring(t, key), Malformed, syscall.ENOEXEC,
			syscall.ENOEXEC, false, "",
		},
		{
			"a signed program", "m.ko", signed(t, key, executable), keyring(t, key), Malformed, syscall.ENOEXEC,
			syscall.ENOEXEC, false, "",
		},
		{"misnamed", "m.ko.xz", good, keyring(t, key), Malformed, syscall.EINVAL, syscall.EINVAL, false, ""},
		{
			"broken compression", "m.ko.xz", []byte("\xfd7zXZ\x00 and no more"), keyring(t, key), Malformed,
			syscall.EINVAL, syscall.EINVAL, false, "",
		},

		{"listed", "m.ko", payload, listing, Trusted, 0, 0, false, ""},
		{"listed, and signed", "m.ko", signed(t, other, payload), listing, Trusted, 0, 0, false, ""},
		{"signed, and not listed", "m.ko", signed(t, key, more), listing, Trusted, 0, 0, false, ""},
		{
			"not listed", "m.ko", more, listing, NotSigned, syscall.EKEYREJECTED, syscall.ENODATA, true, unlisted,
		},
		{
			"not listed, and an unknown key", "m.ko", signed(t, other, more), listing, UnknownKey, syscall.EKEYREJECTED,
			syscall.ENOKEY, true, "Loading of module with unavailable key is rejected",
		},
		{
			"listed, and signed twice", "m.ko", signed(t, other, signed(t, other, payload)), listing, UnknownKey,
			syscall.EKEYREJECTED, syscall.ENOKEY, true, "",
		},
		{
			"listed, with a field of the signature", "m.ko", spoil(signed(t, key, payload), -40, 1), listing, Malformed,
			syscall.EBADMSG, syscall.EBADMSG, false, "",
		},
		{
			"a proof for a list", "m.ko", proven, listing, Unsupported, syscall.EKEYREJECTED, syscall.ENOPKG, true,
			"module: not signed with expected PKCS#7 message",
		},
		{"hashes alone, listed", "m.ko", payload, alone, Trusted, 0, 0, false, ""},
		{"hashes alone, listed and signed", "m.ko", signed(t, other, payload), alone, Trusted, 0, 0, false, ""},
		{
			"hashes alone, signed", "m.ko", signed(t, key, more), alone, Unsupported, syscall.EKEYREJECTED,
			syscall.ENOPKG, true, noSignatures,
		},
		{"hashes alone", "m.ko", more, alone, NotSigned, syscall.EKEYREJECTED, syscall.ENODATA, true, unlisted},
		{"proven", "m.ko", proven, proving, Trusted, 0, 0, false, ""},
		{"a key for a tree", "m.ko", signed(t, key, more), proving, Trusted, 0, 0, false, ""},
		{
			"not proven", "m.ko", payload, proving, NotSigned, syscall.EKEYREJECTED, syscall.ENODATA, true,
			"Loading of unsigned module is rejected",
		},
		{
			"the proof of another", "m.ko", module.AppendSignature(slices.Clone(more), module.TypeMerkle, proof), proving,
			Foreign, syscall.EKEYREJECTED, syscall.ENOKEY, true, none,
		},
		{
			"a proof too long", "m.ko",
			module.AppendSignature(slices.Clone(payload), module.TypeMerkle, append(slices.Clone(proof), proof[4:]...)),
			proving, Foreign, syscall.EKEYREJECTED, syscall.ENOPKG, true,
			"module hashes: the proof is that of another kernel: it has 68 bytes, and the tree 1 levels",
		},
		{
			"a proof too short", "m.ko", module.AppendSignature(slices.Clone(payload), module.TypeMerkle, nil), proving,
			Foreign, syscall.EKEYREJECTED, syscall.ENOPKG, true,
			"module hashes: the proof is that of another kernel: it has 0 bytes, and the tree 1 levels",
		},
	}
	seen := make(map[Verdict]bool)
	for _, test := range tests {
		r := File(t.Context(), test.keys, testmod.WriteFile(t, test.file, test.data))
		seen[r.Verdict] = true
		if r.Verdict != test.verdict || r.Errno != test.errno || r.Cause != test.cause || r.Tolerated != test.tolerated {
			t.Errorf("%s: %s, errno %v, cause %v, tolerated %v: %v", test.name, r.Verdict, r.Errno, r.Cause, r.Tolerated, r.Err)
		}
		if (r.Err == nil) != (r.Verdict == Trusted) {
			t.Errorf("%s: %s with the error %v", test.name, r.Verdict, r.Err)
		}
		if test.dmesg != "" && !slices.Contains(r.Dmesg, test.dmesg) {
			t.Errorf("%s: logs %q, want %q", test.name, r.Dmesg, test.dmesg)
		}
	}
	if r := File(t.Context(), keyring(t, key), filepath.Join(t.TempDir(), "nowhere.ko")); r.Verdict != Unreadable ||
		!errors.Is(r.Err, os.ErrNotExist) {
		t.Errorf("no file: %s, %v", r.Verdict, r.Err)
	}
	// The kernel takes more filters of xz than modsign reads: no verdict.
	arm64 := testmod.WriteFile(t, "m.ko", good)
	testmod.Run(t, testmod.Program(t, "xz", "xz-utils"), "--check=crc32", "--arm64", "--lzma2", arm64)
	if r := File(t.Context(), keyring(t, key), arm64+".xz"); r.Verdict != Unreadable ||
		!errors.Is(r.Err, compress.ErrUnreadable) {
		t.Errorf("xz with the arm64 filter: %s, %v", r.Verdict, r.Err)
	}
	for _, verdict := range verdicts[:len(verdicts)-1] {
		if !seen[verdict] {
			t.Errorf("no test has the verdict %s", verdict)
		}
	}
}

// leaf is the hash of a module in a tree.
func leaf(position uint32, payload []byte) hashlist.Hash {
	h := hashlist.NewLeaf(position)
	h.Write(payload)
	return hashlist.Hash(h.Sum(nil))
}

// No change of a single byte makes a trusted module another trusted one, but for
// the bytes that the kernel does not look at.
func TestEveryByteCounts(t *testing.T) {
	for _, algorithm := range testmod.Few([]string{"rsa:2048", "ecdsa:p256", "ecdsa:p384", "ecdsa:p521"}, 1) {
		key := testmod.NewKey(t, algorithm)
		keys := keyring(t, key)
		payload := testmod.ELF()
		sig := signature(t, key, payload)
		file := module.AppendSignature(slices.Clone(payload), module.TypePKCS7, sig)
		check := func(b []byte) Result { return Module(bytes.NewReader(b), int64(len(b)), keys) }
		if r := check(file); r.Verdict != Trusted {
			t.Fatalf("%s: %s: %v", algorithm, r.Verdict, r.Err)
		}
		for i := range file {
			for _, bit := range []byte{1, 0x80} {
				b := slices.Clone(file)
				b[i] ^= bit
				r := check(b)
				if r.Verdict != Trusted {
					continue
				}
				// It has to be in the message, and the message no longer what is written.
				message, err := cms.Parse(b[len(payload) : len(payload)+len(sig)])
				if at := i - len(payload); at < 0 || at >= len(sig) || err != nil || message.Canonical() {
					t.Errorf(
						"%s: trusted with bit %#x of byte %d of %d changed (the message begins at %d)",
						algorithm,
						bit,
						i,
						len(file),
						len(payload),
					)
				}
			}
		}
		for n := range file {
			if r := check(file[:n]); r.Verdict == Trusted {
				t.Errorf("%s: trusted when cut off at %d of %d bytes", algorithm, n, len(file))
			}
		}
	}
}

func TestKernelsSignFile(t *testing.T) {
	signFile := testmod.SignFile(t)
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p256", "ecdsa:p384", "ecdsa:p521"} {
		key := testmod.NewKey(t, algorithm)
		keyPath, certPath := key.Files(t)
		for _, hash := range []string{"sha1", "sha224", "sha256", "sha384", "sha512"} {
			for _, option := range []string{"", "-k"} {
				path := testmod.WriteFile(t, "m.ko", testmod.ELF())
				testmod.Run(
					t,
					signFile,
					slices.DeleteFunc([]string{option, hash, keyPath, certPath, path}, func(s string) bool { return s == "" })...)
				if r := File(t.Context(), keyring(t, key), path); r.Verdict != Trusted || len(r.Warnings) != 0 {
					t.Errorf("%s %s %s: %s, %v, warnings %q", algorithm, hash, option, r.Verdict, r.Err, r.Warnings)
				}
			}
		}
	}
}

// What Debian signed, and the certificate that is built into its kernel.
func TestShippedModules(t *testing.T) {
	testmod.Slow(t, "it reads modules of whole kernels")
	for _, kernel := range testmod.Few(testmod.Kernels(t), 1) {
		keys := new(Keyring)
		if err := keys.AddImage(kernel.Image); err != nil {
			t.Fatal(err)
		}
		if keys.Len() == 0 || len(keys.Names()) != keys.Len() {
			t.Errorf("%s: certificates %q", kernel.Version, keys.Names())
		}
		// Spread over the tree; the command's tests take more of them.
		var paths []string
		for i := 0; i < len(kernel.Modules); i += len(kernel.Modules) / 60 {
			paths = append(paths, kernel.Modules[i])
		}
		i := 0
		summary, err := Tree(t.Context(), keys, paths, Options{Result: func(r Result) {
			if r.Path != paths[i] {
				t.Errorf("result %d is of %s", i, r.Path)
			}
			if i++; r.Verdict != Trusted || r.Source != kernel.Image {
				t.Errorf("%s: %s by %s: %v", r.Path, r.Verdict, r.Source, r.Err)
			}
		}})
		if err != nil || i != len(paths) || i < 50 || summary.Verdicts[Trusted] != i || summary.String() != "all trusted" {
			t.Errorf("%s: %d of %d modules: %v", kernel.Version, i, len(paths), err)
		}
		if keys.Holds(testmod.NewKey(t, "ecdsa:p256").Certificate.Raw) || !keys.Holds(keys.certs[0].Raw) {
			t.Errorf("%s: Holds is wrong", kernel.Version)
		}
	}
}

func TestBlacklistedCertificate(t *testing.T) {
	cert, err := parseFile(cms.Newest, testmod.NewKey(t, "ecdsa:p256").CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert[0].RawTBS)
	listed := "tbs:" + hex.EncodeToString(sum[:])
	for list, want := range map[string]bool{
		listed: true, "bin:" + listed[4:]: false, listed[:len(listed)-2]: false, "tbs:": false, "": false,
	} {
		if got := cert[0].Blacklisted([]string{"bin:00", list}); got != want {
			t.Errorf("%q: %v", list, got)
		}
	}
}

func TestAddFile(t *testing.T) {
	a, b := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "rsa:2048")
	tests := []struct {
		name string
		data []byte
		n    int
	}{
		{"PEM", a.CertPEM, 1},
		{"DER", a.Certificate.Raw, 1},
		{"two in PEM, with a key", slices.Concat(a.KeyPEM, a.CertPEM, b.CertPEM), 2},
		{"two in DER", slices.Concat(a.Certificate.Raw, b.Certificate.Raw), 2},
		{"a key", a.KeyPEM, 0},
		{"nothing", nil, 0},
		{"text", []byte("no certificate"), 0},
		{"cut off DER", a.Certificate.Raw[:100], 0},
		{"broken PEM", []byte(strings.Replace(string(a.CertPEM), "MII", "XXX", 1)), 0},
	}
	for _, test := range tests {
		keys := new(Keyring)
		path := testmod.WriteFile(t, "cert", test.data)
		err := keys.AddFile(path)
		if keys.Len() != test.n || (err == nil) != (test.n > 0) || err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %d certificates, %v", test.name, keys.Len(), err)
		}
	}
	if err := new(Keyring).AddImage(testmod.WriteFile(t, "vmlinuz", []byte("no kernel"))); err == nil {
		t.Error("a text was taken for a kernel")
	}
}

func TestTreeIsCancelled(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	path := testmod.WriteFile(t, "m.ko", signed(t, key, testmod.ELF()))
	for i := range 1000 {
		if err := os.Link(path, fmt.Sprintf("%s.%d.ko", path, i)); err != nil {
			t.Fatal(err)
		}
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	seen := 0
	summary, err := Tree(ctx, keyring(t, key), []string{filepath.Dir(path)}, Options{Jobs: 2, Result: func(Result) {
		if seen++; seen == 10 {
			cancel(cause)
		}
	}})
	if !errors.Is(err, cause) || seen >= 1000 || summary.Modules != seen {
		t.Errorf("%d results, %+v, %v", seen, summary, err)
	}
}

func TestInspect(t *testing.T) {
	key, other := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p384")
	payload := testmod.ELF()
	inner := signed(t, other, payload)
	path := testmod.WriteFile(t, "m.ko", signed(t, key, inner))
	d, err := Inspect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Layers) != 2 || d.Payload != int64(len(payload)) || d.Layers[0].Offset != int64(len(inner)) ||
		d.Format != "none" ||
		len(d.Warnings) != 0 {
		t.Fatalf("%+v", d)
	}
	want := Signer{
		Issuer: key.Certificate.Issuer.CommonName,
		Serial: fmt.Sprintf("%x", key.Certificate.SerialNumber.FillBytes(make([]byte, len(d.Layers[0].Signers[0].Serial)/2))),
		Hash:   "sha256", Algorithm: "rsa", Size: 256,
	}
	if got := d.Layers[0].Signers; !slices.Equal(got, []Signer{want}) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// modinfo says the same of the outermost one.
	said := string(testmod.Run(t, testmod.Program(t, "modinfo", "kmod"), path))
	for _, line := range []string{"sig_id:         PKCS#7", "sig_hashalgo:   sha256"} {
		if !strings.Contains(said, line) {
			t.Errorf("modinfo does not say %q:\n%s", line, said)
		}
	}

	bad := module.AppendSignature(slices.Clone(payload), module.TypePKCS7, []byte("no message"))
	if d, err := Inspect(t.Context(), testmod.WriteFile(t, "m.ko", bad)); err != nil || d.Layers[0].Problem == "" {
		t.Errorf("a broken message: %+v, %v", d, err)
	}
	bad = bytes.Clone(inner)
	bad[len(bad)-32] = 0x7f
	if d, err := Inspect(t.Context(), testmod.WriteFile(t, "m.ko", bad)); err != nil || len(d.Warnings) == 0 {
		t.Errorf("a broken trailer: %+v, %v", d, err)
	}
}

func BenchmarkFile(b *testing.B) {
	for _, algorithm := range []string{"rsa:4096", "ecdsa:p384"} {
		b.Run(algorithm, func(b *testing.B) {
			key := testmod.NewKey(b, algorithm)
			payload := append(testmod.ELF(), make([]byte, 100<<10)...)
			path := testmod.WriteFile(b, "m.ko", signed(b, key, payload))
			keys := keyring(b, key)
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				if r := File(b.Context(), keys, path); r.Verdict != Trusted {
					b.Fatal(r.Err)
				}
			}
		})
	}
}
