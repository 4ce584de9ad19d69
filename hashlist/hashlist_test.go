package hashlist

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func testList(n int) *List {
	l := &List{Release: "6.12.0-rc1+test"}
	for i := range n {
		hash, size, err := Sum(bytes.NewReader(payload(i)))
		if err != nil {
			panic(err)
		}
		l.Modules = append(l.Modules, Module{fmt.Sprintf("kernel/drivers/m %d.ko", i), size, hash})
	}
	return l
}

func text(t testing.TB, l *List) string {
	t.Helper()
	var b strings.Builder
	if err := l.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSum(t *testing.T) {
	data := []byte("test")
	if hash, size, err := Sum(bytes.NewReader(data)); err != nil || size != 4 || hash != sha256.Sum256(data) {
		t.Errorf("%v, %d, %v", hash, size, err)
	}
	failed := errors.New("failed")
	if _, _, err := Sum(iotest.ErrReader(failed)); err != failed {
		t.Error(err)
	}
}

func TestText(t *testing.T) {
	for _, n := range []int{0, 1, 2, 100} {
		l := testList(n)
		s := text(t, l)
		got, err := Parse(iotest.OneByteReader(strings.NewReader(s)))
		if err != nil || !reflect.DeepEqual(got, l) {
			t.Errorf("%d modules: %+v, %v", n, got, err)
		}
		section := l.Embedded().Append(nil, binary.LittleEndian)
		if len(section) != 32*n {
			t.Errorf("a section of %d bytes for %d modules", len(section), n)
		}
		for i := range n {
			if want := sha256.Sum256(payload(i)); !bytes.Equal(section[32*i:][:32], want[:]) {
				t.Errorf("%d of %d: %x", i, n, section[32*i:][:32])
			}
		}
	}
}

// The example of the package comment.
func ExampleList_Write() {
	l := List{Release: "6.12.0"}
	for i, content := range []string{"test", "test2"} {
		hash, size, _ := Sum(strings.NewReader(content))
		l.Modules = append(l.Modules, Module{fmt.Sprintf("kernel/fs/%c.ko", 'a'+i), size, hash})
	}
	var b strings.Builder
	fmt.Println(l.Write(&b))
	fmt.Print(b.String())
	// Output:
	// <nil>
	// modsign hash list 1 6.12.0
	// 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08       4 kernel/fs/a.ko
	// 60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752       5 kernel/fs/b.ko
	// 2
}

// What is changed in any way is refused, or is another list.
func TestParseRefuses(t *testing.T) {
	l := testList(3)
	good := text(t, l)
	lines := strings.SplitAfter(good, "\n")
	for i := range len(good) {
		if got, err := Parse(strings.NewReader(good[:i])); err == nil {
			t.Fatalf("cut off at %d: %+v", i, got)
		}
	}
	for name, bad := range map[string]string{
		"line 1":                                "",
		"does not begin with":                   "# " + good,
		"not a kernel release":                  strings.Replace(good, l.Release, "6.12 0", 1),
		"twice":                                 lines[0] + lines[1] + lines[1] + "2\n",
		"is not the last line":                  good + lines[1],
		"\"4\" is not the number of modules, 3": lines[0] + lines[1] + lines[2] + lines[3] + "4\n",
		"no end":                                strings.TrimSuffix(good, "\n"),
		"not a hash":                            lines[0] + strings.ToUpper(lines[1]) + "1\n",
		"not a path below":                      lines[0] + strings.Replace(lines[1], "kernel/", "../", 1) + "1\n",
		"not a valid path":                      lines[0] + strings.Replace(lines[1], "kernel/", "ker\tnel/", 1) + "1\n",
		"line 2: too long":                      lines[0] + strings.Repeat("a", 2*maxLine) + "\n",
		"line 3: not a hash of 64": strings.Join(lines[:2], "") +
			strings.Replace(lines[2], "       ", "      0", 1) + lines[3] + "3\n",
	} {
		if got, err := Parse(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := Parse(strings.NewReader(lines[0] + lines[1] + lines[3] + lines[4])); err == nil ||
		!strings.Contains(err.Error(), "line 4: \"3\" is not the number of modules, 2") {
		t.Errorf("a line is missing: %v", err)
	}
	failed := errors.New("failed")
	if _, err := Parse(iotest.ErrReader(failed)); !errors.Is(err, failed) {
		t.Error(err)
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, change := range map[string]func(*List){
		"release":      func(l *List) { l.Release = "" },
		"twice":        func(l *List) { l.Modules[1].Path = l.Modules[0].Path },
		"path":         func(l *List) { l.Modules[1].Path = "a\nb" },
		"below":        func(l *List) { l.Modules[1].Path = "a//b" },
		"size":         func(l *List) { l.Modules[1].Size = -1 },
		"a valid path": func(l *List) { l.Modules[1].Path = " a" },
	} {
		l := testList(2)
		change(l)
		var b strings.Builder
		if err := l.Write(&b); err == nil || !strings.Contains(err.Error(), name) || b.Len() > 0 {
			t.Errorf("%s: %v, and %q is written", name, err, b.String())
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, n := range []int{0, 1, 3} {
		f.Add([]byte(text(f, testList(n))))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse(bytes.NewReader(data))
		if err != nil {
			return
		}
		if got := text(t, l); got != string(data) {
			t.Errorf("%q becomes %q", data, got)
		}
	})
}

func FuzzParseProof(f *testing.F) {
	tree := NewTree(leaves(9))
	for i := range 9 {
		f.Add(tree.Prove(i).Append(nil))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseProof(data)
		if err == nil && !bytes.Equal(p.Append(nil), data) {
			t.Errorf("%x becomes %x", data, p.Append(nil))
		}
	})
}
