package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var root = filepath.Join("..", "..")

func generated(t *testing.T) map[string][]byte {
	t.Helper()
	files, err := generate(root)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestCommitted compares docs/site with what the documents make.
func TestCommitted(t *testing.T) {
	const remedy = "go run -C scripts/site ."
	files := generated(t)
	dir := filepath.Join(root, "docs", "site")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if files[e.Name()] == nil {
			t.Errorf("docs/site/%s is made from no document: %s", e.Name(), remedy)
		}
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("docs/site/%s is not what the documents make (%v): %s", name, err, remedy)
		}
	}
}

var (
	reference = regexp.MustCompile(` (href|src)="([^"]*)"`)
	anchor    = regexp.MustCompile(` id="([^"]*)"`)
	elsewhere = regexp.MustCompile(`(?i)<script|<iframe|<form| srcset=| style=| on[a-z]+=|@import|url\(`)
)

// TestLinks follows every link that does not leave the repository. Nothing but a link of the
// reader's choice may lead to another server.
func TestLinks(t *testing.T) {
	files := generated(t)
	ids := make(map[string]bool)
	for name, content := range files {
		for _, m := range anchor.FindAllSubmatch(content, -1) {
			id := name + "#" + string(m[1])
			if strings.HasSuffix(name, ".html") && ids[id] {
				t.Errorf("two places are %s", id)
			}
			ids[id] = true
		}
	}
	linked := map[string]bool{"index.html": true}
	followed := 0
	for name, content := range files {
		if !strings.HasSuffix(name, ".svg") && elsewhere.Match(content) {
			t.Errorf("%s has %s", name, elsewhere.Find(content))
		}
		for _, m := range reference.FindAllSubmatch(content, -1) {
			if string(m[2]) == "data:," {
				continue
			}
			to := html.UnescapeString(string(m[2]))
			u, err := url.Parse(to)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			followed++
			inside, isOurs := strings.CutPrefix(to, repository+"/")
			switch {
			case isOurs:
				file := regexp.MustCompile(`^(blob|tree)/main/|#.*$`).ReplaceAllString(inside, "")
				if _, err := os.Stat(filepath.Join(root, file)); err != nil {
					t.Errorf("%s: dead link %s: %v", name, to, err)
				}
			case u.IsAbs():
				if string(m[1]) != "href" || u.Scheme != "https" {
					t.Errorf("%s: %s", name, m[0])
				}
			default:
				target := u.Path
				if target == "" {
					target = name
				}
				linked[target] = true
				if files[target] == nil || u.Fragment != "" && !ids[target+"#"+u.Fragment] {
					t.Errorf("%s: dead link %s", name, to)
				}
			}
		}
	}
	if followed < 10*len(files) {
		t.Errorf("only %d links were found", followed)
	}
	for name := range files {
		if !linked[name] {
			t.Errorf("nothing links to %s", name)
		}
	}
}

// TestEveryDocument adds a document, which has to come up by itself, and one with a dead link.
func TestEveryDocument(t *testing.T) {
	copied := t.TempDir()
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	absolute, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "docs" {
			err = os.Symlink(filepath.Join(absolute, e.Name()), filepath.Join(copied, e.Name()))
		} else {
			err = os.CopyFS(filepath.Join(copied, "docs"), os.DirFS(filepath.Join(root, "docs")))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(copied, "docs", "zebra.md"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("# A zebra\n\nIt has stripes, black and white. See [keys](keys.md#a-key-in-the-tpm).\n")
	files, err := generate(copied)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(files["zebra.html"], []byte(`<a href="keys.html#a-key-in-the-tpm">keys</a>`)) {
		t.Errorf("the new document has the page\n%s", files["zebra.html"])
	}
	card := []byte(`<a href="zebra.html"><strong>A zebra</strong> <span>It has stripes, black and white.</span>`)
	if !bytes.Contains(files["documents.html"], card) {
		t.Error("documents.html does not have the new document")
	}
	write("# A zebra\n\n[gone](gone.txt)\n")
	if _, err := generate(copied); err == nil || !strings.Contains(err.Error(), "docs/zebra.md: dead link") {
		t.Errorf("a dead link: %v", err)
	}
}

//go:embed testdata/look.html
var look []byte

// tooWide is a page that the look at the pages has to find fault with.
const tooWide = `<!doctype html><meta name="viewport" content="width=device-width"><p style="width: 700px">wide</p>`

// TestPages looks at every page in Chromium as a telephone and a desktop show it: no page may
// be wider than its window.
func TestPages(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: a browser loads every page twice")
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("chromium is missing and CI may skip nothing: apt-get install chromium")
		}
		t.Skip("chromium is missing: apt-get install chromium")
	}
	files := generated(t)
	files["too-wide.html"] = []byte(tooWide)
	pages := slices.Sorted(maps.Keys(files))
	pages = slices.DeleteFunc(pages, func(name string) bool { return filepath.Ext(name) != ".html" })
	list, err := json.Marshal(pages)
	if err != nil {
		t.Fatal(err)
	}
	type verdict struct {
		Page          string
		Window, Width int
		Styled        bool
		Wide          []string // the elements that reach out of the window
	}
	verdicts := make(chan []verdict, 1)
	var mutex sync.Mutex
	var missed []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/")
		switch {
		case name == "look":
			fmt.Fprintf(w, "%s<script>look(%s)</script>", look, list)
		case name == "verdicts":
			var v []verdict
			if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
				t.Error(err)
			}
			verdicts <- v
		case files[name] != nil:
			http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(files[name]))
		case name != "favicon.ico": // of the page that looks
			mutex.Lock()
			missed = append(missed, r.URL.Path)
			mutex.Unlock()
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	home, err := os.MkdirTemp("", "chromium") // its last processes may still write when it has ended
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--no-first-run", "--user-data-dir="+home, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
		"--window-size=1400,1000", server.URL+"/look")
	cmd.Env = append(os.Environ(), "HOME="+home)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var got []verdict
	select {
	case got = <-verdicts:
		if err := cmd.Process.Signal(os.Interrupt); err != nil { // it ends its processes, too
			t.Error(err)
		}
		<-ended
	case err := <-ended:
		t.Fatalf("chromium has ended before it has seen all pages: %v\n%s", err, said.String())
	}
	if len(got) != 2*len(pages) {
		t.Errorf("%d pages were looked at, and there are %d, in two widths", len(got), len(pages))
	}
	found := false
	for _, v := range got {
		isWide := v.Width > v.Window || len(v.Wide) > 0
		switch {
		case v.Page == "too-wide.html":
			found = found || v.Window == 390 && isWide
		case isWide:
			t.Errorf("%s is %d pixels wide in a window of %d, by %q", v.Page, v.Width, v.Window, v.Wide)
		case !v.Styled:
			t.Errorf("%s has no style", v.Page)
		}
	}
	if !found {
		t.Error("a page of 700 pixels passes at 390")
	}
	if len(missed) > 0 {
		t.Errorf("the pages ask for %q", missed)
	}
}
