package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

const thisModule = "github.com/modsign/modsign/"

// mayImport says which packages of this module each package may import: the
// arrows point down, and the public packages do not know each other. Only the
// command meets everything.
var mayImport = map[string][]string{
	"internal/archive":    {"internal/batch", "internal/compress", "internal/module", "internal/pe"},
	"internal/atomicfile": {"internal/dirfd"},
	"internal/batch":      nil,
	"internal/cms":        {"internal/mldsamu"},
	"internal/childenv":   nil,
	"internal/compress":   {"internal/childenv"},
	"internal/detached":   nil,
	"internal/efi":        nil,
	"internal/dirfd":      nil,
	"internal/elfstrip":   {"internal/childenv"},
	"internal/failures":   nil,
	"internal/keyctl":     nil,
	"internal/keyfile":    nil,
	"internal/mldsamu":    nil,
	"internal/gpgagent":   {"internal/keyfile"},
	"internal/transit":    {"internal/batch", "internal/keyfile"},
	"cmd/modsign": {
		"hashlist", "internal/atomicfile", "internal/cms", "internal/compress", "internal/detached",
		"internal/dirfd", "internal/kbuildrun", "internal/keyfile", "internal/module", "internal/onetime",
		"internal/perjob", "internal/rsabatch", "internal/shell", "internal/terminal", "internal/undump", "kbuild",
		"kernelimage", "keygen", "keygen/agent",
		"keygen/audit", "keygen/keyscan", "keygen/keystore", "sign", "sign/manifest", "sign/policy",
		"verify", "verify/explain", "verify/machine",
	},
	"hashlist": {
		"internal/archive", "internal/atomicfile", "internal/dirfd", "internal/elfstrip", "internal/failures",
		"internal/batch", "internal/module", "internal/vmlinux",
	},
	"internal/module":        {"internal/compress", "internal/dirfd"},
	"internal/onetime":       {"internal/atomicfile", "internal/cms", "internal/dirfd", "keygen", "verify"},
	"internal/pe":            nil,
	"internal/perjob":        nil,
	"internal/shell":         nil,
	"internal/pkcs11":        {"internal/cms", "internal/keyfile"},
	"internal/rsabatch":      nil,
	"internal/siglayout":     {"internal/module"},
	"internal/terminal":      nil,
	"internal/undump":        nil,
	"internal/vmlinux":       {"internal/compress", "internal/pe"},
	"internal/signerprogram": {"internal/keyfile"},
	"internal/tpmkey":        {"internal/keyfile"},
	"internal/kbuildrun": {
		"internal/atomicfile", "internal/childenv", "internal/cms", "internal/dirfd", "kbuild", "keygen", "keygen/agent",
		"keygen/keystore", "sign", "hashlist",
	},
	"kbuild":      {"internal/module"},
	"kernelimage": {"internal/atomicfile", "internal/childenv", "internal/vmlinux"},
	"keygen":      {"internal/atomicfile", "internal/cms", "internal/keyfile", "internal/mldsamu"},
	"keygen/agent": {
		"internal/atomicfile", "internal/cms", "internal/dirfd", "internal/failures", "internal/keyfile",
		"internal/batch", "internal/mldsamu", "internal/module", "internal/rsabatch", "internal/undump", "keygen",
	},
	"keygen/keystore": {
		"internal/batch", "internal/childenv", "internal/cms", "internal/gpgagent", "internal/keyfile", "internal/pkcs11",
		"internal/signerprogram", "internal/tpmkey", "internal/transit", "keygen",
	},
	"keygen/audit": {"internal/cms"},
	"keygen/keyscan": {
		"internal/archive", "internal/batch", "internal/cms", "internal/compress", "internal/dirfd", "internal/vmlinux",
	},
	"sign": {
		"internal/atomicfile", "internal/cms", "internal/compress", "internal/dirfd", "internal/elfstrip",
		"internal/failures", "internal/module", "internal/batch", "internal/siglayout", "sign/manifest",
		"sign/policy",
	},
	"sign/manifest": {"internal/atomicfile", "internal/cms", "internal/module"},
	"sign/policy":   {"internal/cms"},
	"verify": {
		"internal/archive", "internal/cms", "internal/compress", "internal/efi", "internal/failures", "internal/keyfile",
		"internal/module",
		"internal/batch", "internal/vmlinux",
	},
	"verify/explain": {
		"internal/archive", "internal/cms", "internal/compress", "internal/keyfile", "internal/module", "internal/shell",
		"verify",
	},
	"verify/machine": {
		"internal/efi", "internal/keyctl", "internal/module", "internal/shell", "verify",
	},
	"internal/testcms": {"internal/cms", "internal/module", "internal/testmod"},
	"internal/testmod": {"internal/mldsamu"},

	// For tests alone, as testmod is.
	"internal/kerneltest":      {"internal/testmod"},
	"internal/kerneltest/init": {"internal/keyctl"},
	"internal/rpmtest":         nil,
	"internal/debtest":         nil,
	"internal/releasetest":     {"internal/testmod"},
	"internal/vaulttest":       nil,
	"integrations":             nil,
}

