package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/verify"
	"github.com/modsign/modsign/verify/machine"
)

// ringOptions choose what a kernel has in its keyrings beyond its image.
type ringOptions struct {
	running   bool
	config    string
	mok       []string
	db        []string
	dbx       []string
	secondary []string
	blacklist []string

	firmware verify.Firmware // what apply gave to the keyring
}

// efivars stands for what the firmware and shim tell on this machine.
const efivars = "efivars"

func (o *ringOptions) addFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&o.running, "running", false, "judge as the running kernel, with the keyrings it has now")
	flags.StringVar(&o.config, "config", "", "the kernel's configuration `FILE` (default: the installed one)")
	flags.StringArrayVar(&o.mok, "mok", nil, "machine owner keys in `FILE`, or efivars: all of EFI (repeatable)")
	flags.StringArrayVar(&o.db, "db", nil, "certificates of the firmware's db in `FILE` (repeatable)")
	flags.StringArrayVar(&o.dbx, "dbx", nil, "what the firmware's dbx rejects, in `FILE` (repeatable)")
	flags.StringArrayVar(&o.secondary, "secondary", nil, "certificates in `FILE` that root adds (repeatable)")
	flags.StringArrayVar(&o.blacklist, "blacklist", nil, "certificates or hashes to reject in `FILE` (repeatable)")
}

// given reports whether one of the flags is given that add keys.
func (o *ringOptions) given() bool {
	return o.running || len(o.mok)+len(o.db)+len(o.dbx)+len(o.secondary)+len(o.blacklist) > 0
}

// apply gives the keyring what the flags name.
func (o *ringOptions) apply(u *ui, keys *verify.Keyring, files *kernelFiles, root string) error {
	if !o.given() && o.config == "" {
		return nil
	}
	if err := o.follow(u, keys, files); err != nil {
		return err
	}
	for ring, paths := range map[verify.Ring][]string{verify.Secondary: o.secondary, verify.Blacklist: o.blacklist} {
		for _, path := range paths {
			if err := keys.AddFileTo(ring, path); err != nil {
				return hintFor(path, err)
			}
		}
	}
	var firmware verify.Firmware
	for _, kind := range []struct {
		paths []string
		lists *[]verify.List
	}{{o.mok, &firmware.MokList}, {o.db, &firmware.DB}, {o.dbx, &firmware.DBX}} {
		for _, path := range kind.paths {
			if path == efivars {
				continue
			}
			list, err := verify.ReadList(path)
			if err != nil {
				return hintFor(path, err)
			}
			*kind.lists = append(*kind.lists, list)
		}
	}
	o.firmware = firmware
	if err := keys.AddFirmware(firmware); err != nil || !o.reads() {
		return err
	}
	state, err := machine.Read(root, o.running)
	if err != nil {
		return err
	}
	for _, p := range state.Problems {
		u.Note("warning: could not read %s", p)
	}
	read := state.Firmware
	read.MokList = append(read.MokList[:len(read.MokList):len(read.MokList)], firmware.MokList...)
	o.firmware = read
	return state.Apply(keys)
}

// reads reports whether the machine itself is asked.
func (o *ringOptions) reads() bool {
	if o.running {
		return true
	}
	for _, path := range o.mok {
		if path == efivars {
			return true
		}
	}
	return false
}

// kernelFiles are those of one kernel, as far as it has them.
type kernelFiles struct {
	installed *kernel       // nil if it is not installed
	path      string        // of its image, if that was named
	image     *verify.Image // open, until its configuration is read
	running   bool          // it runs on this machine

	config *kernelConfig // once it was looked for
}

// open opens the kernel's image: the named one, or that of the installed kernel.
func (k *kernelFiles) open() (err error) {
	if k.path != "" {
		k.image, err = verify.OpenImage(k.path)
	} else {
		k.image, err = k.installed.openImage()
	}
	return err
}

// A kernelConfig is the configuration of a kernel, nil if there is none.
type kernelConfig struct {
	kbuild.Config
	from string // what to call it
}

// follow tells the keyring what the kernel's configuration says.
func (o *ringOptions) follow(u *ui, keys *verify.Keyring, files *kernelFiles) error {
	_, release := besideImage(files.path)
	if files.installed != nil {
		release = files.installed.Release
	}
	config, err := files.configuration(o.config)
	if err == nil && o.config != "" {
		if judged, of := cmp.Or(keys.Release(), release), configVersion(o.config); isOther(judged, of) {
			u.Note("warning: %s is the configuration of Linux %s, and the kernel is %s", o.config, of, judged)
		}
	}
	if err != nil || config.Config == nil {
		return err
	}
	return keys.Follow(verify.ConfigFacts(cmp.Or(release, keys.Release()), config.Bool))
}

// configuration finds the kernel's configuration: the named file, the one beside the image, the
// installed one, that of the package with the image, the one inside it, or the one that the
// running kernel shows. It is read once.
func (k *kernelFiles) configuration(named string) (kernelConfig, error) {
	if k.config != nil {
		return *k.config, nil
	}
	found, err := k.findConfig(named)
	if err != nil {
		return kernelConfig{}, err
	}
	k.config = &found
	return found, nil
}

