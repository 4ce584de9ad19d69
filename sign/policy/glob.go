package policy

import (
	"errors"
	"fmt"
	"strings"
)

// A glob is a pattern. In the pattern of a path, an asterisk stands for any characters but a
// slash, and the part ** for any number of parts. In other patterns an asterisk stands for
// any characters.
type glob struct {
	parts [][]rune // of a path; other patterns have one
}

var anyParts = []rune("**")

// parsePath parses the pattern of a path in a tree.
func parsePath(pattern string) (*glob, error) {
	g := new(glob)
	for part := range strings.SplitSeq(pattern, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return nil, fmt.Errorf("the pattern %q has an empty part, or the part . or ..: paths have none", pattern)
		case part != "**" && strings.Contains(part, "**"):
			return nil, fmt.Errorf("the pattern %q has ** beside other characters: want ** as a whole part", pattern)
		}
		if err := checkGlob(part); err != nil {
			return nil, err
		}
		g.parts = append(g.parts, []rune(part))
	}
	return g, nil
}

// parseText parses the pattern of a text.
func parseText(pattern string) (*glob, error) {
	if strings.Contains(pattern, "**") {
		return nil, fmt.Errorf("the pattern %q has **, which is for paths alone", pattern)
	}
	return &glob{parts: [][]rune{[]rune(pattern)}}, checkGlob(pattern)
}

// checkGlob refuses what would be special elsewhere, and is not here.
func checkGlob(pattern string) error {
	if strings.ContainsAny(pattern, `[]{}\`) {
		return errors.New(`patterns have the wildcards * and ? alone: none of [ ] { } \`)
	}
	return nil
}

func (g *glob) matchPath(path string) bool {
	var parts [][]rune
	for part := range strings.SplitSeq(path, "/") {
		parts = append(parts, []rune(part))
	}
	return match(len(g.parts), len(parts),
		func(i int) bool { return string(g.parts[i]) == string(anyParts) },
		func(i, k int) bool { return matchRunes(g.parts[i], parts[k]) })
}

func (g *glob) matchText(text string) bool { return matchRunes(g.parts[0], []rune(text)) }

func matchRunes(pattern, text []rune) bool {
	return match(len(pattern), len(text),
		func(i int) bool { return pattern[i] == '*' },
		func(i, k int) bool { return pattern[i] == '?' || pattern[i] == text[k] })
}

// match reports whether n items fit a pattern of m items. Where star says so, an item of
// the pattern stands for any number of items, otherwise for one that fits.
func match(m, n int, star func(i int) bool, fits func(i, k int) bool) bool {
	i, k := 0, 0
	last, from := -1, 0 // the last star, and up to where it stands
	for k < n {
		switch {
		case i < m && star(i):
			last, from = i, k
			i++
		case i < m && fits(i, k):
			i++
			k++
		case last >= 0:
			from++
			i, k = last+1, from
		default:
			return false
		}
	}
	for i < m && star(i) {
		i++
	}
	return i == m
}
