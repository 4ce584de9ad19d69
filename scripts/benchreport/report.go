package main

import (
	"fmt"
	"io"
	"strings"
)

var titles = map[string]string{
	"rsa4096": "RSA-4096, sha512", "rsa2048": "RSA-2048, sha256",
	"p384": "ECDSA P-384, sha384", "p256": "ECDSA P-256, sha256",
	"mldsa65": "ML-DSA-65", "verify-mldsa65": "verify, ML-DSA-65",
	"zstd": "P-384, modules in zstd", "xz": "P-384, modules in xz", "verify": "verify, RSA-4096",
	"hash-list": "hash list", "hash-bare": "hash list, beside bare hashing",
	"hash-merkle": "Merkle tree, proofs appended",
	"strip-p384":  "strip and sign, P-384", "strip-rsa4096": "strip and sign, RSA-4096",
	"one-p384": "100 calls of `sign-file`, one module each, P-384", "one-rsa4096": "the same, RSA-4096",
	"null-make":    "`make` of a tree that is up to date",
	"install-p384": "ECDSA P-384", "install-p384-strip": "ECDSA P-384, `INSTALL_MOD_STRIP=1`",
	"install-rsa4096": "RSA-4096", "install-rsa4096-strip": "RSA-4096, `INSTALL_MOD_STRIP=1`",
	"many-rsa4096": "RSA-4096", "many-p384": "ECDSA P-384", "many-list": "hash list",
	"many-merkle": "Merkle tree, proofs appended",
}

var tools = map[string]string{
	"sign-file-n1": "`sign-file`, xargs -n1", "sign-file-n16": "`sign-file`, xargs -n16",
	"strip-sign-file": "`strip`, then `sign-file`, each xargs -n1", "openssl": "`openssl cms -verify`, xargs -n1",
	"dgst-n1": "`openssl dgst`, xargs -n1", "dgst-n16": "`openssl dgst`, xargs -n16",
	"bare": "SHA-256 in Go, and no more", "shake": "SHAKE256 in Go, and no more",
	"unsynced": "modsign, `--sync none`", "sha256sum": "`sha256sum`, xargs -n500",
	"modsign": "modsign", "batch": "modsign, `--rsa batch`", "sign-file": "the kernel's `sign-file`",
	"plain": "without the hook", "hook": "with the hook",
}

// called is the name for people, or the name itself.
func called(names map[string]string, name string) string {
	if known, ok := names[name]; ok {
		return known
	}
	return name
}

func writeReport(w io.Writer, all *results) {
	fact := func(name string) string { return all.facts[name] }
	fmt.Fprintf(w, `# Performance

Made by `+"`scripts/bench`"+` from [bench/results.txt](bench/results.txt). Run it on your machine, with your kernel.

![make modules_install](performance.svg)

- machine: %s, %s processors, %s; shared with other work, so look at the ratios
- modules: %s of Debian's %s, %s MB without signatures and compression
- peer: the kernel's `+"`sign-file`"+` (%s) under `+"`xargs -P%[2]s`"+`, %[8]s; modsign: %[9]s, without cgo
- each row: alternating rounds, each run on a fresh copy of the tree; median (fastest to slowest)
- modsign flushes its files to disk before it ends (`+"`--sync=tree`"+`, the default), and that time counts; sign-file
  does not flush
- strip rows: the same number of files with debug information, each with an inode of its own: copies of the modules
  that scripts/kernel-test builds
- hash rows: `+"`hashlist build`"+`, which reads the modules and writes only the list; the Merkle row also appends a
  proof to each module, compared with `+"`sign-file`"+` with P-384 and sha384
- ML-DSA rows: beside the hash that ML-DSA makes of each module, as `+"`sign-file`"+` cannot make such signatures with
  OpenSSL before 4.0
- `+"`--rsa batch`"+`: eight RSA signatures at a time, by default only with one-time keys ([rsabatch.md](rsabatch.md)); a
  processor without AVX-512 IFMA has no such row, as it signs one at a time in any case
- ratio: wall time per module divided by that of the row's first line, round by round
- peak memory is that of the largest single process; several `+"`sign-file`"+` run at a time

| what | with | modules | wall s | CPU s | peak MiB | modules/s | ratio |
|---|---|---|---|---|---|---|---|
`, fact("cpu"), fact("processors"), fact("filesystem"), fact("modules"), fact("kernel"), fact("megabytes"),
		fact("sign-file"), fact("openssl"), fact("go"))
	for _, r := range all.rows {
		if !strings.HasPrefix(r.name, "install-") && r.name != "scale" {
			writeRow(w, r)
		}
	}
	fmt.Fprint(w, `
No gain for xz: compression dominates, and takes the same time however xz is started.
`)
	writeInstalls(w, all)
	writeScale(w, all)
}

