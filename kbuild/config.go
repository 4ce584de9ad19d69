package kbuild

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
)

// A Config is the configuration of a kernel: .config, include/config/auto.conf, or the
// config-VERSION that distributions install in /boot. A key is the whole name of a symbol,
// such as CONFIG_MODULE_SIG. A value has no quotes. A symbol that is not set is absent.
type Config map[string]string

// ReadConfig reads a configuration in the format of Kconfig:
//
//	# CONFIG_A is not set
//	CONFIG_B=y
//	CONFIG_C="a string with \" and \\ escaped"
//
// An error names the line, and does not quote it: the file may be a private key.
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
			return nil, fmt.Errorf("line %d is not kernel configuration", n)
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

// unquote removes the quotes of a string, in which a backslash protects any character.
func unquote(s string) (string, error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			if i != len(s)-1 {
				return "", errors.New("text after the string")
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
	return "", errors.New("string without a closing quote")
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

// DefaultKey is the default of CONFIG_MODULE_SIG_KEY, and the only value for which
// Kbuild makes a key.
const DefaultKey = "certs/signing_key.pem"

// With returns a copy that the variables of a command line of make override. It takes
// those whose names begin with CONFIG_. As for make's ifdef, an empty value unsets.
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

// Bool reports whether a symbol is y. The name comes without CONFIG_.
func (c Config) Bool(name string) bool { return c["CONFIG_"+name] == "y" }

// SigHash is CONFIG_MODULE_SIG_HASH, such as sha512, or empty if the kernel is
// configured without signatures.
func (c Config) SigHash() string { return c["CONFIG_MODULE_SIG_HASH"] }

// SigKey is CONFIG_MODULE_SIG_KEY: a file relative to the object tree, a pkcs11: URI,
// or empty.
func (c Config) SigKey() string { return c["CONFIG_MODULE_SIG_KEY"] }

// SigKeyType is the type of the key that Kbuild makes for [DefaultKey]: rsa, ecdsa,
// mldsa44, mldsa65 or mldsa87. Kernels before 5.13 have no such symbol and use rsa.
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

// SigAll reports whether modules_install signs. As in scripts/Makefile.modinst,
// CONFIG_MODULE_SIG_ALL alone decides: with CONFIG_IMA_APPRAISE_MODSIG a kernel can have
// it without CONFIG_MODULE_SIG.
func (c Config) SigAll() bool { return c.Bool("MODULE_SIG_ALL") }

// TrustedKeys is CONFIG_SYSTEM_TRUSTED_KEYS, a PEM file of certificates that the kernel
// trusts besides the one of its signing key.
func (c Config) TrustedKeys() string { return c["CONFIG_SYSTEM_TRUSTED_KEYS"] }

// Compression is the format in which modules_install compresses modules: gzip, xz, zstd,
// or empty for none.
func (c Config) Compression() string {
	// Up to 5.12, CONFIG_MODULE_COMPRESS meant to compress all modules. From 5.13 on
	// there was none. In 6.12 it came back as a menu, and CONFIG_MODULE_COMPRESS_ALL
	// means to compress all. CONFIG_BASE_SMALL, a number up to 6.10, tells which one it is.
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

// HashFormat is the format of the module hashes in a kernel with CONFIG_MODULE_HASHES:
// list, merkle, or empty for a kernel without them.
func (c Config) HashFormat() string {
	switch {
	case c.Bool("MODULE_HASHES_LIST"):
		return "list"
	case c.Bool("MODULE_HASHES_MERKLE"):
		return "merkle"
	}
	return ""
}

// InstallStrip is the value of INSTALL_MOD_STRIP when a kernel with CONFIG_MODULE_HASHES
// was built. The kernel has the hashes of modules that are stripped this way.
func (c Config) InstallStrip() string { return c["CONFIG_MODULE_INSTALL_STRIP"] }
