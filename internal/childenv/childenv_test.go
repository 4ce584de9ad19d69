package childenv

import (
	"slices"
	"testing"
)

// TestWithoutSecrets has the environment of a program that modsign starts.
func TestWithoutSecrets(t *testing.T) {
	t.Parallel()
	got := WithoutSecrets([]string{
		"HOME=/h", "KBUILD_SIGN_PIN=x", "VAULT_TOKEN=x", "BAO_TOKEN=x", "AWS_SECRET_ACCESS_KEY=x", "GNUPGHOME=/g",
	})
	if want := []string{"HOME=/h", "GNUPGHOME=/g"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
