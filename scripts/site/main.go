// Site makes docs/site, the web page, from README.md, some documents beside it and all of
// docs/*.md:
//
//	go run -C scripts/site .
//
// The page says nothing of its own. The entry is README.md; each role's page consists of
// sections of README.md and docs. It has no script and asks no other server for anything.
package main

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"html"
	"html/template"
	"log"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"
)

const repository = "https://github.com/modsign/modsign"

// beside are the documents of the root directory that have a page.
var beside = []string{"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}

// A section of a document begins with a heading. The one without is what comes before the
// first heading of the second level.
type section struct{ path, heading string }

type role struct {
	Page, Title string
	sections    []section
	read        []string // the documents to read on
}

var roles = []role{
	{"kernel-developer.html", "Kernel developer", []section{
		{"README.md", "For a kernel developer"},
		{"docs/kbuild.md", "The one-time key"},
		{"docs/hashlist.md", "In the build"},
		{"docs/explain.md", "What it answers"},
	}, []string{"docs/kbuild.md", "docs/hashlist.md", "docs/explain.md", "docs/kernels.md", "docs/mldsa.md"}},
	{"for-distributions.html", "Distribution", []section{
		{"README.md", "For a distribution"},
		{"docs/distribution.md", ""},
		{"docs/manifest.md", "What is checked where"},
		{"docs/scan.md", ""},
	}, []string{"docs/distribution.md", "docs/manifest.md", "docs/keys.md", "docs/policy.md", "docs/scan.md"}},
	{"module-vendor.html", "Vendor of modules", []section{
		{"docs/distribution.md", "Two keys for one module"},
		{"docs/keys.md", ""},
		{"docs/keyrings.md", "The way of a machine owner key"},
		{"docs/explain.md", "Reports"},
	}, []string{"docs/keys.md", "docs/keyrings.md", "docs/explain.md", "docs/signer.md", "docs/packages.md"}},
	{"auditor.html", "Auditor", []section{
		{"README.md", "For a verifier"},
		{"docs/policy.md", "The record"},
		{"docs/packages.md", "Which kernel decides"},
		{"docs/release.md", ""},
		{"SECURITY.md", "What modsign promises"},
	}, []string{"SECURITY.md", "docs/policy.md", "docs/packages.md", "docs/release.md", "docs/kernels.md"}},
}

//go:embed page.html style.css
var assets embed.FS

var pageTemplate = template.Must(template.ParseFS(assets, "page.html"))

var markdown = goldmark.New(
	goldmark.WithExtensions(extension.GFM),
	goldmark.WithParserOptions(parser.WithAutoHeadingID()),
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("site: ")
	root := filepath.Join("..", "..")
	files, err := generate(root)
	if err != nil {
		log.Fatal(err)
	}
	dir := filepath.Join(root, "docs", "site")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		log.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// A site is in the making.
type site struct {
	root  string
	files map[string][]byte // what is made, by name
	docs  []string          // the documents of docs, then those beside README.md
}

// generate returns the files of the web page of the repository in the directory root.
func generate(root string) (map[string][]byte, error) {
	found, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		return nil, err
	}
	style, err := assets.ReadFile("style.css")
	if err != nil {
		return nil, err
	}
	s := &site{root: root, files: map[string][]byte{"style.css": style}}
	for _, name := range found {
		s.docs = append(s.docs, "docs/"+filepath.Base(name))
	}
	s.docs = append(s.docs, beside...)
	for _, name := range s.docs {
		if err := s.document(name); err != nil {
			return nil, err
		}
	}
	for _, r := range roles {
		if err := s.role(r); err != nil {
			return nil, err
		}
	}
	if err := s.home(); err != nil {
		return nil, err
	}
	cards, err := s.cards(s.docs)
	if err != nil {
		return nil, err
	}
	return s.files, s.write("documents.html", &page{Title: "Documents", Body: "<h1>Documents</h1>\n" + cards})
}

// A page is what page.html shows.
type page struct {
	Kind, Title, Description string
	Source                   string // of the whole page, from the root of the repository
	Body                     template.HTML
	Contents                 []heading
	Roles                    []role
	Repository, Name         string
}

type heading struct{ ID, Text string }

var headings = regexp.MustCompile(`<h2 id="([^"]*)">(.*)</h2>`)

func (s *site) write(name string, p *page) error {
	if s.files[name] != nil {
		return fmt.Errorf("two files want the name %s", name)
	}
	p.Roles, p.Repository, p.Name = roles, repository, name
	for _, h := range headings.FindAllStringSubmatch(string(p.Body), -1) {
		p.Contents = append(p.Contents, heading{h[1], html.UnescapeString(tags.ReplaceAllString(h[2], ""))})
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil {
		return err
	}
	s.files[name] = b.Bytes()
	return nil
}

// document writes the page of a document.
func (s *site) document(name string) error {
	d, err := s.parse(name)
	if err != nil {
		return err
	}
	body, err := d.render(d.blocks)
	if err != nil {
		return err
	}
	return s.write(pageOf(name), &page{Title: d.title(), Description: d.summary(d.blocks), Source: name, Body: body})
}

// role writes a role's page. A heading that says what the page's title says is left out.
func (s *site) role(r role) error {
	p := &page{Kind: "role", Title: r.Title}
	p.Body = template.HTML("<h1>" + html.EscapeString(r.Title) + "</h1>\n")
	for _, part := range r.sections {
		d, blocks, err := s.section(part)
		if err != nil {
			return err
		}
		p.Description = cmp.Or(p.Description, d.summary(blocks))
		if part.path == "README.md" {
			blocks = blocks[1:]
		}
		body, err := d.render(blocks)
		if err != nil {
			return err
		}
		p.Body += "<section>\n" + body
		if part.path != "README.md" {
			p.Body += template.HTML(fmt.Sprintf("<p class=\"more\">More: <a href=\"%s\">%s</a></p>\n",
				pageOf(part.path), html.EscapeString(d.title())))
		}
		p.Body += "</section>\n"
	}
	cards, err := s.cards(r.read)
	p.Body += "<h2 id=\"read-on\">Read on</h2>\n" + cards
	return errors.Join(err, s.write(r.Page, p))
}

// home writes the entry: README.md with links in the place of the sections that are on the
// pages of the roles, and both charts.
func (s *site) home() error {
	d, err := s.parse("README.md")
	if err != nil {
		return err
	}
	blocks := d.blocks
	for _, r := range roles {
		first := r.sections[0]
		if first.path != "README.md" {
			continue
		}
		begin, end, err := d.find(first.heading)
		if err != nil {
			return err
		}
		told := d.blocks[begin:end]
		blocks = slices.DeleteFunc(slices.Clone(blocks), func(n ast.Node) bool { return slices.Contains(told, n) })
	}
	_, end, err := d.find("")
	if err != nil {
		return err
	}
	p := &page{Kind: "home", Title: "modsign", Description: d.summary(blocks), Source: "README.md"}
	if p.Body, err = d.render(blocks[:end]); err != nil {
		return err
	}
	p.Body += "<ul class=\"cards\">\n"
	for _, r := range roles {
		of, blocks, err := s.section(r.sections[0])
		if err != nil {
			return err
		}
		p.Body += card(r.Page, r.Title, of.summary(blocks))
	}
	p.Body += "</ul>\n"
	for rest := blocks[end:]; len(rest) > 0; {
		n := 1
		for n < len(rest) && level(rest[n]) != 2 {
			n++
		}
		body, err := d.render(rest[:n])
		if err != nil {
			return err
		}
		p.Body += body
		if d.text(rest[0]) == "How fast" {
			more, blocks, err := s.section(section{"docs/performance.md", "More modules"})
			if err != nil {
				return err
			}
			if body, err = more.render(blocks); err != nil {
				return err
			}
			p.Body += body
		}
		rest = rest[n:]
	}
	return s.write("index.html", p)
}

// cards links documents, each with its first sentence.
func (s *site) cards(names []string) (template.HTML, error) {
	b := template.HTML("<ul class=\"cards\">\n")
	for _, name := range names {
		d, err := s.parse(name)
		if err != nil {
			return "", err
		}
		b += card(pageOf(name), d.title(), d.summary(d.blocks))
	}
	return b + "</ul>\n", nil
}

func card(to, title, summary string) template.HTML {
	return template.HTML(fmt.Sprintf("<li><a href=\"%s\"><strong>%s</strong> <span>%s</span></a></li>\n",
		to, html.EscapeString(title), html.EscapeString(summary)))
}

// A document is parsed, and its links lead where they do on the web page.
type document struct {
	source []byte
	blocks []ast.Node
}

func (s *site) parse(name string) (*document, error) {
	source, err := os.ReadFile(filepath.Join(s.root, name))
	if err != nil {
		return nil, err
	}
	ids := parser.WithContext(parser.NewContext(parser.WithIDs(make(anchors))))
	tree := markdown.Parser().Parse(text.NewReader(source), ids)
	d := &document{source: source}
	for n := tree.FirstChild(); n != nil; n = n.NextSibling() {
		d.blocks = append(d.blocks, n)
	}
	err = ast.Walk(tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		var err error
		switch n := n.(type) {
		case *ast.Link:
			if entering {
				n.Destination, err = s.link(name, string(n.Destination))
				err = errors.Join(err, s.entitle(n, source))
			}
		case *ast.Image:
			if entering {
				n.Destination, err = s.image(name, string(n.Destination))
			}
		}
		return ast.WalkContinue, err
	})
	return d, err
}

// link returns where a link of a document leads: to a page, or to the repository.
func (s *site) link(from, to string) ([]byte, error) {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() {
		return []byte(to), err
	}
	target := from
	if u.Path != "" {
		target = path.Join(path.Dir(from), u.Path)
	}
	if p := pageOf(target); p != "" {
		u.Path = p
		return []byte(u.String()), nil
	}
	info, err := os.Stat(filepath.Join(s.root, target))
	if err != nil {
		return nil, fmt.Errorf("%s: dead link: %w", from, err)
	}
	kind := "blob"
	if info.IsDir() {
		kind = "tree"
	}
	return []byte(repository + "/" + kind + "/main/" + target), nil
}

// entitle gives a link that reads as the name of a document the document's title to read.
func (s *site) entitle(n *ast.Link, source []byte) error {
	words, ok := n.FirstChild().(*ast.Text)
	if !ok || n.ChildCount() != 1 {
		return nil
	}
	name := string(words.Value(source))
	for _, each := range s.docs {
		if name == each || "docs/"+name == each {
			content, err := os.ReadFile(filepath.Join(s.root, each))
			if err != nil {
				return err
			}
			title, _, _ := strings.Cut(strings.TrimPrefix(string(content), "# "), "\n")
			n.ReplaceChild(n, words, ast.NewString([]byte(html.EscapeString(title))))
		}
	}
	return nil
}

// image copies an image of a document to the site.
func (s *site) image(from, to string) ([]byte, error) {
	content, err := os.ReadFile(filepath.Join(s.root, path.Join(path.Dir(from), to)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	to = path.Base(to)
	if path.Ext(to) == ".svg" {
		content = bytes.ReplaceAll(content, []byte("font-family:Liberation Sans;"),
			[]byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
	}
	s.files[to] = content
	return []byte(to), nil
}

// pageOf returns the page of a document, or "".
func pageOf(name string) string {
	switch {
	case name == "README.md", name == "docs/site", name == "docs/site/index.html":
		return "index.html"
	case name == "docs":
		return "documents.html"
	case path.Dir(name) == "docs" && path.Ext(name) == ".md", slices.Contains(beside, name):
		return strings.ToLower(strings.TrimSuffix(path.Base(name), ".md")) + ".html"
	}
	return ""
}

func (s *site) section(part section) (*document, []ast.Node, error) {
	d, err := s.parse(part.path)
	if err != nil {
		return nil, nil, err
	}
	begin, end, err := d.find(part.heading)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", part.path, err)
	}
	if h, ok := d.blocks[begin].(*ast.Heading); ok {
		h.Level = 2
	}
	return d, d.blocks[begin:end], nil
}

// find returns the blocks of a section, its heading among them.
func (d *document) find(heading string) (begin, end int, err error) {
	if heading != "" {
		begin = slices.IndexFunc(d.blocks, func(n ast.Node) bool { return level(n) == 2 && d.text(n) == heading })
	}
	if begin < 0 {
		return 0, 0, fmt.Errorf("no section %q", heading)
	}
	for end = begin + 1; end < len(d.blocks) && level(d.blocks[end]) != 2; end++ {
	}
	return begin, end, nil
}

func level(n ast.Node) int {
	if h, ok := n.(*ast.Heading); ok {
		return h.Level
	}
	return 0
}

func (d *document) title() string { return d.text(d.blocks[0]) }

// sentence is the first one of a paragraph, and the next one where the first is very short.
var sentence = regexp.MustCompile(`^.{20,}?\.( |$)`)

// summary returns the first sentence of the first paragraph.
func (d *document) summary(blocks []ast.Node) string {
	for _, n := range blocks {
		if n.Kind() == ast.KindParagraph {
			all := d.text(n)
			first := strings.TrimSpace(cmp.Or(sentence.FindString(all), all))
			return strings.TrimSuffix(first, ":")
		}
	}
	return ""
}

var tags = regexp.MustCompile(`<[^>]*>`)

// text returns the words of a block, without markup.
func (d *document) text(n ast.Node) string {
	var b bytes.Buffer
	if err := markdown.Renderer().Render(&b, d.source, n); err != nil {
		return ""
	}
	return strings.Join(strings.Fields(html.UnescapeString(tags.ReplaceAllString(b.String(), ""))), " ")
}

var (
	console = regexp.MustCompile(`(?s)<code class="language-console">.*?</code>`)
	command = regexp.MustCompile(`(?m)(^|>)(\$ .*)$`)
	short   = regexp.MustCompile(`<code>([^<\n]{1,24})</code>`)
)

// render returns blocks as HTML. Code and tables scroll within themselves, also with the
// keyboard, and the commands of a terminal stand out from what they print.
func (d *document) render(blocks []ast.Node) (template.HTML, error) {
	var b bytes.Buffer
	for _, n := range blocks {
		if err := markdown.Renderer().Render(&b, d.source, n); err != nil {
			return "", err
		}
	}
	body := console.ReplaceAllStringFunc(b.String(), func(code string) string {
		return command.ReplaceAllString(code, "$1<b>$2</b>")
	})
	body = short.ReplaceAllString(body, `<code class="short">$1</code>`)
	return template.HTML(strings.NewReplacer(
		"<pre>", `<pre tabindex="0">`,
		"<table>", `<div class="scroll" tabindex="0"><table>`, "</table>", "</table></div>",
		"<p><img ", `<p class="scroll"><img `,
	).Replace(body)), nil
}

// anchors are the headings of a document as GitHub names them.
type anchors map[string]int

func (a anchors) Generate(value []byte, _ ast.NodeKind) []byte {
	id := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, string(value))
	n := a[id]
	a[id]++
	if n > 0 {
		id = fmt.Sprintf("%s-%d", id, n)
	}
	return []byte(id)
}

func (a anchors) Put(value []byte) { a[string(value)]++ }
