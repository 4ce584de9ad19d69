package childenv

import (
	"slices"
	"testing"
)

// TestWithoutSecrets has the environment of a program that modsign starts.
func TestWithoutSecrets(t *testing.T) {
	t.Parallel()
	environ := []string{
		"HOME=/h", "KBUILD_SIGN_PIN=x", "VAULT_TOKEN=x", "BAO_TOKEN=x", "AWS_SECRET_ACCESS_KEY=x", "GNUPGHOME=/g",
	}
	if got, want := WithoutPIN(environ), append(environ[:1:1], environ[2:]...); !slices.Equal(got, want) {
		t.Errorf("without the PIN: %q, want %q", got, want)
	}
	got := WithoutSecrets(environ)
	if want := []string{"HOME=/h", "GNUPGHOME=/g"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
