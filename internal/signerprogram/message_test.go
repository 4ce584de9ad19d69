package signerprogram

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestLines(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		request Request
		want    string
	}{
		{
			Request{Hash: "sha3-256", Digest: []byte{0xab, 0xcd, 0}},
			`{"message_type":"digest","id":7,"hash":"sha3-256","digest":"abcd00"}`,
		},
		{
			Request{Hash: "sha512", Digest: []byte{1}, IsModule: true, Path: `a/"b\<.ko`, Size: 12},
			`{"message_type":"module","id":7,"hash":"sha512","digest":"01","size":12,"path":"a/\"b\\<.ko"}`,
		},
		{
			Request{Hash: "sha512", Digest: []byte{1}, IsModule: true, Size: 12, Path: "a\n\xff\u2028"},
			`{"message_type":"module","id":7,"hash":"sha512","digest":"01","size":12,"path":"a\n\ufffd\u2028"}`,
		},
	} {
		if got := string(test.request.line(7)); got != test.want+"\n" {
			t.Errorf("%s\nwant\n%s", got, test.want)
		}
	}
	want := `{"message_type":"hello","protocol":"modsign-signer","version":1,"certificate":"MAA="}` + "\n"
	if got := string(helloLine([]byte{0x30, 0})); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestParseHello(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]any{
		`{"message_type":"hello","version":1}`:                       defaultInFlight,
		` {"more":[1],"version":1 ,"message_type":"hello"}` + "\r":   defaultInFlight,
		`{"message_type":"hello","version":1,"max_in_flight":null}`:  defaultInFlight,
		`{"message_type":"hello","version":1,"max_in_flight":1}`:     1,
		`{"message_type":"hello","version":1,"max_in_flight":1024}`:  1024,
		`{"message_type":"hello","version":1,"max_in_flight":99999}`: 1024,
		`{"message_type":"hello","version":1,"max_in_flight":0}`:     "has max_in_flight 0: want 1 or more",
		`{"message_type":"hello","version":1,"max_in_flight":-1}`:    "has max_in_flight -1: want 1 or more",
		`{"message_type":"hello","version":1,"max_in_flight":"8"}`:   "has the wrong type of value for max_in_flight",
		`{"message_type":"hello","version":1,"max_in_flight":1.5}`:   "has the wrong type of value for max_in_flight",
		`{"message_type":"hello","version":1,"max_in_flight":1e30}`:  "has the wrong type of value for max_in_flight",
		`{"message_type":"hello","version":2}`:                       "has version 2 of the protocol: this modsign speaks version 1",
		`{"message_type":"hello"}`:                                   "has version 0 of the protocol: this modsign speaks version 1",
		`{"message_type":"hello","version":"1"}`:                     "has the wrong type of value for version",
		`{"version":1}`:                                              "is not a hello",
		`{"Message_Type":"hello","version":1}`:                       "is not a hello",
		`{"message_type":"module","id":1,"signature":"AAAA"}`:        "is not a hello",
		``:                             "is empty",
		"\t \r":                        "is empty",
		`hello`:                        "is not a JSON object",
		`null`:                         "is not a JSON object",
		`[]`:                           "is not a JSON object",
		`{"message_type":"hello"} {}`:  "is not a JSON object",
		"{\"message_type\":\"h\xff\"}": "is not UTF-8",
	} {
		n, err := parseHello([]byte(line))
		if text, ok := want.(string); ok && (err == nil || err.Error() != text) || !ok && (err != nil || n != want) {
			t.Errorf("%s: %d, %v, want %v", line, n, err, want)
		}
	}
}

