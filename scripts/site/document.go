package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"html"
	"html/template"
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

var markdown = goldmark.New(
	goldmark.WithExtensions(extension.GFM),
	goldmark.WithParserOptions(parser.WithAutoHeadingID()),
)

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
