package testmod

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// OldSigned returns a module signed as scripts/sign-file of Linux 3.7 to 4.2 signed it,
// with an RSA key: behind the payload come the name of the signer, the key identifier,
// and the raw signature, which openssl makes, behind its length in two bytes; then
//
//	01       algo: RSA
//	04       hash: SHA-256
//	01       id_type: X.509
//	xx       signer_len
//	14       key_id_len
//	00 00 00
//	xxxxxxxx length of the signature with its two bytes, big-endian
//
// and the marker.
func OldSigned(t testing.TB, key *Key, signer string, payload []byte) []byte {
	t.Helper()
	keyFile, _ := key.Files(t)
	module := WriteFile(t, "payload", payload)
	sigFile := filepath.Join(t.TempDir(), "sig")
	Run(t, Program(t, "openssl", "openssl"), "dgst", "-sha256", "-sign", keyFile, "-out", sigFile, module)
	sig, err := os.ReadFile(sigFile)
	if err != nil {
		t.Fatal(err)
	}
	keyID := key.Certificate.SubjectKeyId
	b := slices.Concat(payload, []byte(signer), keyID)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(sig))), sig...)
	b = append(b, 1, 4, 1, uint8(len(signer)), uint8(len(keyID)), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(2+len(sig)))
	return append(b, "~Module signature appended~\n"...)
}
