package transit

import (
	"strings"
	"testing"
)

func TestDecodeResults(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"data":{"batch_results":[{"signature":"vault:v2:QUJD"},{"error":"no"}]}}`:          "",
		`{"data":{"batch_results":[{"signature":"vault:v2:QUJD"}]}}`:                         "1 results for 2 digests",
		`{"data":{"batch_results":[{"signature":"vault:v2:QUJD"},{},{}]}}`:                   "3 results for 2 digests",
		`{"data":{"batch_results":[{"signature":"vault:v1:QUJD"},{}]}}`:                      "version 1 of the key, not with 2",
		`{"data":{"batch_results":[{"signature":"vault:v0:QUJD"},{}]}}`:                      "no version",
		`{"data":{"batch_results":[{"signature":"QUJD"},{}]}}`:                               "does not begin with",
		`{"data":{"batch_results":[{"signature":"vault:v2:QUJ"},{}]}}`:                       "not in base64",
		`{"data":{"batch_results":[{"signature":"vault:v2:"},{}]}}`:                          "not in base64",
		`{"data":{"batch_results":[{"signature":2},{}]}}`:                                    "not that of a transit engine",
		`{"data":{"batch_results":[{"signature":"vault:v2:QUJD"},{"error":"no"}]}} trailing`: "not that of a transit engine",
		`{}`: "0 results for 2 digests",
		``:   "not that of a transit engine",
	} {
		_, err := decodeResults([]byte(text), 2, 2)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// FuzzAnswer decodes answers of all kinds.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"data":{"batch_results":[{"signature":"vault:v2:QUJD"},{"error":"no"}]}}`), 2)
	f.Add([]byte(`{"data":{"type":"aes256-gcm96","latest_version":1,"keys":{"1":1700000000}}}`), 0)
	f.Add([]byte(`{"data":{"type":"rsa-2048","latest_version":2,"min_encryption_version":1,`+
		`"keys":{"2":{"public_key":"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}}}}`), 1)
	f.Add([]byte(`{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`), 1)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		n &= 0xff
		results, err := decodeResults(data, n, 0)
		if err == nil && len(results) != n {
			t.Errorf("%d results, want %d", len(results), n)
		}
		for _, r := range results {
			if (r.Signature == nil) == (r.message == "") {
				t.Errorf("neither a signature nor an error, or both: %+v", r)
			}
		}
		if d, err := decodeKey(data); err == nil {
			if version, err := d.choose("no key", 0); err == nil {
				t.Errorf("version %d is of no key", version)
			}
		}
		k := &Key{c: Config{Token: "s3cret"}}
		if clean := k.clean(decodeErrors(data)); len(clean) > 310 || strings.ContainsAny(clean, "\n\x1b") ||
			strings.Contains(clean, "s3cret") {
			t.Errorf("message %q", clean)
		}
	})
}
