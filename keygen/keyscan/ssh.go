package keyscan

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// opensshMagic begins a key of OpenSSH (PROTOCOL.key in its source).
const opensshMagic = "openssh-key-v1\x00"

// parseOpenSSH reads the unencrypted beginning of a key of OpenSSH: the cipher, the key
// derivation, and the public key.
func parseOpenSSH(data []byte) (key, bool) {
	rest, ok := bytes.CutPrefix(data, []byte(opensshMagic))
	if !ok {
		return key{}, false
	}
	s := sshString(rest)
	cipher, _, _, count := s.next(), s.next(), s.next(), s.number()
	public, private := s.next(), s.next()
	if s == nil || count == 0 || len(private) < 16 {
		return key{}, false
	}
	k := key{form: "OpenSSH", encrypted: string(cipher) != "none"}
	k.algorithm, k.public = parseSSHPublic(public)
	if kind := sshString(public); bytes.HasPrefix(kind.next(), []byte("sk-")) {
		k.bound = "the secret part is in a security key"
	}
	return k, true
}

// An sshString is read like the wire format of SSH (RFC 4251, section 5). After an error it
// is nil.
type sshString []byte

func (s *sshString) number() uint32 {
	if len(*s) < 4 {
		*s = nil
		return 0
	}
	n := binary.BigEndian.Uint32(*s)
	*s = (*s)[4:]
	return n
}

func (s *sshString) next() []byte {
	n := s.number()
	if *s == nil || uint64(n) > uint64(len(*s)) {
		*s = nil
		return nil
	}
	value := (*s)[:n]
	*s = (*s)[n:]
	return value
}

// parseSSHPublic reads a public key of SSH.
func parseSSHPublic(data []byte) (algorithm string, public []byte) {
	s := sshString(data)
	switch kind := string(s.next()); {
	case kind == "ssh-rsa":
		e, n := new(big.Int).SetBytes(s.next()), new(big.Int).SetBytes(s.next())
		if n.BitLen() < 256 || n.BitLen() > maxBits || e.BitLen() > maxBits {
			return "RSA", nil
		}
		return fmt.Sprintf("RSA %d", n.BitLen()), rsaPublic(n, e)
	case kind == "ssh-ed25519":
		return "Ed25519", s.next()
	case kind == "ecdsa-sha2-nistp256", kind == "ecdsa-sha2-nistp384", kind == "ecdsa-sha2-nistp521":
		s.next()
		return "ECDSA P-" + strings.TrimPrefix(kind, "ecdsa-sha2-nistp"), s.next()
	case kind == "ssh-dss":
		return "DSA", nil
	}
	return "", nil
}

// puttyMagic begins a key of PuTTY, with its version and a colon.
const puttyMagic = "PuTTY-User-Key-File-"

// parsePuTTY reads a key file of PuTTY: its header and its public key.
func parsePuTTY(data []byte) (key, bool) {
	data = data[:min(len(data), maxBlock)]
	k, private := key{form: "PuTTY"}, false
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case i == 0 && !strings.HasPrefix(name, puttyMagic):
			return key{}, false
		case name == "Encryption":
			k.encrypted = value != "none"
		case name == "Public-Lines":
			if n, err := strconv.Atoi(value); err == nil && n > 0 && n < len(lines)-i {
				var text strings.Builder
				for _, part := range lines[i+1 : i+1+n] {
					text.WriteString(strings.TrimSpace(part))
				}
				if public, err := base64.StdEncoding.DecodeString(text.String()); err == nil {
					k.algorithm, k.public = parseSSHPublic(public)
				}
			}
		case name == "Private-Lines":
			private = true
		}
	}
	return k, private
}
