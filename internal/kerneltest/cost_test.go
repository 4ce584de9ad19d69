//go:build kerneltest

package kerneltest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestCost measures the cost of each way to trust modules in the same kernel: bytes of
// vmlinux and of its boot image, and the time to load modules. It asserts what does not
// depend on the machine. docs/hashlist.md has the numbers.
func TestCost(t *testing.T) {
	if !full() {
		return // five configurations that test nothing else
	}
	u := newUser(t)
	tree := u.hashedTree(t, linux6, "plain", Base+hashing)
	const (
		none = unsigned + "# CONFIG_MODULE_HASHES is not set\n# CONFIG_MODULE_SIG_FORCE is not set\n"
		bare = "# CONFIG_CRYPTO_SHA1 is not set\n# CONFIG_CRYPTO_SHA3 is not set\n" +
			"# CONFIG_CRYPTO_SHA512 is not set\n# CONFIG_CRYPTO_SHA256 is not set\n# CONFIG_KEYS is not set\n"
		// Debian's kernel needs SHA-256 to look up blacklisted modules.
		signed = "# CONFIG_MODULE_HASHES is not set\nCONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_ALL=y\n" +
			"CONFIG_MODULE_SIG_FORCE=y\nCONFIG_CRYPTO_SHA256=y\n"
	)
	type cost struct{ text, vmlinux, image int64 }
	costs := make(map[string]cost)
	loads := make(map[string][]int64) // average in ns: a small module, a larger one
	for _, way := range []struct{ name, config string }{
		{"nothing", none + bare},
		{"list", list + bare},
		{"merkle", hashing + "# CONFIG_MODULE_HASHES_LIST is not set\n" + bare},
		{"RSA-4096", signed +
			"CONFIG_MODULE_SIG_SHA512=y\nCONFIG_MODULE_SIG_KEY_TYPE_RSA=y\n# CONFIG_CRYPTO_ECDSA is not set\n"},
		{"P-384", signed + "CONFIG_MODULE_SIG_SHA384=y\nCONFIG_MODULE_SIG_KEY_TYPE_ECDSA=y\n"},
	} {
		if way.name == "list" {
			way.config = strings.Replace(hashing, "CONFIG_MODULE_HASHES_MERKLE=y\n", "", 1) + way.config
		}
		tree.Reconfigure(t, way.config+"CONFIG_CRYPTO_ZSTD=m\n") // a larger module
		u.make(t, tree, "vmlinux", "modules")
		out := u.run(t, "", testmod.Program(t, "size", "binutils"), filepath.Join(tree.Objtree, "vmlinux"))
		var c cost
		var data, bss int64
		if _, err := fmt.Sscan(strings.SplitN(out, "\n", 2)[1], &c.text, &data, &bss, &c.vmlinux); err != nil {
			t.Fatal(err)
		}
		u.make(t, tree)
		c.image = int64(len(read(t, tree.Image())))
		costs[way.name] = c
		root := t.TempDir()
		u.make(t, tree, "-s", "CONFIG_MODULE_COMPRESS_ALL=", "INSTALL_MOD_PATH="+root, "modules_install")
		modlib, modules := installed(t, root)
		// Two modules without dependencies, after those that they need.
		const small, larger = "kernel/lib/lz4/lz4_compress.ko", "kernel/lib/zstd/zstd_compress.ko"
		var cases []Case
		for _, name := range modules {
			if strings.Contains(name, "zstd_common") || strings.Contains(name, "xxhash") {
				cases = append(cases, Case{Name: name, File: filepath.Join(modlib, name), Keep: true})
			}
		}
		before := len(cases)
		for i := range 1000 { // the kernel's clock ticks every 4 ms
			cases = append(cases, Case{Name: fmt.Sprint("small ", i), File: filepath.Join(modlib, small)})
			cases = append(cases, Case{Name: fmt.Sprint("larger ", i), File: filepath.Join(modlib, larger)})
		}
		var sum [2]int64
		for i, v := range Boot(t, tree.Image(), cases) {
			if v.Errno != 0 {
				t.Fatalf("%s: %s: %v %q", way.name, v.Name, v.Errno, v.Log)
			}
			if i >= before {
				sum[(i-before)%2] += v.Nanos
			}
		}
		loads[way.name] = []int64{sum[0] / 1000, sum[1] / 1000}
		plus := 0
		for _, name := range modules {
			plus += len(read(t, filepath.Join(modlib, name))) - len(read(t,
				filepath.Join(tree.Objtree, strings.TrimPrefix(name, "kernel/"))))
		}
		t.Logf("%s: text %d, vmlinux %d, bzImage %d, %d modules with %d bytes more each; "+
			"of %d bytes loads in %d us, of %d in %d us",
			way.name, c.text, c.vmlinux, c.image, len(modules), plus/len(modules),
			len(read(t, filepath.Join(modlib, small))), loads[way.name][0]/1000, len(read(t, filepath.Join(modlib, larger))),
			loads[way.name][1]/1000)
	}
	for _, way := range []string{"list", "merkle", "P-384", "RSA-4096"} {
		t.Logf("%s: %+d bytes of vmlinux, %+d of bzImage", way, costs[way].vmlinux-costs["nothing"].vmlinux,
			costs[way].image-costs["nothing"].image)
	}
	for _, hashes := range []string{"list", "merkle"} {
		if keys := costs["RSA-4096"].text - costs["nothing"].text; costs[hashes].text-costs["nothing"].text > keys/4 {
			t.Errorf("%s takes more than a quarter of the %d bytes that keys take", hashes, keys)
		}
	}
}
