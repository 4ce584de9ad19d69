package kbuild

import (
	"maps"
	"path/filepath"
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
		if config, err := ReadConfig(strings.NewReader("CONFIG_B=y\n" + bad)); err == nil ||
			!strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v, %v", bad, config, err)
		}
	}
}

func TestConfigMeaning(t *testing.T) {
	read := func(s string) Config {
		t.Helper()
		config, err := ReadConfig(strings.NewReader(strings.ReplaceAll(s, " ", "\n")))
		if err != nil {
			t.Fatal(err)
		}
		return config
	}
	for s, want := range map[string]string{
		"":                              "",
		"CONFIG_MODULE_COMPRESS_NONE=y": "",
		"CONFIG_MODULE_COMPRESS_GZIP=y CONFIG_BASE_SMALL=0":                                   "gzip", // 5.13 to 6.11
		"CONFIG_MODULE_COMPRESS_XZ=y":                                                         "xz",
		"CONFIG_MODULE_COMPRESS_ZSTD=y CONFIG_MODULE_DECOMPRESS=y":                            "zstd",
		"CONFIG_MODULE_COMPRESS=y CONFIG_MODULE_COMPRESS_XZ=y CONFIG_BASE_SMALL=0":            "xz", // 5.10
		"CONFIG_MODULE_COMPRESS=y CONFIG_MODULE_COMPRESS_XZ=y":                                "",   // 6.12
		"CONFIG_MODULE_COMPRESS=y CONFIG_MODULE_COMPRESS_XZ=y CONFIG_BASE_SMALL=y":            "",
		"CONFIG_MODULE_COMPRESS=y CONFIG_MODULE_COMPRESS_ZSTD=y CONFIG_MODULE_COMPRESS_ALL=y": "zstd",
		"CONFIG_MODULE_COMPRESS=y CONFIG_MODULE_COMPRESS_GZIP=y CONFIG_MODULE_COMPRESS_ALL=y": "gzip",
	} {
		if got := read(s).Compression(); got != want {
			t.Errorf("%s: compression %q, want %q", s, got, want)
		}
	}
	for s, want := range map[string]string{
		"": "rsa", "CONFIG_MODULE_SIG_KEY_TYPE_RSA=y": "rsa", "CONFIG_MODULE_SIG_KEY_TYPE_ECDSA=y": "ecdsa",
		"CONFIG_MODULE_SIG_KEY_TYPE_MLDSA_44=y": "mldsa44", "CONFIG_MODULE_SIG_KEY_TYPE_MLDSA_65=y": "mldsa65",
		"CONFIG_MODULE_SIG_KEY_TYPE_MLDSA_87=y": "mldsa87",
	} {
		if got := read(s).SigKeyType(); got != want {
			t.Errorf("%s: key type %q, want %q", s, got, want)
		}
	}
	config := read(
		`CONFIG_MODULE_SIG_KEY="certs/signing_key.pem" CONFIG_MODULE_SIG_ALL=y CONFIG_SYSTEM_TRUSTED_KEYS="a.pem" CONFIG_X=m`,
	)
	if config.SigKey() != DefaultKey || !config.SigAll() || config.TrustedKeys() != "a.pem" || config.Bool("X") {
		t.Errorf("%v", config)
	}
	over := config.With(
		map[string]string{"CONFIG_MODULE_SIG_KEY": "k", "CONFIG_MODULE_SIG_ALL": "", "CONFIG_NEW": "y", "V": "1"},
	)
	if over.SigKey() != "k" || over.SigAll() || !over.Bool("NEW") || len(over) != 4 {
		t.Errorf("%v", over)
	}
	if config.SigKey() != DefaultKey || !config.SigAll() || len(config) != 4 {
		t.Errorf("With has changed the original: %v", config)
	}
}

func TestHashes(t *testing.T) {
	for format, config := range map[string]Config{
		"":       {"CONFIG_MODULE_HASHES": "y"}, // the series' own, which has no choice
		"list":   {"CONFIG_MODULE_HASHES": "y", "CONFIG_MODULE_HASHES_LIST": "y"},
		"merkle": {"CONFIG_MODULE_HASHES": "y", "CONFIG_MODULE_HASHES_MERKLE": "y", "CONFIG_MODULE_INSTALL_STRIP": "1"},
	} {
		if got := config.HashFormat(); got != format || (config.InstallStrip() == "1") != (format == "merkle") {
			t.Errorf("%v: %q, %q", config, got, config.InstallStrip())
		}
	}
	if (Config)(nil).HashFormat() != "" {
		t.Error("no configuration has hashes")
	}
}

func TestOpenConfigOfRealKernels(t *testing.T) {
	for _, kernel := range testmod.Kernels(t) {
		config, err := OpenConfig(kernel.Config)
		if err != nil {
			t.Fatal(err)
		}
		if hash := config.SigHash(); !strings.HasPrefix(hash, "sha") || config["CONFIG_MODULE_SIG"] != "y" ||
			len(config) < 5000 {
			t.Errorf("%s: hash %q of %d symbols", kernel.Config, hash, len(config))
		}
		want := strings.TrimPrefix(filepath.Ext(kernel.Modules[0]), ".")
		if want == "ko" {
			want = ""
		}
		if got := config.Compression(); got != want {
			t.Errorf("%s: compression %q, but the package has %s", kernel.Config, got, kernel.Modules[0])
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
