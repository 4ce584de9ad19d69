package signerprogram

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	protocolName    = "modsign-signer"
	protocolVersion = 1

	defaultInFlight = 64
	maxInFlight     = 1024

	maxLine  = 64 << 10 // of the program's output: a signature has 7 KB at most
	maxWords = 500      // runes of the program's own words in a message
)

// The kinds of request. A program may refuse to sign what is no module.
const (
	moduleType = "module"
	digestType = "digest"
)

// A Request is a digest to sign.
type Request struct {
	Hash   string // as CONFIG_MODULE_SIG_HASH spells it, or mldsa65-mu and the like
	Digest []byte

	IsModule bool   // the digest is a module's payload, and what follows is known
	Path     string // of the module in its tree, or empty
	Size     int64  // bytes of the payload
}

// line returns the request as a line. The order of the members is part of the protocol, so
// that sed is enough to read it: members that others choose come last.
func (r *Request) line(id uint64) []byte {
	m := struct {
		MessageType string `json:"message_type"`
		ID          uint64 `json:"id"`
		Hash        string `json:"hash"`
		Digest      string `json:"digest"`
		Size        int64  `json:"size,omitempty"`
		Path        string `json:"path,omitempty"`
	}{MessageType: digestType, ID: id, Hash: r.Hash, Digest: hex.EncodeToString(r.Digest)}
	if r.IsModule {
		m.MessageType, m.Path, m.Size = moduleType, r.Path, r.Size
	}
	return encode(m)
}

// helloLine returns the first line to a program.
func helloLine(certificate []byte) []byte {
	return encode(struct {
		MessageType string `json:"message_type"`
		Protocol    string `json:"protocol"`
		Version     int    `json:"version"`
		Certificate []byte `json:"certificate"`
	}{"hello", protocolName, protocolVersion, certificate})
}

// encode returns a message in the form of a manifest's lines.
func encode(message any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(message); err != nil {
		panic("internal error: " + err.Error()) // strings, numbers and bytes
	}
	return b.Bytes()
}

// parseHello reads the first line of a program, and returns how many requests it takes
// before it has answered the first of them.
func parseHello(line []byte) (inFlight int, err error) {
	m, err := parseMembers(line)
	if err != nil {
		return 0, err
	}
	var kind string
	var version uint64
	var limit *int64
	if err := cmp.Or(m.get("message_type", &kind), m.get("version", &version),
		m.get("max_in_flight", &limit)); err != nil {
		return 0, err
	}
	switch {
	case kind != "hello":
		return 0, errors.New("is not a hello")
	case version != protocolVersion:
		return 0, fmt.Errorf("has version %d of the protocol: this modsign speaks version %d", version, protocolVersion)
	case limit == nil:
		return defaultInFlight, nil
	case *limit < 1:
		return 0, fmt.Errorf("has max_in_flight %d: want 1 or more", *limit)
	}
	return int(min(*limit, maxInFlight)), nil
}

// An answer is a signature, or why there is none.
type answer struct {
	id        uint64
	signature []byte
	err       error
}

// parseAnswer reads any other line of a program.
func parseAnswer(line []byte) (answer, error) {
	m, err := parseMembers(line)
	if err != nil {
		return answer{}, err
	}
	var kind, signature, text string
	var id *uint64
	if err := cmp.Or(m.get("message_type", &kind), m.get("id", &id), m.get("signature", &signature),
		m.get("error", &text)); err != nil {
		return answer{}, err
	}
	switch {
	case kind != "" && kind != moduleType && kind != digestType: // a program may answer with the request, extended
		return answer{}, fmt.Errorf("has the unknown message_type %q", words(kind))
	case id == nil:
		return answer{}, errors.New("has no id")
	case signature == "" && text == "":
		return answer{}, errors.New("has neither a signature nor an error")
	case signature != "" && text != "":
		return answer{}, errors.New("has both a signature and an error")
	case text != "":
		return answer{id: *id, err: fmt.Errorf("the program refuses: %s", words(text))}, nil
	}
	raw, err := base64.StdEncoding.DecodeString(signature)
	if err != nil || len(raw) == 0 {
		return answer{}, errors.New("has a signature that is not base64")
	}
	return answer{id: *id, signature: raw}, nil
}

// members are those of a JSON object, by exactly their names.
type members map[string]json.RawMessage

func parseMembers(line []byte) (members, error) {
	var m members
	switch line = bytes.TrimSpace(line); {
	case len(line) == 0:
		return nil, errors.New("is empty")
	case !utf8.Valid(line):
		return nil, errors.New("is not UTF-8")
	case json.Unmarshal(line, &m) != nil || m == nil:
		return nil, errors.New("is not a JSON object")
	}
	return m, nil
}

// get reads a member into a value. One that is missing or null leaves the value alone.
func (m members) get(name string, value any) error {
	if raw, ok := m[name]; ok && json.Unmarshal(raw, value) != nil {
		return fmt.Errorf("has the wrong type of value for %s", name)
	}
	return nil
}

// words returns a text of the program for a message.
func words(text string) string { return printable(strings.TrimSpace(text)) }

// printable makes one line of a text, without its end if it is long.
func printable(text string) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n > maxWords {
			b.WriteString("...")
			break
		}
		switch {
		case unicode.IsSpace(r):
			r = ' '
		case !unicode.IsPrint(r):
			r = utf8.RuneError
		}
		b.WriteRune(r)
	}
	return b.String()
}
