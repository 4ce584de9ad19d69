package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sample = `# comment
fact cpu Some Processor
fact linux
run p384 sign-file-n1 1 100 10 15 4 6000
run p384 modsign 1 200 2 2.5 0.5 20000
run p384 sign-file-n1 2 100 14 15 4 6500
run p384 modsign 2 200 7 2.5 0.5 19000
`

func TestReadResults(t *testing.T) {
	t.Parallel()
	all, err := readResults(strings.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	if all.facts["cpu"] != "Some Processor" || len(all.rows) != 1 {
		t.Fatalf("facts %v, %d rows", all.facts, len(all.rows))
	}
	peer, ours := all.row("p384").tool("sign-file-n1"), all.row("p384").tool("modsign")
	if got, want := peer.wall(), (spread{10, 12, 14}); got != want {
		t.Errorf("the peer takes %v, want %v", got, want)
	}
	// 0.01 of 0.1 s a module in the first round, 0.035 of 0.14 s in the second.
	if got, want := ratio(ours, peer), (spread{0.1, 0.175, 0.25}); !near(got, want) {
		t.Errorf("the ratio is %v, want %v", got, want)
	}
	if ours.peak() != 20000 {
		t.Errorf("the peak is %d", ours.peak())
	}
}

func near(a, b spread) bool {
	const e = 1e-9
	return abs(a.low-b.low) < e && abs(a.median-b.median) < e && abs(a.high-b.high) < e
}

func abs(x float64) float64 { return max(x, -x) }

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ text, want string }{
		{"run p384 modsign 1 200 2 2.5 0.5\n", "line 1: neither a fact nor a run"},
		{"fact\n", "line 1: neither"},
		{"run p384 modsign 1 200 x 2.5 0.5 1\n", "not a number"},
		{"run p384 modsign 1 200 -1 2.5 0.5 1\n", "not a number"},
		{"run p384 modsign 1 0 2 2.5 0.5 1\n", "is zero"},
		{sample + "run p384 modsign 3 200 7 2.5 0.5 19000\n", "row p384: 3 runs of modsign, and 2 of sign-file-n1"},
	} {
		if _, err := readResults(strings.NewReader(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: error %v, want %q", test.text, err, test.want)
		}
	}
}

func FuzzReadResults(f *testing.F) {
	f.Add(sample)
	f.Add("run a b 1 1 1 1 1 1\nrun a c 1 1e9 1 1 1 1")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := readResults(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, r := range all.rows {
			writeRow(new(strings.Builder), r)
		}
	})
}

// TestReport makes a report of runs of every kind.
func TestReport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := report(filepath.Join("testdata", "results.txt"), dir); err != nil {
		t.Fatal(err)
	}
	for file, wants := range map[string][]string{
		"performance.md": {
			"machine: Some Processor, 2 processors, ext4;",
			"| ECDSA P-384, sha384 | modsign | 4023 | 2.10 (2.00 to 2.20) | 3.4 | 20 | 1916 | 0.16 (0.15 to 0.17) |",
			"| ECDSA P-384 | 9.00 (9.00 to 9.00) | 20.00 (20.00 to 20.00) | 4.00 (4.00 to 4.00) | 0.20 (0.20 to 0.20) |",
			"| 100000 | 50.00 (50.00 to 50.00) | 0.500 | 24 |",
		},
		"performance.svg": {"<svg", ">make modules_install, 4023 modules<", ">20.0<", "</svg>"},
		"scale.svg":       {"<svg", ">100000<", "</svg>"},
	} {
		got, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Error(err)
		}
		for _, want := range wants {
			if !strings.Contains(string(got), want) {
				t.Errorf("%s does not have %q:\n%s", file, want, got)
			}
		}
	}
}

// TestDocs checks that the documents are what report makes of the results beside them.
func TestDocs(t *testing.T) {
	t.Parallel()
	docs, again := "../../docs", t.TempDir()
	if err := report(filepath.Join(docs, "bench/results.txt"), again); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"performance.md", "performance.svg", "scale.svg"} {
		got, err := os.ReadFile(filepath.Join(docs, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(again, name))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s is not made of docs/bench/results.txt: go run -C scripts/benchreport . \"$PWD/docs/bench/results.txt\" "+
				"\"$PWD/docs\"", name)
		}
	}
}
