// Package keyfile reads key and certificate files and finds the PEM blocks in them. It
// reads whole files up to a size limit, and skips the byte order mark that some editors
// put before PEM.
//
// Any such file may be a private key, whatever it was given for. An error of this
// package never quotes a byte of the file, except the labels of well-known PEM blocks.
package keyfile

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"regexp"
	"slices"
	"strings"
)

// MaxSize is the size limit in bytes. The list of all certificates that a distribution
// trusts has a few hundred KB.
const MaxSize = 4 << 20

// Read reads the file at path with [ReadFrom].
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadFrom(f)
}

// ReadFrom reads to the end. An empty file, or one larger than [MaxSize], is an error.
func ReadFrom(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("file has more than %d bytes; no key or certificate is that large", MaxSize)
	}
	if data = TrimBOM(data); len(data) == 0 {
		return nil, errors.New("file is empty")
	}
	return data, nil
}

// TrimBOM removes the byte order mark of UTF-8. No DER and no OpenPGP packet begins
// with it.
func TrimBOM(data []byte) []byte { return bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) }

// IsPadding reports whether the bytes after a DER certificate are only padding: none,
// or zeros that fill the file.
func IsPadding(rest []byte) bool { return len(bytes.TrimLeft(rest, "\x00")) == 0 }

// Block is a PEM block that is not decoded yet. encoding/pem skips a damaged block and
// returns the next, which may be another key than the one that the owner means.
type Block struct {
	Kind string // the label as found: may be anything, so errors never quote it
	Line int    // line number of BEGIN, from 1
	text []byte // from the BEGIN line to the END line, inclusive
}

// Blocks finds the PEM blocks of a file by their BEGIN and END lines. A block without
// END ends before the next BEGIN.
func Blocks(data []byte) iter.Seq[Block] {
	return func(yield func(Block) bool) {
		var block Block
		begin, offset, number := 0, 0, 0
		for line := range bytes.Lines(data) {
			number++
			if kind, ok := boundary(line, beginning); ok {
				if block.text = data[begin:offset]; block.Kind != "" && !yield(block) {
					return
				}
				block = Block{Kind: kind, Line: number}
				begin = offset
			}
			offset += len(line)
			if kind, ok := boundary(line, "-----END "); ok && block.Kind != "" && kind == block.Kind {
				if block.text = data[begin:offset]; !yield(block) {
					return
				}
				block = Block{}
			}
		}
		if block.text = data[begin:]; block.Kind != "" {
			yield(block)
		}
	}
}

const beginning = "-----BEGIN "

// boundary returns the label of a BEGIN or END line. A line with more dashes is a whole
// file that has lost its line breaks.
func boundary(line []byte, prefix string) (kind string, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(prefix))
	if !ok {
		return "", false
	}
	rest, ok = bytes.CutSuffix(bytes.TrimRight(rest, " \t\r\n"), []byte("-----"))
	return string(rest), ok && len(rest) > 0 && !bytes.Contains(rest, []byte("--"))
}

// IsPrivateKey reports whether the label is that of any kind of private key.
func (b Block) IsPrivateKey() bool {
	return strings.HasSuffix(b.Kind, "PRIVATE KEY") || b.Kind == "PGP PRIVATE KEY BLOCK"
}

// IsCertificate reports whether the label is that of a certificate.
func (b Block) IsCertificate() bool {
	return b.Kind == "CERTIFICATE" || b.Kind == "X509 CERTIFICATE"
}

