package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
)

// TestKeyHints has the hints that depend on more than the reason, and the name of a file
// that a shell would take for more.
func TestKeyHints(t *testing.T) {
	t.Parallel()
	insecure := func(e keygen.InsecureError) error {
		return &keygen.LoadError{Path: "a key", Reason: keygen.ErrInsecure, Err: &e}
	}
	for want, err := range map[string]error{
		"":                                 errors.New("another error"),
		"chmod 600 'a key'":                insecure(keygen.InsecureError{Mode: 0o644}),
		"its owner can: chmod 600 'a key'": insecure(keygen.InsecureError{Mode: 0o644, NotOwner: true}),
		"its mount is read-only: have it mounted with mode 0400 (Kubernetes: defaultMode of the secret's volume)": insecure(
			keygen.InsecureError{Mode: 0o644, ReadOnly: true}),
		"openssl pkey -inform DER -in x.der -out KEY.pem": &keygen.LoadError{
			Path: "x.der", Reason: keygen.ErrDER, Err: keygen.ErrDER,
		},
		"mend x.pem": &keygen.LoadError{Path: "x.pem", Reason: keygen.ErrMangled,
			Err: &keyfile.HintError{Err: errors.New("mangled"), Hint: "mend FILE"}},
		"the next make makes a new key, and links its certificate into the kernel": &keygen.LoadError{Path: "x.pem",
			Err: fmt.Errorf("gone: %w", &agent.UnavailableError{})},
		"modsign agent start opens the key again": &keygen.LoadError{Path: "x.pem",
			Err: fmt.Errorf("gone: %w", &agent.UnavailableError{Kept: true})},
	} {
		if got := keyHint(err); got != want {
			t.Errorf("hint for %v is %q, want %q", err, got, want)
		}
	}
	err := nameInsecureFlag(insecure(keygen.InsecureError{Mode: 0o644}))
	if f, ok := errors.AsType[*failure](err); !ok ||
		!strings.HasSuffix(f.hint, "chmod 600 'a key' # or sign with it as it is: --allow-insecure-key") {
		t.Errorf("%#v", err)
	}
}