func (k *kernelFiles) findConfig(named string) (kernelConfig, error) {
	if named != "" {
		return openConfig(named)
	}
	if beside, _ := besideImage(k.path); beside != "" {
		if found, err := openConfig(beside); !errors.Is(err, fs.ErrNotExist) {
			return found, err
		}
	}
	if k.installed != nil {
		config, err := k.installed.Config()
		if err != nil || config != nil {
			return kernelConfig{config, "the configuration of " + k.installed.Release}, err
		}
	}
	if k.image != nil {
		text, from, err := k.image.Config()
		if err != nil {
			return kernelConfig{}, err
		}
		if text != nil {
			config, err := kbuild.ReadConfig(bytes.NewReader(text))
			return kernelConfig{config, from}, configError(from, err)
		}
	}
	if k.running {
		if config, err := kbuild.RunningConfig(); err != nil || config != nil {
			return kernelConfig{config, kbuild.RunningConfigFile}, err
		}
	}
	return kernelConfig{}, nil
}

func openConfig(path string) (kernelConfig, error) {
	config, err := kbuild.OpenConfig(path)
	if errors.Is(err, bufio.ErrTooLong) {
		err = configError(path, bufio.ErrTooLong)
	}
	return kernelConfig{config, path}, err
}

// configError names the file in an error of kbuild.ReadConfig.
func configError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("%s: not a kernel configuration: a line is longer than 1 MiB", name)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// besideImage returns the path of the config-VERSION that distributions install beside
// vmlinuz-VERSION, and the version. Both are empty for an image without a version in its name.
func besideImage(image string) (config, version string) {
	dir, name := filepath.Split(image)
	_, version, ok := strings.Cut(name, "-")
	if !ok {
		return "", ""
	}
	return filepath.Join(dir, "config-"+version), version
}

// configVersion is the version that a comment at the beginning of a configuration names:
//
//	# Linux/x86 6.12.117 Kernel Configuration
//
// It is empty if there is none, and for what is no regular file.
func configVersion(path string) string {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() { // a pipe has no second reader
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head, _ := io.ReadAll(io.LimitReader(f, 4<<10))
	for line := range strings.Lines(string(head)) {
		words := strings.Fields(line)
		if len(words) == 5 && strings.HasPrefix(words[1], "Linux/") && words[3] == "Kernel" {
			return words[2]
		}
	}
	return ""
}

// isOther reports whether a release, as uname -r prints it, and the version in a configuration
// are of different kernels. Some distributions have 0 in the place of the third number of the
// release.
func isOther(release, version string) bool {
	of := func(text string) (major, minor, patch int, ok bool) {
		n, _ := fmt.Sscanf(text, "%d.%d.%d", &major, &minor, &patch)
		return major, minor, patch, n >= 2
	}
	a, b, c, ok := of(release)
	d, e, f, known := of(version)
	return ok && known && (a != d || b != e || c != f && c != 0)
}

// runs returns an error if the image in a keyring is not the running kernel's.
func runs(keys *verify.Keyring, image string) error {
	if release, now := keys.Release(), runningRelease(); release != "" && now != "" && release != now {
		return fmt.Errorf("%s: image of kernel %s, and %s runs", cmp.Or(image, "the installed image"), release, now)
	}
	return nil
}

// maxRingLines is how many keys of a keyring are listed for people. --json has all.
const maxRingLines = 200

// ringLines describe the keyrings for people: those that count, and why others do not.
func ringLines(keys *verify.Keyring) (lines []string) {
	all := keys.Known()
	for _, ring := range append(verify.Rings[:len(verify.Rings):len(verify.Rings)], "") {
		var names []string
		listed := 0
		for _, known := range all {
			if known.Ring == ring {
				if listed++; listed > maxRingLines {
					continue
				}
				names = append(names, fmt.Sprintf("  %s (%s)", cmp.Or(known.Name, "a certificate that cannot be read"),
					known.Source))
				if known.Problem != "" {
					names = append(names, "    "+known.Problem)
				}
			}
		}
		for _, description := range keys.Unmatched(ring) {
			names = append(names, fmt.Sprintf("  %s (of the running kernel)", description))
		}
		if listed > maxRingLines {
			names = append(names, fmt.Sprintf("  and %d more (--json lists them)", listed-maxRingLines))
		}
		title := cmp.Or(string(ring), "not in the kernel")
		if counts, _ := keys.Counts(ring); ring != "" && !counts {
			title += ", which does not count for modules"
		}
		if len(names) > 0 {
			lines = append(append(lines, title+":"), names...)
		}
	}
	return lines
}

// jsonKey is a certificate in a keyring of the kernel.
type jsonKey struct {
	Keyring     string `json:"keyring,omitempty"`
	Certificate string `json:"certificate"`
	Source      string `json:"source,omitempty"`
	Counts      bool   `json:"counts"`
	Problem     string `json:"problem,omitempty"`
}

func newJSONKeys(keys *verify.Keyring) []jsonKey {
	list := []jsonKey{}
	for _, known := range keys.Known() {
		list = append(list, jsonKey{string(known.Ring), known.Name, known.Source, known.Counts, known.Problem})
	}
	for _, ring := range verify.Rings {
		for _, description := range keys.Unmatched(ring) {
			counts, why := keys.Counts(ring)
			list = append(list, jsonKey{Keyring: string(ring), Certificate: description, Counts: counts, Problem: why})
		}
	}
	return list
}
