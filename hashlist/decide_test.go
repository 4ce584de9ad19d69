package hashlist

import (
	"bytes"
	"syscall"
	"testing"
)

// TestDecide has what the kernel's own functions get, and what they never do.
func TestDecide(t *testing.T) {
	t.Parallel()
	tree := NewTree(leaves(5))
	root := tree.Root()
	list := &Embedded{Hashes: hashesOf(3)}
	rooted := &Embedded{Root: &root}
	if list.Proofs() || !rooted.Proofs() {
		t.Error("a list has proofs, or a tree has none")
	}
	for _, test := range []struct {
		name    string
		hashes  *Embedded
		payload []byte
		proof   []byte
		want    syscall.Errno
	}{
		{"no list", &Embedded{}, payload(0), nil, syscall.ENOKEY},
		{"not listed", list, payload(0), nil, syscall.ENOKEY},
		{"proven", rooted, payload(3), tree.Prove(3).Append(nil), 0},
		{"another's proof", rooted, payload(3), tree.Prove(2).Append(nil), syscall.ENOKEY},
		{"no proof", rooted, payload(3), nil, syscall.ENOPKG},
		{"a byte too many", rooted, payload(3), append(tree.Prove(3).Append(nil), 0), syscall.ENOPKG},
		{"zeros", &Embedded{Root: new(Root)}, payload(3), make([]byte, 4), syscall.ENOKEY},
	} {
		errno, dmesg, err := test.hashes.Decide(bytes.NewReader(test.payload), test.proof)
		if errno != test.want || err != nil || (dmesg != "") != (test.hashes.Root != nil && test.want != 0) {
			t.Errorf("%s: %v, %q, %v", test.name, errno, dmesg, err)
		}
	}
	if errno, _, err := list.Decide(bytes.NewReader(nil), nil); errno == 0 || err != nil {
		t.Errorf("an empty module: %v, %v", errno, err)
	}
	for _, hashes := range []*Embedded{nil, list, rooted} {
		if _, _, err := hashes.Decide(nil, tree.Prove(0).Append(nil)); err == nil {
			t.Errorf("%v decides about nothing", hashes)
		}
	}
}
