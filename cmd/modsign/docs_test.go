package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/keygen/audit"
)

const docs = "../../docs"

func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docs, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var exitCodeRow = regexp.MustCompile(`(?m)^\| (\d+) \| (.*) \|$`)

// TestExitCodesDocumented compares docs/exit-codes.md with the table in main.go.
func TestExitCodesDocumented(t *testing.T) {
	general, signFile, ok := strings.Cut(readDoc(t, "exit-codes.md"), "## sign-file")
	if !ok {
		t.Fatal("there is no section about sign-file")
	}
	table := func(text string) string {
		var b strings.Builder
		for _, row := range exitCodeRow.FindAllStringSubmatch(text, -1) {
			fmt.Fprintf(&b, "\n  %3s  %s", row[1], row[2])
		}
		return "Exit status:" + b.String()
	}
	if got, want := table(general), exitStatusHelp(); got != want {
		t.Errorf("docs/exit-codes.md has\n%s\nand the program\n%s", got, want)
	}
	signFile, modsignVerify, _ := strings.Cut(signFile, "## modsign-verify")
	if got := table(signFile); got != signFileExit {
		t.Errorf("docs/exit-codes.md has for sign-file\n%s\nand the program\n%s", got, signFileExit)
	}
	if got := table(modsignVerify); got != modsignVerifyExit {
		t.Errorf("docs/exit-codes.md has for modsign-verify\n%s\nand the program\n%s", got, modsignVerifyExit)
	}
}

// TestHelpEndsWithExitCodes looks at every command.
func TestHelpEndsWithExitCodes(t *testing.T) {
	for _, cmd := range append(commands(), newRootCommand(testUI())) {
		var b strings.Builder
		cmd.Root().SetOut(&b)
		cmd.InitDefaultHelpFlag()
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		want := exitStatusHelp()
		if cmd.Name() == "sign-file" {
			want = signFileExit
		}
		if !strings.HasSuffix(b.String(), "\n"+want+"\n") {
			t.Errorf("the help of %s does not end with the exit codes", cmd.Name())
		}
	}
}

// TestJSONDocumented compares the tables of docs/json.md with the fields of the
// objects, in both directions.
func TestJSONDocumented(t *testing.T) {
	sections := make(map[string]string)
	for section := range strings.SplitSeq(readDoc(t, "json.md"), "\n## ") {
		title, body, _ := strings.Cut(section, "\n")
		sections[title] = body
	}
	row := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| .+ \\| .+ \\|$")
	for title, object := range map[string]any{
		"sign, strip: module":  jsonSigned{},
		"sign, strip: summary": jsonSignSummary{},
		"verify: module":       jsonVerified{},
		"verify: summary":      jsonVerifySummary{},
		"explain: module":      jsonExplained{},
		"explain: a cause":     jsonCause{},
		"explain: summary":     jsonExplainSummary{},
		"verify: a key":        jsonKey{},
		"doctor: a finding":    jsonFinding{},
		"doctor: the machine":  jsonMachine{},
		"inspect: module":      jsonInspected{},
		"inspect: a signature": jsonLayer{},
		"inspect: a signer":    jsonSigner{},
		"scan: key":            jsonFoundKey{},
		"scan: failure":        jsonScanFailure{},
		"scan: summary":        jsonScanSummary{},
		"audit: signature":     audit.Record{},
		"agent status":         jsonAgent{},
		"agent receipt":        jsonReceipt{},
		"error":                jsonError{},
	} {
		var fields, documented []string
		for _, field := range reflect.VisibleFields(reflect.TypeOf(object)) {
			if !field.Anonymous {
				name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
				fields = append(fields, name)
			}
		}
		for _, match := range row.FindAllStringSubmatch(sections[title], -1) {
			documented = append(documented, match[1])
		}
		if !slices.Equal(fields, documented) {
			t.Errorf("the section %q of docs/json.md has the fields\n%q, and the objects\n%q", title, documented, fields)
		}
	}
}

func testUI() *ui { return newUI(strings.NewReader(""), new(strings.Builder), new(strings.Builder)) }

