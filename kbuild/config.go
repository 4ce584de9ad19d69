// Package kbuild tells what a kernel's build tree says: its configuration, its
// release, its modules, and where they are installed; and it has the hook by
// which modsign takes part in a build.
//
// It does not sign and holds no keys.
package kbuild

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
)

// Config is a kernel's configuration: .config, include/config/auto.conf, or the
// config-VERSION that distributions install in /boot. The keys are whole, as in
// CONFIG_MODULE_SIG; strings have no quotes. What is not set is not in it.
type Config map[string]string

// ReadConfig reads a configuration, the format of which is
//
//	# CONFIG_A is not set
//	CONFIG_B=y
//	CONFIG_C="a string with \" and \\ escaped"
//
// An error names the line.
func ReadConfig(r io.Reader) (Config, error) {
	config := make(Config)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || !strings.HasPrefix(name, "CONFIG_") {
			return nil, fmt.Errorf("line %d is no kernel configuration", n) // it may be anything, a key for one
		}
		if strings.HasPrefix(value, `"`) {
			unquoted, err := unquote(value)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			value = unquoted
		}
		config[name] = value
	}
	return config, lines.Err()
}

// unquote takes the quotes off a string, in which a backslash protects the next
// character, whatever it is.
func unquote(s string) (string, error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			if i != len(s)-1 {
				return "", fmt.Errorf("text behind the string")
			}
			return b.String(), nil
		case '\\':
			i++
			if i == len(s) {
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return "", fmt.Errorf("the string does not end")
}

// OpenConfig reads the configuration in a file.
func OpenConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	config, err := ReadConfig(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return config, nil
}

// DefaultKey is the value of CONFIG_MODULE_SIG_KEY, and the only one, for which
// Kbuild makes a key itself.
const DefaultKey = "certs/signing_key.pem"

// With returns a copy over which make's command line has been laid. Of vars it
// takes what begins with CONFIG_. An empty value unsets, as it does for make's
// ifdef.
func (c Config) With(vars map[string]string) Config {
	config := make(Config, len(c))
	maps.Copy(config, c)
	for name, value := range vars {
		switch {
		case !strings.HasPrefix(name, "CONFIG_"):
		case value == "":
			delete(config, name)
		default:
			config[name] = value
		}
	}
	return config
}

// Bool reports whether a symbol is y. Its name has no CONFIG_.
func (c Config) Bool(name string) bool { return c["CONFIG_"+name] == "y" }

// SigHash is CONFIG_MODULE_SIG_HASH, such as sha512; empty where the kernel
// signs nothing.
func (c Config) SigHash() string { return c["CONFIG_MODULE_SIG_HASH"] }

// SigKey is CONFIG_MODULE_SIG_KEY: a file, relative to the object tree, or a
// pkcs11: URI; empty where there is none.
func (c Config) SigKey() string { return c["CONFIG_MODULE_SIG_KEY"] }

// SigKeyType is the type of the key that is made for DefaultKey: rsa, ecdsa,
// mldsa44, mldsa65 or mldsa87. Kernels before 5.13 do not ask, and have RSA.
func (c Config) SigKeyType() string {
	for symbol, name := range map[string]string{
		"ECDSA": "ecdsa", "MLDSA_44": "mldsa44", "MLDSA_65": "mldsa65", "MLDSA_87": "mldsa87",
	} {
		if c.Bool("MODULE_SIG_KEY_TYPE_" + symbol) {
			return name
		}
	}
	return "rsa"
}

// SigAll reports whether modules_install signs. It goes by CONFIG_MODULE_SIG_ALL
// alone, as scripts/Makefile.modinst does: with CONFIG_IMA_APPRAISE_MODSIG that
// is there without CONFIG_MODULE_SIG.
func (c Config) SigAll() bool { return c.Bool("MODULE_SIG_ALL") }

// TrustedKeys is CONFIG_SYSTEM_TRUSTED_KEYS, a PEM file of certificates which the
// kernel trusts besides that of its signing key.
func (c Config) TrustedKeys() string { return c["CONFIG_SYSTEM_TRUSTED_KEYS"] }

// Compression is how modules_install compresses: gzip, xz or zstd, or empty when
// it does not.
func (c Config) Compression() string {
	// CONFIG_MODULE_COMPRESS has been two things. Up to 5.12 it was to compress
	// all. From 6.12 on it is a menu, and CONFIG_MODULE_COMPRESS_ALL is to
	// compress all. Between, there was none. CONFIG_BASE_SMALL was a number up
	// to 6.10, which tells one from the other.
	_, notNumber := strconv.Atoi(c["CONFIG_BASE_SMALL"])
	if c.Bool("MODULE_COMPRESS") && notNumber != nil && !c.Bool("MODULE_COMPRESS_ALL") {
		return ""
	}
	for _, format := range []string{"gzip", "xz", "zstd"} {
		if c.Bool("MODULE_COMPRESS_" + strings.ToUpper(format)) {
			return format
		}
	}
	return ""
}

// HashFormat is the form of the hashes by which a kernel with CONFIG_MODULE_HASHES
// knows its modules: list or merkle; empty where it has none.
func (c Config) HashFormat() string {
	switch {
	case c.Bool("MODULE_HASHES_LIST"):
		return "list"
	case c.Bool("MODULE_HASHES_MERKLE"):
		return "merkle"
	}
	return ""
}

// InstallStrip is INSTALL_MOD_STRIP as it was when a kernel with CONFIG_MODULE_HASHES
// was built: the hashes are those of modules that are stripped so.
func (c Config) InstallStrip() string { return c["CONFIG_MODULE_INSTALL_STRIP"] }
