package main

import (
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/modsign/modsign/sign/policy"
)

// TestPolicyOfAgent judges requests as an agent does.
func TestPolicyOfAgent(t *testing.T) {
	t.Parallel()
	judge := func(lines string) (func(string, crypto.Hash, []byte) error, error) {
		file := filepath.Join(t.TempDir(), "p")
		if err := os.WriteFile(file, []byte("policy 1\n"+lines), 0o644); err != nil {
			t.Fatal(err)
		}
		return policyOfAgent(policyFlag(file))
	}
	for _, test := range []struct{ lines, path, refusedBy string }{
		{"path **\n", "kernel/x.ko", ""},
		{"path **\n", "", "judges modules by their paths, and the client tells none"},
		{"path kernel/**\n", "updates/x.ko", ":2: path: "},
		{"path **\nnot-path **/net/**\n", "kernel/net/x.ko", ":3: not-path: "},
		{"path **\nname y\n", "kernel/x.ko", ":3: name: "},
		{"path **\nnot-name x\n", "kernel/x.ko", ":3: not-name: "},
		{"path **\nhash sha512\n", "kernel/x.ko", ":3: hash: "},
		{"path **\nexpires 2020-01-01\n", "kernel/x.ko", ":3: expires: "},
	} {
		allow, err := judge(test.lines)
		if err != nil {
			t.Fatal(err)
		}
		err = allow(test.path, crypto.SHA256, make([]byte, 32))
		if test.refusedBy == "" && err != nil ||
			test.refusedBy != "" && (err == nil || !strings.Contains(err.Error(), test.refusedBy)) {
			t.Errorf("%q of %q: %v, want %q", test.path, test.lines, err, test.refusedBy)
		}
	}

	for _, lines := range []string{"path **\nvermagic 6.*\n", "path **\nlicense GPL\n"} {
		_, err := judge(lines)
		if _, refused := errors.AsType[*policy.RefusedError](err); !refused {
			t.Errorf("%q: %v", lines, err)
		}
	}

	// All requests at once get what is allowed, and what is refused does not count.
	allow, err := judge("path kernel/**\nmax-modules 7\n")
	if err != nil {
		t.Fatal(err)
	}
	var allowed atomic.Int32
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if allow("updates/x.ko", crypto.SHA256, make([]byte, 32)) == nil {
				t.Error("the path is allowed")
			}
			if allow("kernel/x.ko", crypto.SHA256, make([]byte, 32)) == nil {
				allowed.Add(1)
			}
		})
	}
	group.Wait()
	if n := allowed.Load(); n != 7 {
		t.Errorf("%d signatures are allowed, want 7", n)
	}
}
