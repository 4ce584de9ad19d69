package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	codeColumns = 120
	helpColumns = 100
)

// quoted are lines that are allowed because they are the words of another program or
// file: the path of the file, and a part of the line.
var quoted = map[string][]string{
	"cmd/modsign/prose_test.go":      {"folder", "WHAT|WHICH|WHEN"},
	"internal/kbuildrun/gnupatch.go": {"hunks? FAILED"},
	"verify/explain/module.go":       {"(stripped?)"}, // the kernel
}

func isQuoted(path, line string) bool {
	return slices.ContainsFunc(quoted[path], func(part string) bool { return strings.Contains(line, part) })
}

var (
	folder      = regexp.MustCompile(`(?i)\bfolders?\b`)
	pronoun     = regexp.MustCompile(`\b(WHAT|WHICH|WHEN)\b`)
	question    = regexp.MustCompile(`[A-Za-z]\?($|[\s"')])`)
	scriptSays  = regexp.MustCompile(`^\s*(die|say|warn|fail|note|hint|echo|printf)\b|\|\| (die|fail)\b`)
	generated   = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)
	sourceFiles = regexp.MustCompile(`\.(go|md|txtar|in|conf|install|txt|yml|pm)$|^scripts/|^\.ci/`)
)

// A violation is one thing that is not written as the house writes.
type violation struct {
	path string // from the root of the repository
	line int    // 0 where there is none
	what string
}

// violations collects them by file.
type violations map[string][]violation

func (v violations) add(path string, line int, format string, args ...any) {
	v[path] = append(v[path], violation{path, line, fmt.Sprintf(format, args...)})
}

// TestProse reads all that people read: comments and strings of the source, documents,
// scripts, and the help of every command.
func TestProse(t *testing.T) {
	t.Parallel()
	found := make(violations)
	root := filepath.FromSlash("../..")
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		switch {
		case d.IsDir() && slices.Contains([]string{".git", "docs/man", "docs/api", "kbuild/patches"}, name):
			return fs.SkipDir // made from what is read here, or another project's
		case !d.Type().IsRegular() || !sourceFiles.MatchString(name):
			return nil
		case strings.Contains(name, "testdata/") && !strings.HasSuffix(name, ".md") && !strings.HasSuffix(name, ".txtar"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		if strings.HasSuffix(name, ".go") {
			return found.source(name, text)
		}
		found.text(name, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 200 {
		t.Errorf("only %d files were read", files)
	}
	for _, cmd := range append(commands(), newRootCommand(testUI())) {
		found.help(cmd)
	}
	for path, list := range found {
		var b strings.Builder
		for _, v := range list {
			if v.line > 0 {
				fmt.Fprintf(&b, "\n%s:%d: %s", v.path, v.line, v.what)
			} else {
				fmt.Fprintf(&b, "\n%s: %s", v.path, v.what)
			}
		}
		t.Errorf("%s: %d violations%s", path, len(list), b.String())
	}
}

// source checks the comments, the strings and the lines of a Go file.
func (v violations) source(path string, text []byte) error {
	if generated.Match(text) {
		return nil
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	exempt := longTexts(files, file)
	for i, line := range bytes.Split(text, []byte("\n")) {
		if n := utf8.RuneCount(line); n > codeColumns && !exempt[i+1] {
			v.add(path, i+1, "%d columns", n)
		}
	}
	for _, group := range file.Comments {
		for _, c := range group.List {
			v.words(path, files.Position(c.Pos()).Line, c.Text)
		}
	}
	isTest := strings.HasSuffix(path, "_test.go")
	ast.Inspect(file, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		value, err := strconv.Unquote(lit.Value)
		if err != nil {
			return true
		}
		at := files.Position(lit.Pos()).Line
		v.words(path, at, value)
		if !isTest && strings.Contains(value, " ") && question.MatchString(value) && !isQuoted(path, value) {
			v.add(path, at, "a question: %q", value)
		}
		return true
	})
	return nil
}

// longTexts are the lines of strings that go over several, which are somebody's data, and
// those with a string so long that the line would have to break in it: texts are to be
// found by grep.
func longTexts(files *token.FileSet, file *ast.File) map[int]bool {
	lines := make(map[int]bool)
	ast.Inspect(file, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if ok && len(lit.Value) > codeColumns/2 {
			lines[files.Position(lit.Pos()).Line] = true
		}
		if ok && strings.HasPrefix(lit.Value, "`") {
			for first, at := files.Position(lit.Pos()).Line, files.Position(lit.End()).Line; at > first; at-- {
				lines[first], lines[at] = true, true
			}
		}
		return true
	})
	return lines
}

// text checks the lines of a document or a script.
func (v violations) text(path string, text []byte) {
	v.words(path, 1, string(text))
	if !strings.HasPrefix(path, "scripts/") {
		return
	}
	for i, line := range strings.Split(string(text), "\n") {
		if scriptSays.MatchString(line) && question.MatchString(line) {
			v.add(path, i+1, "a question: %s", strings.TrimSpace(line))
		}
	}
}

// words checks single words of a text that begins at a line.
func (v violations) words(path string, at int, text string) {
	for i, line := range strings.Split(text, "\n") {
		if isQuoted(path, line) {
			continue
		}
		if word := folder.FindString(line); word != "" {
			v.add(path, at+i, "%s, for directory: %s", word, strings.TrimSpace(line))
		}
		if word := pronoun.FindString(line); word != "" {
			v.add(path, at+i, "the placeholder %s: %s", word, strings.TrimSpace(line))
		}
	}
}

// help checks what --help of a command prints.
func (v violations) help(cmd *cobra.Command) {
	const path = "cmd/modsign/"
	var b strings.Builder
	cmd.Root().SetOut(&b)
	cmd.InitDefaultHelpFlag()
	if err := cmd.Help(); err != nil {
		v.add(path, 0, "%s: %v", cmd.CommandPath(), err)
	}
	for line := range strings.Lines(b.String()) {
		line = strings.TrimRight(line, "\n")
		if n := utf8.RuneCountInString(line); n > helpColumns {
			v.add(path, 0, "%s --help: %d columns: %s", cmd.CommandPath(), n, line)
		}
		if question.MatchString(line) {
			v.add(path, 0, "%s --help: a question: %s", cmd.CommandPath(), line)
		}
	}
	cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if value, _ := pflag.UnquoteUsage(f); pronoun.MatchString(value) {
			v.add(path, 0, "%s --%s: the placeholder %s", cmd.CommandPath(), f.Name, value)
		}
	})
}