// A HintError is an error with a hint how to correct it. FILE in the hint stands for
// the file.
type HintError struct {
	Err  error
	Hint string // may be empty
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// Trusted is the label of OpenSSL's own certificate form. TrustedHint is a command that
// converts it to a form that other programs read.
const (
	Trusted     = "TRUSTED CERTIFICATE"
	TrustedHint = "openssl x509 -in FILE -out CERT.pem"
)

// TPMKey is the label of a key that works in one TPM alone (draft-bottomley-tpm2-keys).
const TPMKey = "TSS2 PRIVATE KEY"

// Decode decodes the block. The error is a [*HintError] if there is a hint.
func (b Block) Decode() (*pem.Block, error) {
	block, _ := pem.Decode(b.text)
	if block == nil && endJoined.Match(b.text) {
		return nil, &HintError{fmt.Errorf("PEM block %s at line %d has lost the line break before its END", b.Label(),
			b.Line),
			`sed -i -E 's/([^-])(-----END )/\1\n\2/' FILE`}
	}
	if block == nil {
		return nil, fmt.Errorf("PEM block %s at line %d is damaged or cut off", b.Label(), b.Line)
	}
	return block, nil
}

var endJoined = regexp.MustCompile(`[A-Za-z0-9+/=] *-----END [A-Z0-9 ]+-----`)

// The labels of RFC 7468, and those that OpenSSL, OpenSSH and GnuPG use.
var labels = []string{
	"PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "ANY PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY",
	"OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK", TPMKey,
	"PUBLIC KEY", "RSA PUBLIC KEY", "DSA PUBLIC KEY", "ECDSA PUBLIC KEY", "SSH2 PUBLIC KEY", "PGP PUBLIC KEY BLOCK",
	"CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE", "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST",
	"ATTRIBUTE CERTIFICATE",
	"X509 CRL", "PKCS7", "PKCS #7 SIGNED DATA", "CMS", "PARAMETERS", "EC PARAMETERS", "DSA PARAMETERS", "DH PARAMETERS",
	"X9.42 DH PARAMETERS",
	"PGP SIGNATURE", "PGP MESSAGE", "PGP SIGNED MESSAGE",
}

// Label returns the quoted label for messages if it is well known.
func (b Block) Label() string {
	if slices.Contains(labels, b.Kind) {
		return `"` + b.Kind + `"`
	}
	return "of an unknown kind"
}

// Mangled detects a file with PEM blocks that cannot be found because the file was
// mangled. It returns what is wrong and a command that repairs the file, in which FILE
// stands for the file, or two empty strings.
func Mangled(data []byte) (what, hint string) {
	const utf16 = "UTF-16 text instead of ASCII PEM"
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return utf16, "(umask 077; iconv -f UTF-16 -t ASCII FILE -o KEY.pem)"
	}
	for order, separator := range map[string]string{"LE": "-\x00", "BE": "\x00-"} {
		if bytes.HasPrefix(data, []byte(strings.Repeat(separator, 5))) {
			return utf16, "(umask 077; iconv -f UTF-16" + order + " -t ASCII FILE -o KEY.pem)"
		}
	}
	for line := range bytes.Lines(data) {
		if _, ok := boundary(line, beginning); ok {
			continue
		}
		if before, rest, found := bytes.Cut(line, []byte(beginning)); found {
			return mangled(before, rest)
		}
	}
	return "", ""
}

// mangled is [Mangled] for the text before and after a misplaced BEGIN.
func mangled(before, rest []byte) (what, hint string) {
	const lost = "PEM that has lost its line breaks"
	_, tail, _ := bytes.Cut(rest, []byte("-----"))
	tail = bytes.TrimRight(tail, " \t\r\n")
	switch {
	case len(before) > 0 && len(tail) == 0:
		return "PEM with other text before BEGIN",
			`if that is spaces or quotes: sed -i -E 's/^.*(-----BEGIN )/\1/; s/^[ \t]+//; ` +
				`s/(-----END [A-Z0-9 ]+-----).*/\1/' FILE`
	case bytes.HasPrefix(tail, []byte(`\n`)), bytes.HasPrefix(tail, []byte(`\r`)):
		return lost + ` (written as \n)`,
			`sed -i -E 's/\\r//g; s/\\n/\n/g; s,\\/,/,g; s/(-----END [A-Z0-9 ]+-----)/\1\n/g; ` +
				`s/[^\n]*(-----BEGIN )/\1/g' FILE`
	case bytes.HasPrefix(tail, []byte("\x00")):
		return lost + " (replaced by zero bytes)", `sed -i 's/\x00/\n/g' FILE`
	case bytes.HasPrefix(tail, []byte("\r")):
		return lost + " (replaced by carriage returns)", `sed -i 's/\r/\n/g' FILE`
	case bytes.Contains(tail, []byte("DEK-Info:")):
		return lost, `recreate the file from its source, with shell quotes: printf '%s\n' "$KEY" > FILE`
	}
	return lost, `sed -i -E 's/ *(-----(BEGIN|END) [A-Z0-9 ]+-----) */\n\1\n/g' FILE`
}
