//go:build kerneltest

package kerneltest

import (
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/verify"
)

// victim is the module that the cases are made of.
const victim = "kernel/crypto/md4.ko"

// newSigners makes the key of somebody whom a kernel may trust, and one of a stranger.
func newSigners(t testing.TB, tree *Tree) keys {
	t.Helper()
	signers := make(keys)
	for _, name := range []string{"theirs", "stranger"} {
		pair, err := keygen.Generate(keygen.ECDSAP384, keygen.DefaultTemplate())
		if err != nil {
			t.Fatal(err)
		}
		signers[name] = pair
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signers["theirs"].Certificate.Raw})
	if err := os.WriteFile(filepath.Join(tree.Objtree, "theirs.pem"), cert, 0o644); err != nil {
		t.Fatal(err)
	}
	return signers
}

// hashCases are files in the place of the victim, with the verdicts of hashlist verify.
type hashCases struct {
	format compress.Format
	cases  []Case
	want   map[string]hashlist.Verdict
}

func (c *hashCases) add(t testing.TB, name string, verdict hashlist.Verdict, data []byte) {
	t.Helper()
	if c.format != compress.None {
		data = modsignCompress(t, c.format, data)
	}
	c.cases = append(c.cases, Case{Name: name, Data: data, Compressed: c.format != compress.None})
	c.want[name] = verdict
}

// A hashJudge predicts the verdicts of a kernel with hashes from its image.
type hashJudge struct {
	hashes    *hashlist.Embedded
	reference *hashlist.Reference
	keys      *verify.Keyring // with the hashes
	signers   *verify.Keyring // without
}

func newHashJudge(t testing.TB, tree *Tree, order []string) *hashJudge {
	t.Helper()
	kernel, err := hashlist.OpenKernel(tree.Image())
	if err != nil {
		t.Fatal(err)
	}
	judge := &hashJudge{hashes: kernel.Embedded, keys: new(verify.Keyring), signers: new(verify.Keyring)}
	judge.reference, err = hashlist.NewKernelReference(kernel.Embedded, order)
	if err := errors.Join(err, judge.keys.AddHashes(kernel.Embedded), judge.keys.AddImage(tree.Image()),
		judge.signers.AddImage(tree.Image())); err != nil {
		t.Fatal(err)
	}
	return judge
}

// boot lets the kernel decide about the cases, and then loads all modules that it was
// built with. What modsign says comes from the image alone.
func (j *hashJudge) boot(t *testing.T, tree *Tree, c *hashCases, modlib string, modules []string) {
	t.Helper()
	cases := c.cases
	// After the cases that are made of them, because a loaded module does not load again.
	for _, name := range modules {
		if !strings.HasSuffix(name, ".ko"+c.format.Suffix()) {
			t.Errorf("%s is not compressed with %v", name, c.format)
		}
		cases = append(cases, Case{Name: name, File: filepath.Join(modlib, name), Compressed: c.format != compress.None,
			Keep: true})
	}
	loaded := 0
	for i, v := range Boot(t, tree.Image(), cases) {
		if v.Errno == 0 {
			loaded++
		}
		path := cases[i].File
		if path == "" {
			path = j.place(t, c, cases[i])
			j.judgeHash(t, c, v, path)
		}
		predicted := verify.File(t.Context(), j.keys, path)
		if v.Errno != predicted.Errno || !loggedOfHashes(v.Log, predicted.Dmesg) {
			t.Errorf("%s: the kernel says %d (%v) and logs %q; verify says %d (%v), %s, %q, %v", v.Name, int(v.Errno), v.Errno,
				v.Log, int(predicted.Errno), predicted.Errno, predicted.Verdict, predicted.Dmesg, predicted.Err)
		}
		switch {
		case cases[i].File == "":
		case v.Errno != 0 || !predicted.ByHash:
			t.Errorf("%s: %v %q, and verify says %s", v.Name, v.Errno, v.Log, predicted.Verdict)
		case slices.ContainsFunc(v.Log, func(line string) bool { return strings.Contains(line, "verification failed") }):
			t.Errorf("%s has tainted the kernel: %q", v.Name, v.Log)
		}
		if full() && cases[i].File == "" {
			t.Logf("%s: %v %q", v.Name, v.Errno, v.Log)
		}
	}
	t.Logf("%d modules, of which the kernel loads %d", len(cases), loaded)
}

// place writes a case where the victim is installed.
func (j *hashJudge) place(t testing.TB, c *hashCases, file Case) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), victim+c.format.Suffix())
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file.Data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// judgeHash compares what hashlist verify says of a case with the kernel.
func (j *hashJudge) judgeHash(t *testing.T, c *hashCases, v Verdict, path string) {
	t.Helper()
	var verdict hashlist.Verdict
	_, err := j.reference.Verify(t.Context(), strings.TrimSuffix(path, "/"+victim+c.format.Suffix()),
		hashlist.VerifyOptions{
			Signed: func(file string) string {
				if r := verify.File(t.Context(), j.signers, file); r.Verdict == verify.Trusted {
					return r.Signer
				}
				return ""
			},
			Result: func(r hashlist.Result) {
				if r.Path != "" {
					verdict = r.Verdict
				}
			},
		})
	if err != nil && !errors.Is(err, hashlist.ErrRefused) {
		t.Fatal(err)
	}
	if verdict != c.want[v.Name] {
		t.Errorf("%s: hashlist verify says %q, want %q", v.Name, verdict, c.want[v.Name])
	}
	if loads := v.Errno == 0; loads != (verdict == hashlist.Trusted || verdict == hashlist.Signed) {
		t.Errorf("%s: kernel %v %q, hashlist verify %q", v.Name, v.Errno, v.Log, verdict)
	}
}

