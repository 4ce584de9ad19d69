// Package childenv keeps the secrets in an environment from programs that need none of them.
package childenv

import (
	"slices"
	"strings"
)

// WithoutSecrets returns an environment without the PINs, passphrases and tokens of keys.
func WithoutSecrets(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return name == "KBUILD_SIGN_PIN" || strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "BAO_") ||
			strings.HasPrefix(name, "AWS_")
	})
}
