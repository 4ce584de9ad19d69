package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/verify"
)

func newInspectCommand(u *ui) *cobra.Command {
	var maxSize size
	cmd := &cobra.Command{
		Use:   "inspect {MODULE | PACKAGE}...",
		Short: "Describe modules and their signatures",
		Long: `Inspect shows the contents of modules and of all their signatures, without a verdict:
see verify for that. It looks at the same files as verify, over symbolic links too.
It also describes the modules in packages and images, as verify finds them.
sig_key and sig_hashalgo have the values that modinfo prints. Inspect also describes
signatures in the format used before Linux 4.3, which no kernel since accepts.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("nothing to inspect: name modules or directories")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspect(cmd.Context(), u, args, verify.Options{MaxSize: int64(maxSize)})
		},
	}
	addJSON(cmd.Flags(), u)
	addMaxSize(cmd.Flags(), &maxSize)
	return cmd
}

func inspect(ctx context.Context, u *ui, paths []string, o verify.Options) error {
	modules, failed := 0, 0
	show := func(path, pkg string, d *verify.Description, err error) {
		modules++
		switch {
		case err != nil:
			if u.JSON {
				u.Object(jsonInspected{Type: "module", Path: path, Package: pkg, Layers: []jsonLayer{}, Error: err.Error()})
			}
			if pkg != "" {
				path = d.Name()
			}
			u.Say("%s", describe(path, err))
			failed++
		case u.JSON:
			u.Object(newJSONInspected(d))
		default:
			if modules > 1 {
				u.Result("")
			}
			for _, line := range inspection(d) {
				u.Result("%s", line)
			}
		}
	}
	archives, others := packages(paths)
	if len(others) > 0 {
		skipped, err := verify.InspectTree(ctx, others, o, func(path string, d *verify.Description, err error) {
			show(path, "", d, err)
		})
		if err != nil && !errors.Is(err, verify.ErrIncomplete) { // what that is about is shown
			return err
		}
		u.skipped(skipped)
	}
	for _, pkg := range archives {
		err := verify.InspectArchive(ctx, pkg, o, func(d *verify.Description, err error) { show(d.Path, pkg, d, err) })
		if err != nil && !errors.Is(err, verify.ErrIncomplete) {
			return err
		}
	}
	switch {
	case failed == modules:
		return exitStatus(exitError)
	case failed > 0:
		return exitStatus(exitSome)
	}
	return nil
}

// inspection is a description for people, in modinfo's two columns.
func inspection(d *verify.Description) []string {
	var lines []string
	field := func(name, format string, args ...any) {
		lines = append(lines, fmt.Sprintf("%-16s%s", name+":", fmt.Sprintf(format, args...)))
	}
	field("filename", "%s", d.Path)
	if d.Archive != "" {
		field("package", "%s", d.Archive)
	}
	if d.Target != "" {
		field("link_to", "%s", d.Target)
	}
	if d.Format != "none" {
		field("compression", "%s, %d bytes", d.Format, d.FileSize)
	}
	field("size", "%d bytes", d.Size)
	field("payload", "%d bytes", d.Payload)
	field("signatures", "%d", len(d.Layers))
	for i, l := range d.Layers {
		if len(d.Layers) > 1 {
			which := "ignored: to the kernel it is a part of the module"
			if i == 0 {
				which = "outermost: the one that counts"
			}
			field("signature", "%d of %d, %s", i+1, len(d.Layers), which)
		}
		field("sig_id", "%s, %d bytes over the first %d", l.Type, l.Size, l.Offset)
		for i, s := range l.Signers {
			if len(l.Signers) > 1 {
				field("signer_info", "%d of %d", i+1, len(l.Signers))
			}
			switch {
			case s.Issuer != "":
				field("signer", "%s", s.Issuer)
			case s.Name != "":
				field("signer", "%s", s.Name)
			}
			switch {
			case s.Serial != "":
				field("sig_key", "%s", colons(s.Serial))
			case l.Type == "PKCS#7":
				field("sig_key", "%s (subject key identifier)", colons(s.KeyID))
			case s.KeyID != "":
				field("sig_key", "%s", colons(s.KeyID))
			}
			field("sig_hashalgo", "%s", s.Hash)
			field("sig_algorithm", "%s, %d bytes", s.Algorithm, s.Size)
			if s.HasAttribute {
				field("note", "signed attributes, which no kernel takes but one built so, with ML-DSA")
			}
		}
		if l.Problem != "" {
			field("problem", "%s", l.Problem)
		}
		for _, note := range l.Notes {
			field("note", "%s", note)
		}
	}
	for _, warning := range d.Warnings {
		field("warning", "%s", warning)
	}
	return lines
}

// colons is how modinfo writes octets: AB:CD:EF.
func colons(hex string) string {
	var b strings.Builder
	for i := 0; i+1 < len(hex); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(strings.ToUpper(hex[i : i+2]))
	}
	return b.String()
}
