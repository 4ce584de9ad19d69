package kbuild

import (
	"maps"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

func TestReadConfig(t *testing.T) {
	config, err := ReadConfig(strings.NewReader(`# Automatically generated file
CONFIG_MODULE_SIG=y
# CONFIG_MODULE_SIG_FORCE is not set

CONFIG_MODULE_SIG_HASH="sha3-512"
CONFIG_CC_VERSION_TEXT="gcc \"12\" \\ =x"
CONFIG_MODULE_SIG_KEY=""
CONFIG_NR_CPUS=8192
`))
	want := Config{
		"CONFIG_MODULE_SIG": "y", "CONFIG_MODULE_SIG_HASH": "sha3-512", "CONFIG_CC_VERSION_TEXT": `gcc "12" \ =x`,
		"CONFIG_MODULE_SIG_KEY": "", "CONFIG_NR_CPUS": "8192",
	}
	if err != nil || !maps.Equal(config, want) {
		t.Errorf("got %v, %v; want %v", config, err, want)
	}
	if config.SigHash() != "sha3-512" || (Config{}).SigHash() != "" {
		t.Errorf("SigHash is %q", config.SigHash())
	}
	for _, bad := range []string{"\x7fELF", "CONFIG_A", "A=y", `CONFIG_A="x`, `CONFIG_A="x\"`, `CONFIG_A="x" y`} {
		if config, err := ReadConfig(strings.NewReader("CONFIG_B=y\n" + bad)); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v, %v", bad, config, err)
		}
	}
}

func TestOpenConfigOfRealKernels(t *testing.T) {
	for _, kernel := range testmod.Kernels(t) {
		config, err := OpenConfig(kernel.Config)
		if err != nil {
			t.Fatal(err)
		}
		if hash := config.SigHash(); !strings.HasPrefix(hash, "sha") || config["CONFIG_MODULE_SIG"] != "y" || len(config) < 5000 {
			t.Errorf("%s: hash %q of %d symbols", kernel.Config, hash, len(config))
		}
	}
}

func FuzzReadConfig(f *testing.F) {
	f.Add("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"a\\\"b\"\n")
	f.Add("CONFIG_C=\"\\")
	f.Fuzz(func(t *testing.T, s string) {
		config, err := ReadConfig(strings.NewReader(s))
		if err == nil && len(config) > strings.Count(s, "=") {
			t.Errorf("%d symbols in %q", len(config), s)
		}
	})
}
