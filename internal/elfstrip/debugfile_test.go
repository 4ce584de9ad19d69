package elfstrip

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

func debugFile(t testing.TB, b []byte) []byte {
	t.Helper()
	m, err := parse(t, b).DebugFile()
	if err != nil {
		t.Fatal(err)
	}
	if m.Same() {
		t.Fatal("the debug file is the module")
	}
	return bytesOf(t, m)
}

// TestLink compares with strip --strip-debug followed by objcopy --add-gnu-debuglink.
func TestLink(t *testing.T) {
	testmod.Slow(t, "it runs objcopy for many modules")
	inputs := modules(t)
	dir := sourceDir(t)
	for _, name := range []string{"linked", "groups", "macros in groups", "odd"} {
		inputs["amd64-6.12/"+name] = compile(t, dir, compiled[name])
	}
	for name, b := range inputs {
		// File names of all lengths modulo 4.
		for _, file := range []string{"m.debug", "mo.debug", "mod.debug", "mods.debug"} {
			t.Run(name+"/"+file, func(t *testing.T) {
				debug := []byte("not a debug file, but link does not mind")
				objcopy := program(t, name, "objcopy")
				in := testmod.WriteFile(t, "in.ko", binutils(t, program(t, name, "strip"), b))
				if err := os.WriteFile(filepath.Join(filepath.Dir(in), file), debug, 0o666); err != nil {
					t.Fatal(err)
				}
				testmod.Run(t, objcopy, "--add-gnu-debuglink="+filepath.Join(filepath.Dir(in), file), in)
				link := Link{file, crc32.ChecksumIEEE(debug)}
				got := strip(t, b, &link)
				if want := read(t, in); !bytes.Equal(got, want) {
					showDifference(t, got, want)
				}
				// Strip replaces a link, and does not add a second one.
				if again := strip(t, got, &link); !bytes.Equal(again, got) {
					t.Error("linking again changes something")
				}
				other := strip(t, got, &Link{"other.debug", 1})
				if want := strip(t, b, &Link{"other.debug", 1}); !bytes.Equal(other, want) {
					t.Error("a link in the place of another is not that link alone")
				}
				// Without a link to add, an existing link stays.
				if again := strip(t, got, nil); !bytes.Equal(again, got) {
					t.Error("stripping takes the link out")
				}
			})
		}
	}
	for _, name := range []string{"", "a\x00b"} {
		if m, err := parse(t, inputs["arm64/hello"]).Strip(&Link{Name: name}); err == nil || m != nil {
			t.Errorf("a link to %q", name)
		}
	}
}

// TestDebugFile compares a debug file with its module, section by section.
func TestDebugFile(t *testing.T) {
	testmod.Slow(t, "it compares with the files of objcopy for many modules")
	inputs := modules(t)
	dir := sourceDir(t)
	for name, command := range compiled {
		b := compile(t, dir, command)
		if parse(t, b).HasDebugInfo() {
			inputs["amd64-6.12/"+name] = b
		}
	}
	if len(inputs) < len(compiled) {
		t.Fatalf("%d modules with debug information", len(inputs))
	}
	for name, b := range inputs {
		t.Run(name, func(t *testing.T) {
			debug := debugFile(t, b)
			from, to := parse(t, b), parse(t, debug)
			checkStructure(t, debug)
			if len(debug) > len(b) {
				t.Errorf("%d bytes of %d", len(debug), len(b))
			}
			if len(from.sections) != len(to.sections) || from.shstrndx != to.shstrndx {
				t.Fatalf("%d sections of %d", len(to.sections), len(from.sections))
			}
			for i := range from.sections {
				a, z := from.sections[i], to.sections[i]
				old, err1 := from.contents(&a)
				now, err2 := to.contents(&z)
				if err1 != nil || err2 != nil {
					t.Fatal(err1, err2)
				}
				alloc := a.has(elf.SHF_ALLOC) && a.kind != elf.SHT_NOTE || a.isRel() && from.sections[a.info].has(elf.SHF_ALLOC)
				if alloc != (z.kind == elf.SHT_NOBITS) && a.kind != elf.SHT_NOBITS || !alloc && !bytes.Equal(old, now) {
					t.Errorf("section %d (%s) of type %v became %v, %d bytes became %d", i, a.label, a.kind, z.kind, len(old),
						len(now))
				}
				a.off, a.kind, z.off, z.kind = 0, 0, 0, 0
				if a != z {
					t.Errorf("header %+v became %+v", a, z)
				}
			}
			id, err1 := from.BuildID()
			debugID, err2 := to.BuildID()
			if err1 != nil || err2 != nil || !bytes.Equal(id, debugID) {
				t.Errorf("build ID %x (%v) became %x (%v)", id, err1, debugID, err2)
			}
			in := testmod.WriteFile(t, "in.ko", b)
			testmod.Run(t, program(t, name, "objcopy"), "--only-keep-debug", in, in+".debug")
			checkReaders(t, b, debug, read(t, in+".debug"))
		})
	}
}