// commands are all commands that have a page.
func commands() []*cobra.Command {
	root := newRootCommand(testUI())
	root.InitDefaultHelpCmd()
	var all []*cobra.Command
	var add func(*cobra.Command)
	add = func(parent *cobra.Command) {
		for _, c := range parent.Commands() {
			if c.Name() != "help" && !c.Hidden {
				all = append(all, c)
				add(c)
			}
		}
	}
	add(root)
	return all
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// TestManPages compares docs/man with the pages made of the commands' help. With
// -update it writes them.
func TestManPages(t *testing.T) {
	dir := filepath.Join(docs, "man")
	pages := map[string]string{"modsign.1": manPage(newRootCommand(testUI()))}
	for _, cmd := range commands() {
		pages[pageName(cmd)+".1"] = manPage(cmd)
	}
	if *update {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, page := range pages {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(page), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if pages[e.Name()] == "" {
			t.Errorf("docs/man/%s is of no command: remove it", e.Name())
		}
	}
	for name, page := range pages {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != page {
			t.Errorf(
				"docs/man/%s is not what the command's help says (%v): go test ./cmd/modsign -run TestManPages -update",
				name,
				err,
			)
		}
	}
}

// manPage is a command's help as a manual page in the macros of man(7). It has no
// date, so that it changes with the help alone.
func manPage(cmd *cobra.Command) string {
	cmd.InitDefaultHelpFlag()
	name := pageName(cmd)
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(`.TH %s 1 "" modsign "User Commands"`, roff(strings.ToUpper(name)))
	line(".SH NAME\n%s \\- %s", roff(name), roff(strings.ToLower(cmd.Short[:1])+cmd.Short[1:]))
	line(".SH SYNOPSIS\n.B %s", roff(cmd.UseLine()))
	if cmd.HasAvailableSubCommands() {
		line(".br\n.B %s", roff(cmd.CommandPath()+" COMMAND [flags]"))
	}
	line(".SH DESCRIPTION")
	for i, paragraph := range strings.Split(cmd.Long, "\n\n") {
		switch {
		case strings.HasPrefix(paragraph, "  "):
			b.WriteString(verbatim(paragraph))
		default:
			if i > 0 {
				line(".PP")
			}
			text, list, _ := strings.Cut(paragraph, "\n  - ")
			line("%s", roff(text))
			if list != "" {
				for item := range strings.SplitSeq(list, "\n  - ") {
					line(".IP \\(bu 2\n%s", roff(strings.ReplaceAll(item, "\n    ", "\n")))
				}
			}
		}
	}
	if cmd.HasAvailableSubCommands() {
		line(".SH COMMANDS")
		for _, c := range cmd.Commands() {
			if c.Name() != "help" && !c.Hidden {
				line(".TP\n.BR %s (1)\n%s", roff(name+"-"+c.Name()), roff(c.Short))
			}
		}
	}
	if !cmd.DisableFlagParsing {
		line(".SH OPTIONS")
		cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) { line("%s", manFlag(f)) })
	}
	if cmd.Example != "" {
		line(".SH EXAMPLES")
		b.WriteString(verbatim(cmd.Example))
	}
	line(".SH EXIT STATUS")
	table := exitStatusHelp()
	if exit := cmd.Annotations["exit"]; exit != "" {
		table = exit
	}
	for _, row := range strings.Split(table, "\n")[1:] {
		code, meaning, _ := strings.Cut(strings.TrimSpace(row), "  ")
		line(".TP\n.B %s\n%s", code, roff(meaning))
	}
	if cmd.HasParent() {
		line(".SH SEE ALSO\n.BR modsign (1)")
	}
	return b.String()
}

func manFlag(f *pflag.Flag) string {
	value, usage := pflag.UnquoteUsage(f)
	names := `\fB` + roff("--"+f.Name) + `\fR`
	if f.Shorthand != "" {
		names = `\fB` + roff("-"+f.Shorthand) + `\fR, ` + names
	}
	switch {
	case f.NoOptDefVal != "" && f.Value.Type() != "bool":
		names += `[=\fI` + roff(value) + `\fR]`
	case value != "":
		names += ` \fI` + roff(value) + `\fR`
	}
	if !slices.Contains([]string{"", "false", "0", "[]"}, f.DefValue) {
		usage += " (default: " + f.DefValue + ")"
	}
	return ".TP\n" + names + "\n" + roff(usage)
}

// verbatim is lines of a terminal.
func verbatim(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = roff(strings.TrimPrefix(lines[i], "  "))
	}
	return ".PP\n.RS\n.nf\n" + strings.Join(lines, "\n") + "\n.fi\n.RE\n"
}

// roff protects what would mean something to roff.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "\n.", "\n\\&.").Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}
