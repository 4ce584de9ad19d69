package module

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// plant creates below dir: files with the content of a module, directories (name/),
// links ("name -> text") and FIFOs ("name |").
func plant(t *testing.T, dir string, content []byte, names ...string) {
	t.Helper()
	for _, name := range names {
		var err error
		link, text, isLink := strings.Cut(name, " -> ")
		fifo, isFIFO := strings.CutSuffix(name, " |")
		path := filepath.Join(dir, choose(isFIFO, fifo, link))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		switch {
		case isLink:
			err = os.Symlink(text, path)
		case isFIFO:
			err = syscall.Mkfifo(path, 0o644)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			err = os.WriteFile(path, content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func choose(is bool, yes, no string) string {
	if is {
		return yes
	}
	return no
}

// TestAsDepmod compares FindLoadable with the real depmod. All modules have different
// names, as depmod lists only one of a name.
func TestAsDepmod(t *testing.T) {
	depmod, err := exec.LookPath("depmod")
	if err != nil {
		if depmod = "/usr/sbin/depmod"; !exists(depmod) {
			t.Skip("no depmod")
		}
	}
	hello, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	modlib := filepath.Join(root, "lib/modules/6.12.0")
	plant(t, root, hello, "outside/o1.ko", "outside/o2.bin", "outside/deep/o3.ko", "tree/s.ko")
	plant(t, modlib, hello,
		"kernel/a.ko", "kernel/.b.ko", "kernel/.c/c.ko", "kernel/dir.ko/d.ko", "kernel/e.ko.bak", "kernel/f",
		"extra/x.bin", "weak-updates/x.ko -> ../extra/x.bin",
		"weak-updates/y.ko -> "+root+"/outside/o2.bin",
		"linked -> ../../../outside", "kernel/readme -> a.ko", "kernel/g.txt -> a.ko",
		"kernel/gone -> nowhere", "kernel/gone.ko -> nowhere", "kernel/fifo.ko |",
		"build -> ../../../tree", "source -> ../../../tree", "kernel/build -> ../../../../tree")
	cmd := exec.Command(depmod, "-b", root, "6.12.0")
	cmd.Stderr = io.Discard
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	dep, err := os.ReadFile(filepath.Join(modlib, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	var listed, loadable, broken []string
	for lines := bufio.NewScanner(bytes.NewReader(dep)); lines.Scan(); {
		name, _, _ := strings.Cut(lines.Text(), ":")
		listed = append(listed, name)
	}
	found, err := FindLoadable(nil, []string{modlib})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range found.Entries {
		if e.Err != nil {
			broken = append(broken, e.Rel)
			continue
		}
		m, err := e.Open(t.Context(), Limits{})
		if err != nil {
			t.Errorf("%s: %v", e.Path, err)
			continue
		}
		m.Close()
		loadable = append(loadable, e.Rel)
	}
	slices.Sort(listed)
	slices.Sort(loadable)
	if len(listed) < 8 || !slices.Equal(listed, loadable) {
		t.Errorf("depmod lists\n%q, and FindLoadable\n%q", listed, loadable)
	}
	if want := []string{"kernel/fifo.ko", "kernel/gone.ko"}; !slices.Equal(broken, want) {
		t.Errorf("not loadable: %q, want %q", broken, want)
	}
	if len(found.Skipped) != 3 {
		t.Errorf("skipped %q, want build, source and kernel/build", found.Skipped)
	}
	// depmod skips a directory of that name; FindLoadable does not, because sign signs
	// its modules.
	plant(t, modlib, hello, "kernel/source/z.ko")
	if found, err := FindLoadable(nil, []string{modlib}); err != nil || len(found.Entries) != len(loadable)+len(broken)+1 {
		t.Errorf("a directory called source: %v, %v", found, err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// names returns the entries' paths and errors.
func names(t *testing.T, root *Root, paths ...string) []string {
	t.Helper()
	found, err := FindLoadable(root, paths)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range found.Entries {
		name := e.Path
		if e.Real != "" {
			name += " = " + e.Real
		}
		if e.Err != nil {
			name += " ! " + e.Err.Error()
		}
		names = append(names, name)
	}
	return names
}

func TestFindLoadable(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if real, err := filepath.EvalSymlinks(dir); err != nil || real != dir {
		t.Skip("the temporary directory lies behind a link")
	}
	plant(t, ".", []byte("x"), "t/extra/a.ko", "t/weak/a.ko -> ../extra/a.ko", "t/weak/loop.ko -> loop.ko",
		"t/two -> extra",
		"t/up -> ..", "t/kernel/self -> .", "t/kernel/k.ko", "o/in/t -> ../../t", "t/zero.ko -> /dev/zero")
	want := []string{
		"t/extra/a.ko",
		"t/kernel/k.ko",
		"t/two/a.ko = " + dir + "/t/extra/a.ko",
		"t/weak/a.ko = " + dir + "/t/extra/a.ko",
		"t/weak/loop.ko ! open t/weak/loop.ko: symbolic link to loop.ko: too many levels of symbolic links",
		"t/zero.ko ! not a regular file",
	}
	if got := names(t, nil, "t"); !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// A file that several paths lead to is listed once.
	if got := names(t, nil, "t/extra", "t", "t/extra/a.ko", "t/weak/a.ko"); len(got) != len(want) {
		t.Errorf("found\n%s\nwant %d", strings.Join(got, "\n"), len(want))
	}
	// Ten directories with links to each other have millions of paths.
	for _, a := range "0123456789" {
		for _, b := range "0123456789" {
			plant(t, "many", nil, string(a)+"/"+string(b)+" -> ../"+string(b))
		}
	}
	if found, err := FindLoadable(nil, []string{"many"}); err == nil {
		t.Errorf("%d modules found, want an error", len(found.Entries))
	}
}

// A root directory resolves paths as chroot does.
func TestRoot(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	plant(t, "img", []byte("x"), "usr/lib/m/a.ko", "lib -> /usr/lib", "l2 -> ../../../../usr/lib",
		"l3 -> usr/../usr/lib/../lib",
		"abs -> "+dir+"/img/usr/lib", "dangling -> /nowhere/x", "loop -> loop", "usr/up -> ../..",
		"usr/lib/rel -> ../../lib/m")
	plant(t, ".", []byte("x"), "link -> img")
	for _, spelled := range []string{"img", "./img/", dir + "/img", "link", "img/usr/..", "img/lib/../img"} {
		root, err := NewRoot(spelled)
		if spelled == "img/lib/../img" { // does not exist: link/.. is relative to the link's target
			if err == nil {
				t.Errorf("%s: %v", spelled, root)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]string{
			"lib/m/a.ko": "usr/lib/m/a.ko", "/lib/m": "usr/lib/m", "l2/m/a.ko": "usr/lib/m/a.ko", "l3/m": "usr/lib/m",
			"abs/m/a.ko": dir[1:] + "/img/usr/lib/m/a.ko", "dangling": "nowhere/x", "usr/up/usr/lib": "usr/lib",
			"../../lib/m": "usr/lib/m", "usr/lib/rel/a.ko": "usr/lib/m/a.ko",
		} {
			got, err := root.Resolve(path)
			if want := filepath.Join(spelled, want); err != nil || got != want {
				t.Errorf("%s in %s: %q, %v; want %q", path, spelled, got, err, want)
			}
		}
		if got, err := root.Resolve("loop/x"); err == nil {
			t.Errorf("a circle: %q", got)
		}
	}
}

// Links in an image lead into the image.
func TestFindLoadableRoot(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	plant(t, ".", []byte("x"), "opt/host.ko", "opt/x.ko", "img/opt/in.ko",
		"img/m/opt -> /opt", "img/m/x.ko -> "+dir+"/opt/x.ko", "img/m/y.ko -> /opt/in.ko",
		"img/m/z.ko -> ../../../../opt/in.ko")
	root, err := NewRoot("img")
	if err != nil {
		t.Fatal(err)
	}
	got, want := names(t, root, "img/m"), []string{
		"img/m/opt/in.ko = img/opt/in.ko",
		"img/m/x.ko ! open img/m/x.ko: symbolic link to " + dir + "/opt/x.ko: no such file or directory",
		"img/m/y.ko = img/opt/in.ko",
		"img/m/z.ko = img/opt/in.ko",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, err := FindLoadable(root, []string{"opt"}); err == nil {
		t.Error("a path outside of the root directory is no error")
	}
}