func TestParseAnswer(t *testing.T) {
	t.Parallel()
	full := strings.Repeat("ü", maxWords)
	for line, want := range map[string]answer{
		`{"id":1,"signature":"c2ln"}`:                                           {id: 1, signature: []byte("sig")},
		`{ "signature" : "c2ln" , "id" : 18446744073709551615 , "error":null }`: {id: 1<<64 - 1, signature: []byte("sig")},
		`{"message_type":"module","id":1,"path":"a","error":"","signature":"c2ln"}`: {
			id: 1, signature: []byte("sig"),
		},
		`{"message_type":"digest","id":1,"signature":"c2\nln"}`: {id: 1, signature: []byte("sig")}, // base64 without -w 0
		`{"id":1,"ID":2,"signature":"c2ln","Error":"no"}`:       {id: 1, signature: []byte("sig")},
	} {
		got, err := parseAnswer([]byte(line))
		if err != nil || got.id != want.id || string(got.signature) != string(want.signature) || got.err != nil {
			t.Errorf("%s: %v, %v", line, got, err)
		}
	}
	for line, want := range map[string]string{
		`{"id":3,"error":"no such key"}`:                               "the program refuses: no such key",
		`{"id":3,"signature":"","error":"\u001b[2Jone\ntwo\u202e"}`:    "the program refuses: \ufffd[2Jone two\ufffd",
		`{"id":3,"error":"` + full + `"}`:                              "the program refuses: " + full,
		`{"id":3,"error":"` + full + `x"}`:                             "the program refuses: " + full + "...",
		`{"message_type":"digest","id":3,"error":"  a\t b ","more":1}`: "the program refuses: a  b",
	} {
		got, err := parseAnswer([]byte(line))
		if err != nil || got.id != 3 || got.signature != nil || got.err == nil || got.err.Error() != want {
			t.Errorf("%s: %v, %v, want %s", line, got, err, want)
		}
	}
	for line, want := range map[string]string{
		``:                                          "is empty",
		`{}`:                                        "has no id",
		`{"signature":"c2ln"}`:                      "has no id",
		`{"id":null,"signature":"c2ln"}`:            "has no id",
		`{"id":"1","signature":"c2ln"}`:             "has the wrong type of value for id",
		`{"id":-1,"signature":"c2ln"}`:              "has the wrong type of value for id",
		`{"id":1.5,"signature":"c2ln"}`:             "has the wrong type of value for id",
		`{"id":1e99,"signature":"c2ln"}`:            "has the wrong type of value for id",
		`{"id":1}`:                                  "has neither a signature nor an error",
		`{"id":1,"signature":""}`:                   "has neither a signature nor an error",
		`{"id":1,"signature":"\n"}`:                 "has a signature that is not base64",
		`{"id":1,"signature":"c2l"}`:                "has a signature that is not base64",
		`{"id":1,"signature":"c2 n"}`:               "has a signature that is not base64",
		`{"id":1,"signature":["c2ln"]}`:             "has the wrong type of value for signature",
		`{"id":1,"error":{"code":3}}`:               "has the wrong type of value for error",
		`{"id":1,"signature":"c2ln","error":"but"}`: "has both a signature and an error",
		`{"message_type":"hello","version":1}`:      `has the unknown message_type "hello"`,
		`{"message_type":"a\u0007","id":1,"signature":"c2ln"}`:     `has the unknown message_type "a` + "\ufffd" + `"`,
		`{"message_type":7,"id":1,"signature":"c2ln"}`:             "has the wrong type of value for message_type",
		"{\"id\":1,\"signature\":\"c2ln\",\"x\":\"\xed\xa0\x80\"}": "is not UTF-8",
		`{"id":1,"signature":"c2ln"}{}`:                            "is not a JSON object",
		`{"id":1,"signature":"c2ln"`:                               "is not a JSON object",
		`[{"id":1,"signature":"c2ln"}]`:                            "is not a JSON object",
		strings.Repeat("[", maxLine):                               "is not a JSON object",
	} {
		if got, err := parseAnswer([]byte(line)); err == nil || err.Error() != want {
			t.Errorf("%.80s: %v, %v, want %s", line, got, err, want)
		}
	}
}

// FuzzAnswer checks that what is understood of an answer is what a program meant, and can
// be shown to people.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"id":1,"signature":"c2ln"}`, `{"id":2,"error":"no such key"}`,
		`{"message_type":"module","id":1,"signature":"c2ln"}`,
		`{"message_type":"hello","version":1,"max_in_flight":8}`, `{"message_type":"hello","version":1}`,
		`{"id":1,"signature":null,"error":"\u001b[31m\ud800"}`, `{"id":1e0}`, `[[[`, "\xff", ``, `null`, `{"id":1}{"id":2}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if n, err := parseHello(line); err == nil && (n < 1 || n > maxInFlight) {
			t.Errorf("%q: %d requests at once", line, n)
		} else {
			shown(t, err)
		}
		a, err := parseAnswer(line)
		if err != nil {
			shown(t, err)
			return
		}
		again := map[string]any{"id": a.id}
		if a.err != nil {
			shown(t, a.err)
			again["error"] = "x"
		} else {
			again["signature"] = base64.StdEncoding.EncodeToString(a.signature)
		}
		if (a.err == nil) != (len(a.signature) > 0) {
			t.Errorf("%q: %v", line, a)
		}
		text, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		b, err := parseAnswer(text)
		if err != nil || b.id != a.id || string(b.signature) != string(a.signature) || (b.err == nil) != (a.err == nil) {
			t.Errorf("%q became %v, %v by %s", line, b, err, text)
		}
	})
}

// shown checks that a text is one short line.
func shown(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := err.Error()
	hidden := strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
	if hidden || utf8.RuneCountInString(text) > 2*maxWords {
		t.Errorf("not to be shown: %q", text)
	}
}
