package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// results is what scripts/bench has measured: facts about the machine, and runs.
type results struct {
	facts map[string]string
	rows  []*row // in the order of their first runs
}

// row is one thing to do, with each tool that does it.
type row struct {
	name  string
	tools []*tool // the first one is what the others are compared with
}

// tool is one way to do a row's work, once in each round.
type tool struct {
	name string
	runs []run
}

// run is one process, or one tree of them.
type run struct {
	round   int
	modules int     // that it has dealt with
	wall    float64 // seconds
	cpu     float64 // seconds, of all its processes
	peak    int     // KiB, of the largest process
}

func (r run) perModule() float64 { return r.wall / float64(r.modules) }

// readResults reads lines of two kinds, and comments that begin with #:
//
//	fact NAME VALUE...
//	run ROW TOOL ROUND MODULES WALL USER SYSTEM PEAK
func readResults(from io.Reader) (*results, error) {
	all := &results{facts: make(map[string]string)}
	lines := bufio.NewScanner(from)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0 || strings.HasPrefix(fields[0], "#"):
		case fields[0] == "fact" && len(fields) > 1:
			all.facts[fields[1]] = strings.Join(fields[2:], " ")
		case fields[0] == "run" && len(fields) == 9:
			if err := all.add(fields[1], fields[2], fields[3:]); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		default:
			return nil, fmt.Errorf("line %d: neither a fact nor a run: %q", n, lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	for _, r := range all.rows {
		for _, t := range r.tools {
			if len(t.runs) != len(r.tools[0].runs) {
				return nil, fmt.Errorf("row %s: %d runs of %s, and %d of %s",
					r.name, len(t.runs), t.name, len(r.tools[0].runs), r.tools[0].name)
			}
		}
	}
	return all, nil
}

func (all *results) add(rowName, toolName string, fields []string) error {
	var numbers [6]float64
	for i, field := range fields {
		number, err := strconv.ParseFloat(field, 64)
		if err != nil || number < 0 {
			return fmt.Errorf("not a number of a run: %q", field)
		}
		numbers[i] = number
	}
	one := run{
		round: int(numbers[0]), modules: int(numbers[1]), wall: numbers[2], cpu: numbers[3] + numbers[4],
		peak: int(numbers[5]),
	}
	if one.round < 1 || one.modules < 1 || one.wall == 0 {
		return fmt.Errorf("a round, a number of modules or a time is zero: %q", fields)
	}
	r := all.row(rowName)
	if r == nil {
		r = &row{name: rowName}
		all.rows = append(all.rows, r)
	}
	t := r.tool(toolName)
	if t == nil {
		t = &tool{name: toolName}
		r.tools = append(r.tools, t)
	}
	t.runs = append(t.runs, one)
	return nil
}

func (all *results) row(name string) *row {
	if i := slices.IndexFunc(all.rows, func(r *row) bool { return r.name == name }); i >= 0 {
		return all.rows[i]
	}
	return nil
}

func (r *row) tool(name string) *tool {
	if i := slices.IndexFunc(r.tools, func(t *tool) bool { return t.name == name }); i >= 0 {
		return r.tools[i]
	}
	return nil
}

// spread is the median of some figures, and the lowest and the highest.
type spread struct{ low, median, high float64 }

func spreadOf(figures []float64) spread {
	s := slices.Sorted(slices.Values(figures))
	n := len(s)
	return spread{s[0], (s[(n-1)/2] + s[n/2]) / 2, s[n-1]}
}

// of is the spread of a figure of the tool's runs.
func (t *tool) of(figure func(run) float64) spread {
	var figures []float64
	for _, r := range t.runs {
		figures = append(figures, figure(r))
	}
	return spreadOf(figures)
}

func (t *tool) wall() spread { return t.of(func(r run) float64 { return r.wall }) }

func (t *tool) peak() int {
	most := 0
	for _, r := range t.runs {
		most = max(most, r.peak)
	}
	return most
}

// ratio is the spread of the ratios of time per module, round by round.
func ratio(t, to *tool) spread {
	var ratios []float64
	for i, r := range t.runs {
		ratios = append(ratios, r.perModule()/to.runs[i].perModule())
	}
	return spreadOf(ratios)
}

// String has two digits after the point, or three if the first two are zero.
func (s spread) String() string {
	digits := 2
	if s.median < 0.1 {
		digits = 3
	}
	return fmt.Sprintf("%.*f (%.*f to %.*f)", digits, s.median, digits, s.low, digits, s.high)
}
