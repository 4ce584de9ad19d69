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
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/yuin/goldmark/ast"
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
