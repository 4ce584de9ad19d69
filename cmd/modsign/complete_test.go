package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

// TestCompletedValues holds the values that are offered against those who read them.
func TestCompletedValues(t *testing.T) {
	values := flagValues()
	for flag, read := range map[string]func(string) error{
		"hash":     func(s string) error { _, err := cms.HashByName(s); return err },
		"type":     func(s string) error { _, err := keygen.ParseAlgorithm(s); return err },
		"key-type": func(s string) error { _, err := keygen.ParseAlgorithm(s); return err },
		"existing": func(s string) error { _, err := sign.ParseExisting(s); return err },
		"compress": func(s string) error { _, err := sign.ParseFormat(s); return err },
		"sync":     func(s string) error { _, err := sign.ParseSync(s); return err },
		"modsign hashlist build format": func(s string) error {
			return (&hashlistBuildOptions{format: s}).check(nil)
		},
	} {
		for _, value := range values[flag] {
			if err := read(value); err != nil {
				t.Errorf("--%s %s: %v", flag, value, err)
			}
		}
		// All of them: what is wrong lists them.
		err := read("quite wrong")
		if err == nil {
			t.Errorf("--%s takes anything", flag)
			continue
		}
		if flag == "hash" {
			_, all, _ := strings.Cut(err.Error(), "use one of ")
			want := strings.Split(all, ", ")
			got := slices.Sorted(slices.Values(values[flag]))
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("--hash offers %q, want %q", got, want)
			}
		}
	}
}

// TestAllFlagsComplete looks at every flag with a value: its placeholder has to say what
// it takes, so that a new one is not completed with the names of files by mistake.
func TestAllFlagsComplete(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(parent *cobra.Command) {
		for _, cmd := range parent.Commands() {
			cmd.Flags().VisitAll(func(f *pflag.Flag) {
				if f.Value.Type() == "bool" {
					return
				}
				placeholder, usage := pflag.UnquoteUsage(f)
				_, completed := cmd.GetFlagCompletionFunc(f.Name)
				if file := fileFlags[placeholder]; completed == file {
					t.Errorf("%s --%s %s: %s", cmd.CommandPath(), f.Name, placeholder, usage)
				}
			})
			visit(cmd)
		}
	}
	visit(newRootCommand(testUI()))
}
