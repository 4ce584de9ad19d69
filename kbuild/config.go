// Package kbuild reads what a kernel's build leaves behind: today its
// configuration.
//
// It knows nothing of keys and signatures.
package kbuild

import (
	"bufio"
	"fmt"
	"io"
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
			return nil, fmt.Errorf("line %d is no kernel configuration: %.40q", n, line)
		}
		if strings.HasPrefix(value, `"`) {
			unquoted, err := unquote(value)
			if err != nil {
				return nil, fmt.Errorf("line %d: %s: %w", n, name, err)
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
				return "", fmt.Errorf("text behind the string %s", strconv.Quote(s[:i+1]))
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

// SigHash is CONFIG_MODULE_SIG_HASH, such as sha512; empty where the kernel
// signs nothing.
func (c Config) SigHash() string { return c["CONFIG_MODULE_SIG_HASH"] }