func writeRow(w io.Writer, r *row) {
	for _, t := range r.tools {
		wall, modules := t.wall(), t.runs[0].modules
		fmt.Fprintf(w, "| %s | %s | %d | %.2f (%.2f to %.2f) | %.1f | %d | %.0f | %v |\n",
			called(titles, r.name), called(tools, t.name), modules, wall.median, wall.low, wall.high,
			t.of(func(r run) float64 { return r.cpu }).median, (t.peak()+512)/1024, float64(modules)/wall.median,
			ratio(t, r.tools[0]))
	}
}

func writeInstalls(w io.Writer, all *results) {
	fmt.Fprintf(w, `
## make modules_install

All of `+"`make -j%[1]s modules_install`"+`, on object trees of Linux %[2]s (`+"`sha512`"+`, no compression) with the same %[3]s
modules in the place of the kernel's own: without signing (`+"`CONFIG_MODULE_SIG_ALL=`"+`), with Kbuild's own
`+"`sign-file`"+` and a key that openssl made, and with the hook ([kbuild.md](kbuild.md)), where modsign's agent holds the key.

- each row: alternating rounds of the three, after one to warm up, each to a new directory; median (lowest to highest); a
  ratio is the median of the rounds' ratios
- all with `+"`DEPMOD=true`"+`, as depmod does the same work for all; after each signed run, outside the measured time,
  modsign verify trusts every module
- neither Kbuild nor the hook flushes files to disk
- Debian's modules are stripped already: with `+"`INSTALL_MOD_STRIP=1`"+`, Kbuild runs strip once a module, the hook looks at
  each module itself, and neither finds anything to remove

| what | unsigned, s | stock, s | with the hook, s | hook ÷ stock | hook ÷ unsigned |
|---|---|---|---|---|---|
`, all.facts["processors"], all.facts["linux"], all.facts["modules"])
	for _, r := range all.rows {
		if strings.HasPrefix(r.name, "install-") {
			unsigned, stock, hooked := r.tool("unsigned"), r.tool("stock"), r.tool("hooked")
			fmt.Fprintf(w, "| %s | %v | %v | %v | %v | %v |\n", called(titles, r.name),
				unsigned.wall(), stock.wall(), hooked.wall(), ratio(hooked, stock), ratio(hooked, unsigned))
		}
	}
}

func writeScale(w io.Writer, all *results) {
	r := all.row("scale")
	if r == nil {
		return
	}
	fmt.Fprint(w, `
## More modules

![time and memory by the number of modules](scale.svg)

`+"`modsign sign`"+` with ECDSA P-384, on copies of the same modules, each a file of its own:

| modules | wall s | ms for a module | peak MiB |
|---|---|---|---|
`)
	for _, t := range r.tools {
		fmt.Fprintf(w, "| %d | %v | %.3f | %d |\n",
			t.runs[0].modules, t.wall(), 1000*t.of(run.perModule).median, (t.peak()+512)/1024)
	}
}
