package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen/keyscan"
	"github.com/modsign/modsign/verify"
	"github.com/modsign/modsign/verify/machine"
)

type doctorOptions struct {
	root   string
	kernel string
	image  string
	config string
	noKeys bool
}

func newDoctorCommand(u *ui) *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor [--root DIR --installed KVER]",
		Short: "Show what this machine trusts, and what is wrong with it",
		Long: `Doctor shows the state of trust in modules: whether the kernel enforces signatures,
lockdown and Secure Boot, the lists of the firmware and shim, the keyrings of the
kernel, which certificate is in which, and why some do not count. It compares what the
running kernel has with what its image and the firmware say it should have.

It then lists what would have modules refused, and private keys that other users can
read, in the places where builds of kernels and modules leave them. Each finding has
what it means and one command that mends it or shows more. Doctor changes nothing.

With --root it reads copies of the files of another machine: /boot, /lib/modules and
/sys/firmware/efi below DIR. As an ordinary user it sees less, and says what it could
not read; the exit status is then 3, or 4 if there is a finding all the same.`,
		Example: `  sudo modsign doctor
  modsign doctor --root /mnt --installed 6.12.0-1-amd64 --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), u) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&o.kernel, "installed", "i", "", "judge kernel `KVER` (default: the running one)")
	flags.StringVar(&o.image, "kernel", "", "the kernel `IMAGE` (default: the installed one)")
	flags.StringVar(&o.config, "config", "", "the kernel's configuration `FILE` (default: the installed one)")
	flags.StringVar(&o.root, "root", "/", "root `DIR` of the system")
	flags.BoolVar(&o.noKeys, "no-keys", false, "do not look for private keys")
	addJSON(flags, u)
	addQuiet(flags, u)
	return cmd
}

func (o *doctorOptions) run(ctx context.Context, u *ui) error {
	here := filepath.Clean(o.root) == "/"
	if !here && o.kernel == "" && o.image == "" {
		return usagef("--root needs the kernel's version (--installed KVER) or its image (--kernel IMAGE): see %s",
			filepath.Join(o.root, "lib/modules"))
	}
	state, err := machine.Read(o.root, here && o.kernel == "")
	if err != nil {
		return err
	}
	keys, config, kernelName, unread, err := o.keyring(u, state)
	if err != nil {
		return err
	}
	options := machine.Options{Root: o.root, Config: config, NoImage: len(unread) > 0, Again: o.again()}
	if !o.noKeys {
		options.IsKey = func(path string) (bool, error) { return leaksKey(ctx, path) }
	}
	findings, more, err := machine.Examine(state, keys, options)
	if err != nil {
		return err
	}
	problems := append(append(unread, state.Problems...), more...)
	if u.JSON {
		o.json(u, state, state.Policy(config), keys, kernelName, findings, problems)
	} else {
		showState(u, state, state.Policy(config), keys, kernelName)
		for _, f := range findings {
			u.Result("")
			u.Result("%s: %s", f.Level, f.Text)
			u.Result("  %s", f.Meaning)
			u.Result("  $ %s", f.Command)
		}
	}
	for _, p := range problems {
		u.Note("warning: could not read %s", p)
	}
	for _, warning := range keys.Warnings() {
		u.Note("warning: %s", warning)
	}
	bad := 0
	for _, f := range findings {
		if f.Level != machine.Note {
			bad++
		}
	}
	switch {
	case bad > 0:
		u.Note("%s to mend", plural(bad, "finding"))
		return exitStatus(exitRefused)
	case len(problems) > 0:
		u.Note("nothing to mend in what could be read")
		return exitStatus(exitSome)
	}
	u.Note("nothing to mend")
	return nil
}

// leaksKey reports whether a file holds a private key, of any form that modsign scan recognizes,
// and not one that works in a TPM alone.
func leaksKey(ctx context.Context, path string) (bool, error) {
	scanner, err := keyscan.New(keyscan.Options{MaxSize: 16 << 20})
	if err != nil {
		return false, err
	}
	if err := scanner.Tree(ctx, path); err != nil {
		return false, err
	}
	report := scanner.Report()
	if report.Leaks() == 0 && len(report.Failures) > 0 {
		return false, &fs.PathError{Op: "scan", Path: path, Err: report.Failures[0].Err}
	}
	return report.Leaks() > 0, nil
}

// again is the command that looks at the same with the rights of root.
func (o *doctorOptions) again() string {
	command := "sudo modsign doctor"
	for _, flag := range []struct{ name, value string }{
		{"root", strings.TrimSuffix(o.root, "/")}, {"installed", o.kernel}, {"kernel", o.image}, {"config", o.config},
	} {
		if flag.value != "" {
			command += " --" + flag.name + " " + shell.Quote(flag.value)
		}
	}
	return command
}

// keyring is what the kernel should have in its keyrings, and has. Without the image it holds
// the rest.
func (o *doctorOptions) keyring(u *ui, state *machine.State) (
	keys *verify.Keyring, config kbuild.Config, name string, unread []machine.Problem, err error,
) {
	rings := ringOptions{config: o.config, running: filepath.Clean(o.root) == "/" && o.kernel == ""}
	chosen := installedOptions{installed: cmp.Or(o.kernel, running), root: o.root}
	var found *kernel
	files := &kernelFiles{running: rings.running}
	defer func() { files.image.Close() }()
	if found, err = chosen.kernel(nil); err == nil {
		name = found.Release
	}
	files.installed, files.path = found, o.image
	if err == nil || o.image != "" { // with an image, the kernel's own files are not needed
		err = files.open()
	}
	keys = found.rules()
	if err == nil {
		if _, err = addImage(keys, files.image); err == nil && rings.running {
			if err := runs(keys, files.image.Name()); err != nil {
				return nil, nil, "", nil, withHint(err, "name its version too: --installed KVER")
			}
		}
	}
	if err != nil {
		unread = append(unread, machine.Problem{Source: "the kernel's image", Err: err})
		_ = keys.Unread(verify.Builtin, "the kernel's image")
	}
	if err := rings.follow(u, keys, files); err != nil {
		return nil, nil, "", nil, err
	}
	of, err := files.configuration(o.config)
	if err != nil {
		return nil, nil, "", nil, err
	}
	return keys, of.Config, cmp.Or(name, o.image, "unknown"), unread, state.Apply(keys)
}

// factName is a fact in words.
func factName(f verify.Fact) string {
	switch f {
	case verify.Yes:
		return "on"
	case verify.No:
		return "off"
	}
	return "not known"
}

func showState(u *ui, s *machine.State, policy verify.Policy, keys *verify.Keyring, kernel string) {
	field := func(name, value string) { u.Result("%-22s%s", name+":", value) }
	field("kernel", fmt.Sprintf("%s, judged as %s", kernel, keys.Kernel()))
	yesNo := map[verify.Fact]string{verify.Yes: "yes", verify.No: "no", verify.Unknown: "not known"}
	enforced := yesNo[policy.Enforced()]
	from := ""
	if s.SigEnforce == verify.Unknown && policy.Enforced() != verify.Unknown {
		from = ", as " + strings.Join(policy.Evidence, " and ")
	}
	field("signatures enforced", fmt.Sprintf("%s%s (module.sig_enforce %s, lockdown %s)", enforced, from,
		factName(s.SigEnforce), cmp.Or(s.Lockdown, "not known")))
	switch {
	case !s.EFI && s.SecureBoot == verify.Unknown:
		field("EFI", "not known")
	case !s.EFI:
		field("EFI", "no")
	default:
		field("Secure Boot", factName(s.SecureBoot))
		field("setup mode", factName(s.SetupMode))
		field("shim's table", map[bool]string{true: "yes", false: "no"}[s.ShimTable])
		field("MokListTrustedRT", yesNo[s.Firmware.MokListTrusted])
		for _, l := range []struct {
			name   string
			lists  []verify.List
			reject bool
		}{
			{"db", s.Firmware.DB, false}, {"dbx", s.Firmware.DBX, true}, {"MokListRT", s.Firmware.MokList, false},
			{"MokListXRT", s.Firmware.MokListX, true},
		} {
			summary := listSummary(l.lists, l.reject)
			switch {
			case s.Missed(l.name) && len(l.lists) == 0:
				summary = "not read"
			case s.Missed(l.name):
				summary += ", and not all of it was read"
			}
			field(l.name, summary)
		}
		var names []string
		for _, v := range s.Keys {
			names = append(names, fmt.Sprintf("%s: %s", v.Name, plural(len(v.Certificates()), "certificate")))
		}
		field("PK, KEK", cmp.Or(strings.Join(names, ", "), "none"))
	}
	for _, line := range ringLines(keys) {
		u.Result("%s", line)
	}
}

// listSummary counts what is in lists.
func listSummary(lists []verify.List, reject bool) string {
	if len(lists) == 0 {
		return "none"
	}
	certs, all := 0, 0
	skipped := make(map[string]int)
	for _, l := range lists {
		certs += len(l.Certificates())
		all += l.Len()
		for kind, n := range l.Skipped(reject) {
			skipped[kind] += n
		}
	}
	text := plural(certs, "certificate")
	others := 0
	for _, n := range skipped {
		others += n
	}
	if hashes := all - certs - others; hashes > 0 {
		text += fmt.Sprintf(", %d hashes", hashes)
	}
	if others > 0 {
		text += fmt.Sprintf(", %d elements that no kernel reads", others)
	}
	return text
}

type jsonFinding struct {
	Type    string        `json:"message_type"` // finding
	Level   machine.Level `json:"level"`
	Name    string        `json:"name"`
	About   string        `json:"about"`
	Text    string        `json:"text"`
	Meaning string        `json:"meaning"`
	Command string        `json:"command"`
}

type jsonMachine struct {
	Type           string    `json:"message_type"` // machine
	Kernel         string    `json:"kernel"`
	Rules          string    `json:"rules"`
	Enforced       *bool     `json:"signatures_enforced,omitempty"`
	SigEnforce     *bool     `json:"sig_enforce,omitempty"`
	Lockdown       string    `json:"lockdown,omitempty"`
	NoModules      *bool     `json:"modules_disabled,omitempty"`
	EFI            bool      `json:"efi"`
	SecureBoot     *bool     `json:"secure_boot,omitempty"`
	SetupMode      *bool     `json:"setup_mode,omitempty"`
	ShimTable      bool      `json:"shim_table"`
	MokListTrusted *bool     `json:"mok_list_trusted,omitempty"`
	IgnoreDB       bool      `json:"mok_ignore_db,omitempty"`
	Pending        []string  `json:"pending,omitempty"`
	Keys           []jsonKey `json:"keys"`
	Unread         []string  `json:"unread,omitempty"`
	Warnings       []string  `json:"warnings,omitempty"`
}

func (o *doctorOptions) json(u *ui, s *machine.State, policy verify.Policy, keys *verify.Keyring, kernel string,
	findings []machine.Finding, problems []machine.Problem) {
	known := func(f verify.Fact) *bool {
		if f == verify.Unknown {
			return nil
		}
		yes := f == verify.Yes
		return &yes
	}
	m := jsonMachine{
		Type: "machine", Kernel: kernel, Rules: keys.Kernel(), Enforced: known(policy.Enforced()),
		SigEnforce: known(s.SigEnforce), Lockdown: s.Lockdown, NoModules: known(s.ModulesDisabled), EFI: s.EFI,
		SecureBoot: known(s.SecureBoot), SetupMode: known(s.SetupMode), ShimTable: s.ShimTable,
		MokListTrusted: known(s.Firmware.MokListTrusted), IgnoreDB: s.Firmware.IgnoreDB, Pending: s.Pending,
		Keys: newJSONKeys(keys), Warnings: keys.Warnings(),
	}
	for _, p := range problems {
		m.Unread = append(m.Unread, p.String())
	}
	for _, f := range findings {
		u.Object(jsonFinding{"finding", f.Level, f.Name, f.About, f.Text, f.Meaning, f.Command})
	}
	u.Object(m)
}