var judgingHashes = regexp.MustCompile(`^module hashes: `)

// loggedOfHashes is logged with the lines about hashes.
func loggedOfHashes(lines, predicted []string) bool {
	ours := func(lines []string) (hashes, others []string) {
		for _, line := range lines {
			if judgingHashes.MatchString(line) {
				hashes = append(hashes, line)
			} else {
				others = append(others, line)
			}
		}
		return hashes, others
	}
	hashes, others := ours(lines)
	wantHashes, wantOthers := ours(predicted)
	return slices.Equal(hashes, wantHashes) && logged(others, wantOthers)
}

// judgeEither boots a kernel that accepts a hash or a signature.
func (u *user) judgeEither(
	t *testing.T, tree *Tree, format compress.Format, modlib string, modules []string, signers keys,
) {
	t.Helper()
	judge := newHashJudge(t, tree, nil)
	if judge.keys.HashesOnly() || !slices.Contains(judge.keys.Names(), describe(t, signers["theirs"])) {
		t.Errorf("the kernel is to trust %s, and verify finds %q", describe(t, signers["theirs"]), judge.keys.Names())
	}
	merkle := judge.hashes.Root != nil
	payload := read(t, filepath.Join(tree.Objtree, strings.TrimPrefix(victim, "kernel/")))
	whole := decompress(t, filepath.Join(modlib, victim+format.Suffix()))
	foreign := u.foreign(t, tree)
	bent := stripped(t, payload)
	signed := func(by string, data []byte) []byte { return signers.signed(t, by, data) }
	// Of the two forms, with a list and with a tree.
	form := func(list, tree hashlist.Verdict) hashlist.Verdict {
		if merkle {
			return tree
		}
		return list
	}
	cases := hashCases{format: format, want: make(map[string]hashlist.Verdict)}
	for _, c := range []struct {
		name string
		want hashlist.Verdict
		data []byte
	}{
		{"as it was built", form(hashlist.Trusted, hashlist.Unproven), payload},
		{"as it was installed", hashlist.Trusted, whole},
		{"changed", form(hashlist.Extra, hashlist.Changed), changed(whole, len(payload)/2)},
		{"changed and not signed", form(hashlist.Extra, hashlist.Unproven), changed(payload, len(payload)/2)},
		{"stripped", form(hashlist.Extra, hashlist.Unproven), bent},
		{"a foreign one", form(hashlist.Extra, hashlist.Unproven), foreign},

		{"a foreign one, signed", hashlist.Signed, signed("theirs", foreign)},
		{"a foreign one, signed by a stranger", form(hashlist.Extra, hashlist.Unproven), signed("stranger", foreign)},
		{"a foreign one, signed and changed", form(hashlist.Extra, hashlist.Unproven),
			changed(signed("theirs", foreign), len(foreign)/2)},
		{"stripped, and signed then", hashlist.Signed, signed("theirs", bent)},
		{"built with it, and signed", form(hashlist.Trusted, hashlist.Signed), signed("theirs", payload)},
		{"built with it, and signed by a stranger", form(hashlist.Trusted, hashlist.Unproven), signed("stranger", payload)},
		{"installed, and signed", form(hashlist.Trusted, hashlist.Signed), signed("theirs", whole)},
		{"installed, and signed by a stranger", form(hashlist.Trusted, hashlist.Unproven), signed("stranger", whole)},
		{"signed twice", hashlist.Signed, signed("theirs", signed("stranger", payload))},
		{"signed twice, last by a stranger", form(hashlist.Extra, hashlist.Unproven),
			signed("stranger", signed("theirs", payload))},
		{"with a proof of nothing", hashlist.OtherKernel,
			module.AppendSignature(slices.Clone(payload), module.TypeMerkle, hashlist.Proof{}.Append(nil))},
	} {
		cases.add(t, c.name, c.want, c.data)
	}
	if merkle {
		proof := whole[len(payload):]
		cases.add(t, "a foreign one with its proof", hashlist.Changed, slices.Concat(foreign, proof))
		cases.add(t, "stripped, with its proof", hashlist.Changed, slices.Concat(bent, proof))
		cases.add(t, "signed, with its proof", hashlist.Changed, slices.Concat(signed("theirs", payload), proof))
	}
	judge.boot(t, tree, &cases, modlib, modules)
}

// describe names a certificate as the kernel does.
func describe(t testing.TB, pair *keygen.Pair) string {
	t.Helper()
	var keyring verify.Keyring
	if err := keyring.Add(pair.Certificate, ""); err != nil {
		t.Fatal(err)
	}
	return keyring.Names()[0]
}
