package releasetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

func TestMain(m *testing.M) {
	if testmod.WithRace() {
		fmt.Println("all that is tested here runs in other processes, where the race detector does not look")
		return
	}
	os.Exit(m.Run())
}

// source returns a repository with one commit, which has the files of this tree as they are
// now, and the version of the first heading of its CHANGELOG.md.
func source(t *testing.T) (clone, version string) {
	t.Helper()
	clone = filepath.Join(t.TempDir(), "source")
	script := `mkdir "$CLONE"
		git ls-files -z --cached --others --exclude-standard |
			tar -c --null -T - --ignore-failed-read | tar -x -C "$CLONE"
		cd "$CLONE"
		git init --quiet
		git add --all
		git -c user.name=modsign -c user.email=modsign@example.org commit --quiet --message source`
	const date = "DATE=@1700000000"
	run(t, "../..", []string{"CLONE=" + clone, "GIT_COMMITTER_" + date, "GIT_AUTHOR_" + date}, "sh", "-euc", script)
	changes, err := os.ReadFile(filepath.Join(clone, "CHANGELOG.md"))
	if err != nil {
		t.Fatal(err)
	}
	heading := regexp.MustCompile(`(?m)^## (\d+\.\d+\.\d+)`).FindSubmatch(changes)
	if heading == nil {
		t.Fatal("CHANGELOG.md has no heading with a version")
	}
	return clone, string(heading[1])
}

// shellBlocks returns the commands of a document that are marked as sh.
func shellBlocks(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllSubmatch(data, -1) {
		b.Write(block[1])
	}
	if b.Len() == 0 {
		t.Fatalf("%s has no commands", file)
	}
	return b.String()
}

// command returns a command with the environment of the tests, without what would change the
// result, and with the given variables.
func command(t *testing.T, dir string, env []string, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "GIT_") || strings.HasPrefix(v, "DEB") || strings.HasPrefix(v, "GOFLAGS=") ||
			strings.HasPrefix(v, "SOURCE_DATE_EPOCH=")
	})
	// git refuses the repositories of other users, and the tests may run as root.
	cmd.Env = append(cmd.Env, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// run runs a command, which must succeed, and returns what it says on stdout.
func run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := command(t, dir, env, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, &stderr)
	}
	return string(out)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// same compares two files.
func same(t *testing.T, got, want string) {
	t.Helper()
	a, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 || !bytes.Equal(a, b) {
		t.Errorf("%s and %s differ", got, want)
	}
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}