// checkReaders has readelf and elfutils read a debug file. They may report only
// problems that they also report for objcopy's debug file or for the module.
func checkReaders(t *testing.T, module, debug, objcopy []byte) {
	t.Helper()
	in, out := testmod.WriteFile(t, "module.ko", module), testmod.WriteFile(t, "module.debug", debug)
	peer := testmod.WriteFile(t, "peer.debug", objcopy)
	for _, command := range []string{"readelf -a -W -w", "eu-readelf -a -w"} {
		words := strings.Fields(command)
		pkg := "binutils"
		if strings.HasPrefix(command, "eu-") {
			pkg = "elfutils"
		}
		program := testmod.Program(t, words[0], pkg)
		complaints := func(path string) string {
			cmd := exec.Command(program, append(words[1:], path)...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if _, err := cmd.Output(); err != nil {
				fmt.Fprintln(&stderr, err)
			}
			return strings.NewReplacer(path, "", filepath.Dir(path), "").Replace(stderr.String())
		}
		before, after := complaints(peer), complaints(out)
		if after != "" && after != before {
			t.Errorf("%s: %s", command, after)
		}
	}
	// eu-elflint supports debug files of executables, but not of objects. It may report
	// that a section has no contents.
	lint := testmod.Program(t, "eu-elflint", "elfutils")
	before, _ := exec.Command(lint, in).Output()
	after, _ := exec.Command(lint, out).Output()
	for line := range strings.Lines(string(after)) {
		expected := strings.Contains(line, "is NOBITS") || strings.Contains(line, "has unexpected type 8") ||
			line == "No errors\n"
		if !expected && !strings.Contains(string(before), line) {
			t.Errorf("eu-elflint: %s", line)
		}
	}
}

// TestDebuggers has gdb find the debug file of a stripped module in both ways, and
// resolve lines with it.
func TestDebuggers(t *testing.T) {
	testmod.Slow(t, "it starts debuggers")
	gdb := testmod.Program(t, "gdb", "gdb")
	dir := sourceDir(t)
	for _, flags := range testmod.Few(
		[]string{"-g", "-g3 -gdwarf-4", "-g -gz=zlib", "-g -ffunction-sections -Wl,--unique"}, 1,
	) {
		b := compile(t, dir, "gcc "+flags+" -O1 -r -nostdlib -Wl,--build-id a.c b.c -o %s")
		debug := debugFile(t, b)
		id, err := parse(t, b).BuildID()
		if err != nil || len(id) < 8 {
			t.Fatalf("build ID %x, %v", id, err)
		}
		where := t.TempDir()
		write := func(name string, b []byte) string {
			t.Helper()
			path := filepath.Join(where, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o666); err != nil {
				t.Fatal(err)
			}
			return path
		}
		ask := func(module, debugDir string) string {
			t.Helper()
			return string(testmod.Run(t, gdb, "-nx", "-batch", "-ex", "set debug-file-directory "+debugDir,
				"-ex", "file "+module, "-ex", "info line other", "-ex", "info line init_module"))
		}
		link := &Link{"module.debug", crc32.ChecksumIEEE(debug)}
		byID := write("id/module.ko", strip(t, b, nil))
		write("debug/.build-id/"+hex.EncodeToString(id[:1])+"/"+hex.EncodeToString(id[1:])+".debug", debug)
		byLink := write("link/module.ko", strip(t, b, link))
		write("link/module.debug", debug)
		byWrongLink := write("wrong/module.ko", strip(t, b, &Link{link.Name, link.CRC + 1}))
		write("wrong/module.debug", debug)
		none := filepath.Join(where, "none")
		want := ask(write("module.ko", b), none)
		if !strings.Contains(want, "of \"a.c\"") || !strings.Contains(want, "Line 3 ") ||
			!strings.Contains(want, "Line 4 ") && !strings.Contains(want, "Line 5 ") {
			t.Fatalf("%s: gdb finds no lines in the module itself: %s", flags, want)
		}
		if got := ask(byID, filepath.Join(where, "debug")); got != want {
			t.Errorf("%s: by build ID: %s\nwant %s", flags, got, want)
		}
		if got := ask(byLink, none); got != want {
			t.Errorf("%s: by link: %s\nwant %s", flags, got, want)
		}
		if got := ask(byID, none); got == want {
			t.Errorf("%s: without the debug file: %s", flags, got)
		}
		if strings.Contains(flags, "-g3") {
			// If there is a build ID, it takes precedence over the checksum.
			cut := bytes.Replace(read(t, byWrongLink), id, make([]byte, len(id)), 1)
			if got := ask(write("wrong/other.ko", cut), none); got == want {
				t.Errorf("%s: by a link with the wrong sum: %s", flags, got)
			}
		}
		path := filepath.Join(where, "link/module.debug")
		for program, pkg := range map[string]string{"addr2line": "binutils", "eu-addr2line": "elfutils"} {
			program := testmod.Program(t, program, pkg)
			section := ".text"
			if strings.Contains(flags, "--unique") {
				section = ".init.text"
			}
			args := []string{"-f", "-j", section, "-e"}
			got := testmod.Run(t, program, append(slices.Clone(args), path, "0x8")...)
			want := testmod.Run(t, program, append(args, filepath.Join(where, "module.ko"), "0x8")...)
			if !bytes.Equal(got, want) || !bytes.Contains(got, []byte("a.c:")) {
				t.Errorf("%s: %s says %q of the debug file, %q of the module", flags, program, got, want)
			}
		}
	}
}

func TestDebugFileRefused(t *testing.T) {
	b := modules(t)["amd64-6.12/hello"]
	if m, err := parse(t, strip(t, b, nil)).DebugFile(); !errors.Is(err, ErrNoDebug) || m != nil {
		t.Errorf("of a stripped module: %v", err)
	}
	overlapping := edit(t, b, func(e *editor) { e.section(".modinfo").off-- })
	if m, err := parse(t, overlapping).DebugFile(); !errors.Is(err, ErrShape) || m != nil {
		t.Errorf("of a module with sections that overlap: %v", err)
	}
}