// doors says which packages may import what others have written, each by as few
// as can be. Without a door it is for tests.
var doors = map[string][]string{
	"filippo.io/mldsa": {
		"internal/cms", "internal/mldsamu", "internal/testmod", "keygen", "keygen/agent", "keygen/keyscan", "keygen/keystore",
	},
	"github.com/ProtonMail/go-crypto": {"internal/detached"},
	"github.com/anchore/go-lzo":       {"internal/compress"},
	"github.com/cloudflare/circl":     {},
	"github.com/google/go-tpm/tpm2":   {"internal/tpmkey"},
	"github.com/klauspost/compress":   {"internal/compress"},
	"github.com/pierrec/lz4/v4":       {"internal/compress", "internal/vmlinux"},
	"github.com/rogpeppe/go-internal": {},
	"github.com/spf13/cobra":          {"cmd/modsign"},
	"github.com/spf13/pflag":          {"cmd/modsign"},
	"github.com/therootcompany/xz":    {"internal/compress"},
	"github.com/ulikunitz/xz":         {"internal/compress"},
	"github.com/ulikunitz/xz/lzma":    {"internal/compress"},
	"go.mozilla.org/pkcs7":            {"internal/detached"},
	"go.yaml.in/yaml/v3":              {},
	"golang.org/x/crypto/cryptobyte":  {"internal/cms", "internal/tpmkey", "keygen", "keygen/keyscan"},
	"golang.org/x/crypto/scrypt":      {"keygen"},
	"golang.org/x/sync":               {"internal/batch"},
	"golang.org/x/sync/semaphore":     {"internal/archive", "internal/module"},
	"golang.org/x/sys/cpu":            {"internal/rsabatch"},
	"golang.org/x/sys/unix": {
		"cmd/modsign", "internal/archive", "internal/atomicfile", "internal/dirfd", "internal/kerneltest",
		"internal/kerneltest/init", "internal/keyctl",
		"internal/module", "internal/perjob", "internal/signerprogram", "internal/terminal", "internal/undump", "kbuild",
		"keygen", "keygen/agent", "keygen/audit", "keygen/keyscan", "sign",
	},
	"golang.org/x/term": {"internal/terminal"},

	"github.com/cyphar/filepath-securejoin": {"internal/module"},
}

type listedPackage struct {
	ImportPath, Dir                             string
	GoFiles, Imports, TestImports, XTestImports []string
}

// listPackages is go list over the module.
func listPackages(t *testing.T) []listedPackage {
	t.Helper()
	out := testmod.Run(
		t,
		"go",
		"list",
		"-C",
		"../..",
		"-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports",
		"./...",
	)
	var packages []listedPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) < len(mayImport) {
		t.Fatalf("go list knows %d packages, and %d are expected", len(packages), len(mayImport))
	}
	return packages
}

// door finds the longest entry of doors that an import path lies in.
func door(path string) (packages []string, known bool) {
	longest := ""
	for prefix, allowed := range doors {
		if (path == prefix || strings.HasPrefix(path, prefix+"/")) && len(prefix) > len(longest) {
			longest, packages, known = prefix, allowed, true
		}
	}
	return packages, known
}

func TestImports(t *testing.T) {
	t.Parallel()
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, thisModule)
		allowed, known := mayImport[name]
		if !known {
			t.Errorf("%s is not in the table of who may import whom", name)
			continue
		}
		for _, path := range p.Imports {
			own, isOwn := strings.CutPrefix(path, thisModule)
			switch first, _, _ := strings.Cut(path, "/"); {
			case isOwn && !slices.Contains(allowed, own):
				t.Errorf("%s imports %s", name, own)
			case isOwn || !strings.Contains(first, "."): // the standard library's have no dot
			default:
				packages, known := door(path)
				if !known || !slices.Contains(packages, name) {
					t.Errorf("%s imports %s, which is for %v alone", name, path, packages)
				}
			}
		}
		for _, path := range slices.Concat(p.TestImports, p.XTestImports) {
			if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") && !strings.HasPrefix(path, thisModule) {
				if _, known := door(path); !known {
					t.Errorf("a test of %s imports %s, which is not in the table", name, path)
				}
			}
		}
	}
}

// TestArchitectureDocumented checks that docs/architecture.md describes every package.
func TestArchitectureDocumented(t *testing.T) {
	t.Parallel()
	packages, _, _ := strings.Cut(readDoc(t, "architecture.md"), "\n## The way of one module")
	for name := range mayImport {
		if !strings.Contains(packages, "\n| `"+name+"` | ") {
			t.Errorf("docs/architecture.md has no row for %s", name)
		}
	}
}

// The words by which a package would speak to the world on its own.
var worldly = regexp.MustCompile(
	`\bos\.(Args|Getenv|LookupEnv|Environ|Stdin|Stdout|Stderr|Exit)\b|\bfmt\.Print|\blog\.(Print|Fatal|Panic)|(?m)^func init\(`,
)

// TestOnlyCommandSpeaks checks that the command alone reads arguments and the
// environment, writes to the terminal, and exits.
func TestOnlyCommandSpeaks(t *testing.T) {
	t.Parallel()
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, thisModule)
		if name == "cmd/modsign" || name == "internal/testmod" || name == "internal/kerneltest/init" {
			continue
		}
		for _, file := range p.GoFiles {
			source, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			// Where temporary files go is the system's business.
			source = bytes.ReplaceAll(source, []byte(`os.Getenv("TMPDIR")`), nil)
			if found := worldly.Find(source); found != nil {
				t.Errorf("%s/%s: %s", name, file, found)
			}
		}
	}
}
