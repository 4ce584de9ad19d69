// Package childenv keeps the secrets in an environment from programs that need none of them.
package childenv

import (
	"slices"
	"strings"
)

// WithoutPIN returns an environment without the PIN of a kernel's build.
func WithoutPIN(environ []string) []string { return without(environ, isPIN) }

// WithoutSecrets returns an environment without the PINs, passphrases and tokens of keys.
func WithoutSecrets(environ []string) []string {
	return without(environ, func(name string) bool {
		return isPIN(name) || strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "BAO_") ||
			strings.HasPrefix(name, "AWS_")
	})
}

func isPIN(name string) bool { return name == "KBUILD_SIGN_PIN" }

// without returns an environment without the variables whose names are secret.
func without(environ []string, secret func(name string) bool) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return secret(name)
	})
}
