package agent

import (
	"bytes"
	"crypto"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/testmod"
)

// newReceipt is the receipt of a key that signed one digest.
func newReceipt(t testing.TB, algorithm string) *Receipt {
	t.Helper()
	key := testmod.NewKey(t, algorithm)
	digests := make(Digests)
	digests.Add(crypto.SHA256, sum("x"))
	r := &Receipt{
		Version: receiptVersion, Certificate: string(key.CertPEM), CertificateSHA256: fingerprint(key.Certificate),
		Algorithm: algorithm,
		Born:      time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Died: time.Date(2026, 1, 2, 3, 5, 5, 0, time.UTC),
		Reason: "/a <b> & \u2028 \"c\" removed", Signatures: 1, DigestsSHA256: digests.SHA256(), Installs: 2,
	}
	if err := r.sign(key.Private); err != nil {
		t.Fatal(err)
	}
	return r
}

func encoded(t testing.TB, r *Receipt) []byte {
	t.Helper()
	data, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func readAndCheck(data []byte) error {
	r, err := ReadReceipt(bytes.NewReader(data))
	if err == nil {
		err = r.Check()
	}
	return err
}

func TestReceipt(t *testing.T) {
	t.Parallel()
	for algorithm, otherAlgorithm := range map[string]string{
		"rsa:2048": "ecdsa:p256", "ecdsa:p256": "rsa:2048", "mldsa:44": "mldsa:65",
	} {
		r := newReceipt(t, algorithm)
		data := encoded(t, r)
		read, err := ReadReceipt(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := read.Check(); err != nil || !reflect.DeepEqual(read, r) {
			t.Errorf("%v: got %+v, want %+v", err, read, r)
		}
		dir, err := dirfd.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := r.write(dir, "receipt.json"); err != nil {
			t.Fatal(err)
		}
		if written, err := os.ReadFile(dir.Path("receipt.json")); err != nil || !bytes.Equal(written, data) {
			t.Errorf("%v: wrote\n%s, want\n%s", err, written, data)
		}

		// Any byte that is another one is noticed.
		step := max(1, len(data)/3000) // ML-DSA has many
		for i := 0; i < len(data); i += step {
			data[i] ^= 1
			if readAndCheck(data) == nil {
				t.Errorf("%s: byte %d is another, and nobody cares:\n%s", algorithm, i, data)
			}
			data[i] ^= 1
		}

		// And any member, in a receipt that is as it should be otherwise.
		other := newReceipt(t, otherAlgorithm)
		for i := range reflect.TypeFor[Receipt]().NumField() {
			changed := *r
			name, field := reflect.TypeFor[Receipt]().Field(i).Name, reflect.ValueOf(&changed).Elem().Field(i)
			switch value := field.Interface().(type) {
			case int:
				field.SetInt(int64(value) + 1)
			case bool:
				field.SetBool(!value)
			case time.Time:
				field.Set(reflect.ValueOf(value.Add(time.Second)))
			case string:
				field.SetString(reflect.ValueOf(other).Elem().Field(i).String())
				if name == "Reason" || name == "DigestsSHA256" {
					field.SetString(strings.Repeat("0", 64))
				}
			case []byte:
				field.SetBytes(other.Signature)
			}
			if reflect.DeepEqual(&changed, r) || readAndCheck(encoded(t, &changed)) == nil {
				t.Errorf("%s: %s is another, and nobody cares", algorithm, name)
			}
		}

		// A receipt of which another key says that it is this key's.
		forged := *r
		if err := forged.sign(testmod.NewKey(t, otherAlgorithm).Private); err != nil {
			t.Fatal(err)
		}
		if err := readAndCheck(encoded(t, &forged)); err == nil || !strings.Contains(err.Error(), "signature") {
			t.Errorf("%s: forged receipt: %v", algorithm, err)
		}
	}
}

// TestReceiptOfClient has a client make a receipt out of what the agent signs for
// anybody: for an RSA key it is none.
func TestReceiptOfClient(t *testing.T) {
	t.Parallel()
	r := newReceipt(t, "rsa:2048")
	digest, err := r.digest(crypto.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	if r.Signature, err = testmod.NewKey(t, "rsa:2048").Private.Sign(nil, digest, crypto.SHA512); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(); err == nil {
		t.Error("a PKCS #1 v1.5 signature passes for the agent's last")
	}
}

func TestReadReceiptRefuses(t *testing.T) {
	t.Parallel()
	r := newReceipt(t, "ecdsa:p256")
	good := string(encoded(t, r))
	compact, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	replaced := func(old, with string) string {
		if strings.Count(good, old) != 1 {
			t.Fatalf("%q is not in the receipt once", old)
		}
		return strings.Replace(good, old, with, 1)
	}
	for name, data := range map[string]string{
		"empty":             "",
		"no JSON":           "hello",
		"null":              "null\n",
		"a list":            "[" + good + "]",
		"compact":           string(compact) + "\n",
		"unknown member":    replaced("  \"born\"", "  \"more\": 1,\n  \"born\""),
		"member twice":      replaced("  \"installs\": 2,\n", "  \"installs\": 3,\n  \"installs\": 2,\n"),
		"member lacks":      replaced("  \"installs\": 2,\n", ""),
		"another case":      replaced("\"installs\"", "\"Installs\""),
		"another zone":      replaced("03:04:05Z", "03:04:05+00:00"),
		"another version":   replaced("\"version\": 2", "\"version\": 3"),
		"version before":    replaced("\"version\": 2", "\"version\": 1"), // it has a member that version 1 has not
		"trailing newline":  good + "\n",
		"trailing data":     good + good,
		"a byte order mark": "\ufeff" + good,
		"CRLF":              strings.ReplaceAll(good, "\n", "\r\n"),
		"very long":         good + strings.Repeat(" ", maxReceiptSize),
	} {
		if _, err := ReadReceipt(strings.NewReader(data)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, certificate := range map[string]string{
		"none": "", "garbage": "x", "two": r.Certificate + r.Certificate,
		"a key":   string(testmod.NewKey(t, "ecdsa:p256").KeyPEM),
		"no X509": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})),
	} {
		changed := *r
		changed.Certificate = certificate
		if err := changed.Check(); err == nil || !strings.Contains(err.Error(), "certificate in the receipt") {
			t.Errorf("certificate: %s: %v", name, err)
		}
	}
}

// FuzzReadReceipt checks that what is read is written as it was, and that no
// receipt is checked without its signature. Its inputs are receipts with a few changes.
// TestReceiptIsNotQuoted puts a secret into what is given for a receipt.
func TestReceiptIsNotQuoted(t *testing.T) {
	t.Parallel()
	const hidden = "SECRETSECRET"
	for name, text := range map[string]string{
		"text":             hidden + "\n",
		"PEM":              "-----BEGIN " + hidden + " PRIVATE KEY-----\nAAAA\n-----END " + hidden + " PRIVATE KEY-----\n",
		"cut off":          "-----BEGIN PRIVATE KEY-----\n" + hidden,
		"JSON":             `{"` + hidden + `": "` + hidden + `"}`,
		"a member's value": `{"version": "` + hidden + `"}`,
		"a time":           `{"version": 2, "born": "` + hidden + `"}`,
	} {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "receipt.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		dir, err := dirfd.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := checkedReceipt(dir, "receipt.json"); err == nil || strings.Contains(err.Error(), hidden) {
			t.Errorf("%s: %v", name, err)
		}
		dir.Close()
	}
}

func FuzzReadReceipt(f *testing.F) {
	files := [][]byte{encoded(f, newReceipt(f, "ecdsa:p256")), encoded(f, newReceipt(f, "ecdsa:p384")),
		encoded(f, newReceipt(f, "mldsa:44")),
		[]byte(`{"version":1}`)}
	for i := range files {
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0))
		f.Add(uint8(i), uint64(40<<16|'7'), uint64(200<<16|0x401), uint64(300<<16|0x300|'\n'))
	}
	f.Fuzz(func(t *testing.T, file uint8, one, two, three uint64) {
		data := testmod.Edit(files[int(file)%len(files)], one, two, three)
		defer testmod.ShowInputs(t, data)
		r, err := ReadReceipt(bytes.NewReader(data))
		if err != nil {
			return
		}
		if !bytes.Equal(encoded(t, r), data) {
			t.Errorf("read %q and would write %q", data, encoded(t, r))
		}
		if r.Check() == nil {
			if r.Signatures++; r.Check() == nil {
				t.Errorf("another number of signatures passes too: %s", data)
			}
		}
	})
}

// TestReceiptVersion1 has a receipt from before memory_hidden: it is good, and does
// not say so.
func TestReceiptVersion1(t *testing.T) {
	t.Parallel()
	r, key := newReceipt(t, "rsa:2048"), testmod.NewKey(t, "rsa:2048")
	for hidden, good := range map[bool]bool{false: true, true: false} {
		r.Version, r.MemoryHidden = 1, hidden
		if err := r.sign(key.Private); err != nil {
			t.Fatal(err)
		}
		data := encoded(t, r)
		if err := readAndCheck(data); (err == nil) != good {
			t.Errorf("with memory_hidden %t: %v", hidden, err)
		}
		if bytes.Contains(data, []byte("memory_hidden")) == good {
			t.Errorf("written\n%s", data)
		}
	}
}
