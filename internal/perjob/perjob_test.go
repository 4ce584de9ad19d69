package perjob

import (
	"os"
	"path/filepath"
	"testing"
)

// Asked again, a process is not the first; about another file it is.
func TestFirst(t *testing.T) {
	runtime := t.TempDir()
	key, other := filepath.Join(runtime, "key.pem"), filepath.Join(runtime, "key2.pem")
	for _, path := range []string{key, other} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !First(runtime, key) || First(runtime, key) || !First(runtime, other) {
		t.Error("want true once for each file")
	}
	for range 2 {
		if !First(runtime, filepath.Join(runtime, "nowhere")) {
			t.Error("want true where it cannot be told")
		}
	}
}

// TestJobDir refuses what another user may have made in the place of the directory.
func TestJobDir(t *testing.T) {
	runtime := t.TempDir()
	dir, err := jobDir(runtime)
	want := filepath.Join(runtime, "modsign")
	if os.Geteuid() == 0 { // root's is where nobody else can make one
		want = "/run/modsign"
	}
	if err != nil || dir != want {
		t.Fatal(dir, err)
	}
	dir = filepath.Join(runtime, "own")
	if err := makeOwnDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := makeOwnDir(dir); err == nil {
		t.Error("a directory that all can write to")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	if err := makeOwnDir(dir); err == nil {
		t.Error("a link")
	}
}

// TestStartOf tells processes apart that have the same ID one after the other.
func TestStartOf(t *testing.T) {
	own, err := startOf(os.Getpid())
	if err != nil || own == "0" {
		t.Error(own, err)
	}
	if again, _ := startOf(os.Getpid()); again != own {
		t.Errorf("%s, then %s", own, again)
	}
	if gone, err := startOf(1 << 30); gone != "0" || err != nil {
		t.Error(gone, err)
	}
}
