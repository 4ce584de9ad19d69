package policy

import (
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/mldsamu"
)

// parse reads a policy of lines, after the first one.
func parse(t testing.TB, lines ...string) *Policy {
	t.Helper()
	p, err := Parse("test.policy", strings.NewReader("policy 1\n"+strings.Join(lines, "\n")+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var noon = time.Date(2027, 6, 30, 12, 0, 0, 0, time.UTC)

// good is a module that the policies of TestRefusals allow, but for one thing.
func good() Module {
	sum := sha256.Sum256([]byte("good"))
	return Module{
		Path:   "6.12.0/kernel/drivers/net/snd-dummy.ko",
		Tags:   []string{"license=GPL", "name=snd_dummy", "vermagic=6.12.0 SMP preempt mod_unload "},
		SHA256: sum[:],
	}
}

// TestRefusals changes one thing of a module, or of the run, that the policy allows.
func TestRefusals(t *testing.T) {
	whole := []string{
		"path *.ko", // line 2
		"path **/kernel/drivers/net/**",
		"not-path **/staging/**", // 4
		"name snd-*",
		"not-name *-evil", // 6
		"vermagic 6.12.* SMP *",
		"license GPL", // 8
		"license GPL v2",
		"hash sha512", // 10
		"hash sha256",
		"list kernel.hashes", // 12
		"max-modules 2",
		"expires 2027-07-01", // 14
	}
	listed := sha256.Sum256([]byte("good"))
	tag := func(name, value string) func(*Module) {
		return func(m *Module) {
			m.Tags = slices.DeleteFunc(m.Tags, func(t string) bool { return strings.HasPrefix(t, name+"=") })
			if value != "" {
				m.Tags = append(m.Tags, value)
			}
		}
	}
	path := func(path string) func(*Module) { return func(m *Module) { m.Path = path } }
	for _, c := range []struct {
		what   string
		change func(*Module)
		want   string
	}{
		{"another directory", path("6.12.0/kernel/fs/snd-dummy.ko"),
			`refused by test.policy:2: path: the path "6.12.0/kernel/fs/snd-dummy.ko" is in none of 2 lines`},
		{"a directory of a longer name", path("6.12.0/kernel/drivers/network/snd-dummy.ko"), ":2: path: "},
		{"an asterisk is no slash", path("sub/snd-dummy.ko"), ":2: path: "},
		{"an excluded directory", path("6.12.0/kernel/drivers/net/staging/snd-dummy.ko"),
			`:4: not-path: the path "6.12.0/kernel/drivers/net/staging/snd-dummy.ko" fits "**/staging/**"`},
		{"another file name", path("dummy.ko"), `:5: name: the name "dummy" is not "snd-*"`},
		{"another name in the module", tag("name", "name=evil"), `:5: name: the name "evil" is not "snd-*"`},
		{"a second name in the module", func(m *Module) { m.Tags = append(m.Tags, "name=evil") }, `:5: name: `},
		{"an excluded file name", path("snd-evil.ko"), `:6: not-name: the name "snd_evil" fits "*-evil"`},
		{"an excluded name in the module", tag("name", "name=snd_evil"), `:6: not-name: `},
		{"another kernel", tag("vermagic", "vermagic=6.13.0 SMP preempt mod_unload "),
			`:7: vermagic: the vermagic "6.13.0 SMP preempt mod_unload" is not "6.12.* SMP *"`},
		{"no vermagic", tag("vermagic", ""), ":7: vermagic: the module has no vermagic"},
		{"a second vermagic", func(m *Module) { m.Tags = append(m.Tags, "vermagic=6.13.0 SMP ") }, ":7: vermagic: "},
		{"vermagic not known", func(m *Module) { m.Tags = nil }, ":7: vermagic: the module's vermagic is not known"},
		{"another license", tag("license", "license=Proprietary"),
			`:8: license: the license "Proprietary" is in none of 2 lines`},
		{"a license in small letters", tag("license", "license=gpl"), ":8: license: "},
		{"a license with more words", tag("license", "license=GPL v2 or so"), ":8: license: "},
		{"no license", tag("license", ""), ":8: license: the module has no license"},
		{"a second license", func(m *Module) { m.Tags = append(m.Tags, "license=Proprietary") }, ":8: license: "},
		{"not in the list", func(m *Module) { m.SHA256[0]++ },
			":12: list: kernel.hashes does not have the module's SHA-256, "},
		{"SHA-256 not known", func(m *Module) { m.SHA256 = nil }, ":12: list: the module's SHA-256 is not known"},
	} {
		p := parse(t, whole...)
		if err := p.SetList([]byte("text"), [][32]byte{listed}); err != nil {
			t.Fatal(err)
		}
		m := good()
		if err := p.Check(&m); err != nil {
			t.Fatalf("%s: the good module: %v", c.what, err)
		}
		c.change(&m)
		err := p.Check(&m)
		if _, ok := errors.AsType[*RefusedError](err); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.what, err, c.want)
		}
	}
	p := parse(t, whole...)
	m := good()
	if err := p.Check(&m); err == nil || !strings.Contains(err.Error(), ":12: list: kernel.hashes was not read") {
		t.Errorf("without the list: %v", err)
	}
	if err := p.CheckRun(noon, crypto.SHA256, 2); err != nil {
		t.Errorf("the good run: %v", err)
	}
	late := noon.Add(12 * time.Hour)
	list, license := parse(t, "path **", "list x"), parse(t, "path **", "license GPL")
	ends := parse(t, "path **", "expires 2027-06-30T12:00:00Z")
	mu := parse(t, "path **", "hash mldsa65-mu")
	if err := mu.CheckRun(noon, mldsamu.Mu65, 1); err != nil {
		t.Errorf("a run with an ML-DSA key: %v", err)
	}
	for want, err := range map[string]error{
		`:3: hash: the hash "mldsa87-mu" is not`:                               mu.CheckRun(noon, mldsamu.Mu87, 1),
		`:3: hash: the hash "sha512" is not`:                                   mu.CheckRun(noon, crypto.SHA512, 1),
		`:10: hash: the hash "sha1" is in none of 2 lines`:                     p.CheckRun(noon, crypto.SHA1, 2),
		`:13: max-modules: 3 modules are to be signed, and 2 may be`:           p.CheckRun(noon, crypto.SHA256, 3),
		`:14: expires: the policy has expired; it is 2027-07-01T00:00:00Z now`: p.CheckRun(late, crypto.SHA256, 1),
		`:7: vermagic: a manifest does not tell it`:                            p.CheckManifest(crypto.SHA256),
		`:3: list: it has SHA-256, and the digests of the manifest are sha512`: list.CheckManifest(crypto.SHA512),
		`:3: license: a manifest does not tell it`:                             license.CheckManifest(crypto.SHA512),
		`:3: expires: the policy has expired; it is 2027-06-30T12:00:00Z now`:  ends.CheckRun(noon, crypto.SHA256, 1),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := parse(t, "path **", "list x", "name *").CheckManifest(crypto.SHA256); err != nil {
		t.Errorf("a list and a manifest of SHA-256: %v", err)
	}
}

func TestAllows(t *testing.T) {
	for _, c := range []struct {
		line    string
		allowed []string // paths
		refused []string
	}{
		{"path **", []string{"a.ko", "a/b.ko", "a/b/c.ko"}, nil},
		{"path *", []string{"a.ko"}, []string{"a/b.ko"}},
		{"path */*", []string{"a/b.ko"}, []string{"b.ko", "a/b/c.ko"}},
		{"path **/net/*.ko", []string{"net/a.ko", "x/net/a.ko", "x/y/net/a.ko", "net/net/a.ko"},
			[]string{"a.ko", "net/x/a.ko", "inet/a.ko"}},
		{"path kernel/**", []string{"kernel/a.ko", "kernel/x/a.ko"}, []string{"a.ko", "kernels/a.ko", "x/kernel/a.ko"}},
		{"path a?c.ko", []string{"abc.ko", "aßc.ko"}, []string{"ac.ko", "a/c.ko", "abbc.ko"}},
		{"path a*b*c.ko", []string{"abc.ko", "aXbYbZc.ko"}, []string{"acb.ko", "abc.ko.ko.c"}},
		{"name snd_hda-*", []string{"x/snd-hda-intel.ko", "snd_hda_intel.ko"}, []string{"snd-hda.ko", "snd_hda-/intel.ko"}},
		{"name *", []string{"a.ko", "b/a.ko"}, nil},
	} {
		p := parse(t, c.line)
		for _, path := range c.allowed {
			if err := p.Check(&Module{Path: path}); err != nil {
				t.Errorf("%s: %v", c.line, err)
			}
		}
		for _, path := range c.refused {
			if err := p.Check(&Module{Path: path}); err == nil {
				t.Errorf("%s allows %s", c.line, path)
			}
		}
	}
}

func TestParse(t *testing.T) {
	p, err := Parse("p", strings.NewReader(
		"# who may sign what\n\n \t\npolicy\t1 # the form\npath  **/a#b.ko\t# no comment before the sign\nlicense GPL  v2\n",
	))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Check(&Module{Path: "x/a#b.ko", Tags: []string{"license=GPL  v2"}}); err != nil {
		t.Error(err)
	}
	long := strings.Repeat("#\n", 1<<19) + "#"
	for _, test := range [][2]string{
		{"", `p:1: the file is empty`},
		{"# nothing\n\n", `p:2: the file is empty`},
		{"path **\n", `p:1: not a policy: its first line is "policy 1"`},
		{"policy 2\n", `p:1: not a policy`},
		{"policy\n", `p:1: not a policy`},
		{"-----BEGIN PRIVATE KEY-----\nMIIsecret\n",
			`p:1: not a policy: its first line is "policy 1", apart from comments`},
		{"policy 1\n", `p:1: the policy does not say which modules it allows: want path, name or list`},
		{"policy 1\nvermagic *\nexpires 2030-01-01\n", `p:3: the policy does not say which modules`},
		{"policy 1\npolicy 1\n", `p:2: a second line policy`},
		{"policy 1\npath **\nPath a\n", `p:3: unknown keyword "Path": want one of expires, hash, `},
		{"policy 1\npaths **\n", `p:2: unknown keyword "paths"`},
		{"policy 1\npath\n", `p:2: path without a value`},
		{"policy 1\npath # all\n", `p:2: path without a value`},
		{"policy 1\npath **\nname a", `p:3: the file is cut off: its last line has no line feed`},
		{"policy 1\r\npath **\r\n", `p:1: the line has a control character, such as the carriage return`},
		{"policy 1\npath \xff\n", `p:2: the line is not UTF-8`},
		{"policy 1\npath \ufffd\n", `p:2: the line is not UTF-8`},
		{"\ufeffpolicy 1\n", `p:1: not a policy`},
		{"policy 1\npath a\tb\n", `p:2: the value has a tab in it`},
		{"policy 1\npath a\npath b\npath a\n", `p:4: path is in line 2 already`},
		{"policy 1\npath /lib/**\n", `p:2: path: the pattern "/lib/**" has an empty part`},
		{"policy 1\npath a//b\n", `p:2: path: the pattern "a//b" has an empty part`},
		{"policy 1\npath a/\n", `p:2: path: the pattern "a/" has an empty part`},
		{"policy 1\npath ../a\n", `p:2: path: the pattern "../a" has an empty part, or the part . or ..`},
		{"policy 1\npath a/**.ko\n", `p:2: path: the pattern "a/**.ko" has ** beside other characters`},
		{"policy 1\npath [ab].ko\n", `p:2: path: patterns have the wildcards * and ? alone`},
		{"policy 1\npath {a,b}.ko\n", `p:2: path: patterns have`},
		{"policy 1\npath a\\*.ko\n", `p:2: path: patterns have`},
		{"policy 1\npath **\nnot-path **\n", `p:3: not-path: ** is every path: the policy allows nothing`},
		{"policy 1\nname net/a\n", `p:2: name: a name has no slash`},
		{"policy 1\nname a.ko\n", `p:2: name: the name of a module has no suffix .ko`},
		{"policy 1\nname **\n", `p:2: name: the pattern "**" has **, which is for paths alone`},
		{"policy 1\npath **\nnot-name *\n", `p:3: not-name: * is every name: the policy allows nothing`},
		{"policy 1\npath **\nvermagic 6.[0-9]\n", `p:3: vermagic: patterns have`},
		{"policy 1\npath **\nhash md5\n", `p:3: hash: hash "md5": `},
		{"policy 1\npath **\nhash SHA512\n", `p:3: hash: hash "SHA512" is spelled sha512`},
		{"policy 1\npath **\nmax-modules 0\n", `p:3: max-modules: want a number of modules from 1`},
		{"policy 1\npath **\nmax-modules 010\n", `p:3: max-modules: want`},
		{"policy 1\npath **\nmax-modules 1 2\n", `p:3: max-modules: want`},
		{"policy 1\npath **\nmax-modules 1\nmax-modules 2\n", `p:4: max-modules is in line 3 already`},
		{"policy 1\npath **\nexpires 2027-02-30\n", `p:3: expires: want a day such as`},
		{"policy 1\npath **\nexpires tomorrow\n", `p:3: expires: want a day`},
		{"policy 1\npath **\nexpires 2027-06-30T12:00:00+02:00\n", `p:3: expires: want a day`},
		{"policy 1\npath **\nexpires 2027-06-30\nexpires 2028-06-30\n", `p:4: expires is in line 3 already`},
		{"policy 1\nlist a\nlist b\n", `p:3: list is in line 2 already`},
		{"policy 1\nlist ./a\n", `p:2: list: "./a" is not in its shortest form`},
		{"policy 1\npath **\nlist-sha256 " + strings.Repeat("0", 64) + "\n", `p:3: list-sha256 without a list`},
		{"policy 1\nlist a\nlist-sha256 " + strings.Repeat("A", 64) + "\n",
			`p:3: list-sha256: want 64 hexadecimal digits`},
		{"policy 1\nlist a\nlist-sha256 0011\n", `p:3: list-sha256: want 64 hexadecimal digits`},
		{"policy 1\npath " + strings.Repeat("a", 9000) + "\n", `p:2: the line has more than 8192 bytes`},
		{long, `p: the policy has more than 1048576 bytes`},
	} {
		text, want := test[0], test[1]
		p, err := Parse("p", strings.NewReader(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.80q: got %v, want %s", text, err, want)
		}
		if err != nil && (p != nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "BEGIN")) {
			t.Errorf("%.80q: policy %v, error %v", text, p, err)
		}
	}
}

func TestSetList(t *testing.T) {
	text := []byte("a list")
	digest := sha256.Sum256(text)
	p := parse(t, "list kernel.hashes", "list-sha256 "+hex.EncodeToString(digest[:]))
	if p.List() != "kernel.hashes" || !p.NeedsSHA256() {
		t.Errorf("list %q", p.List())
	}
	one, other := [][32]byte{{1}}, parse(t, "path **")
	for want, err := range map[string]error{
		"test.policy:3: list-sha256: the SHA-256 of kernel.hashes is ":          p.SetList([]byte("another"), one),
		"test.policy:2: list: kernel.hashes lists no module: the policy allows": p.SetList(text, nil),
		"test.policy names no hash list":                                        other.SetList(text, one),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := p.SetList(text, one); err != nil {
		t.Fatal(err)
	}
	if err := p.Check(&Module{Path: "a.ko", SHA256: append([]byte{1}, make([]byte, 31)...)}); err != nil {
		t.Error(err)
	}
}

// FuzzParse checks that what is accepted is no accident: every line that is no comment is a
// rule, and the rules alone, written again, are the same policy.
func FuzzParse(f *testing.F) {
	f.Add("policy 1\npath **/kernel/**\nnot-path **/staging/**\n", "6.12.0/kernel/a.ko")
	f.Add("# a\npolicy 1\nname a-* # b\nvermagic 6.* SMP*\nlicense GPL v2\nmax-modules 4\nexpires 2027-06-30\n", "a-b.ko")
	f.Add("policy 1\nlist a\nlist-sha256 "+strings.Repeat("0", 64)+"\nhash sha3-512\n", "a.ko")
	f.Fuzz(func(t *testing.T, text, path string) {
		p, err := Parse("p", strings.NewReader(text))
		if err != nil {
			return
		}
		m := Module{Path: path, Tags: []string{"vermagic=" + path, "license=" + path}}
		first := p.Check(&m)
		again := []string{"policy 1\n"}
		rules := 0
		for keyword, list := range p.rules {
			for _, r := range list {
				again = append(again, fmt.Sprintf("%s\t%s\n", keyword, r.value))
				rules++
			}
		}
		q, err := Parse("p", strings.NewReader(strings.Join(again, "")))
		if err != nil {
			t.Fatalf("%q: %v", again, err)
		}
		if second := q.Check(&m); (first == nil) != (second == nil) {
			t.Errorf("%v, and %v", first, second)
		}
		lines := 0
		for line := range strings.Lines(text) {
			if line = strings.Trim(line, " \t\n"); line != "" && line[0] != '#' {
				lines++
			}
		}
		if lines != rules+1 {
			t.Errorf("%d lines, and %d rules", lines, rules)
		}
	})
}
