package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen/keystore"
)

type modulesSignOptions struct {
	signOptions
	variant string
}

func newModulesSignCommand(u *ui) *cobra.Command {
	var o modulesSignOptions
	cmd := &cobra.Command{
		Use:   "modules-sign [--key FILE] [--variant NAME] DIR...",
		Short: "Sign the modules of a kernel that is being packaged",
		Long: `Modules-sign signs the modules of a kernel that a distribution packages. Run it after
make modules_install, and after any step that strips modules, because stripping removes
signatures. It signs the modules below the directories in place, and replaces old
signatures. It can also remove debug information, and compress.

By default it takes the key, the certificate and the hash from the kernel's build tree,
which must be the working directory.

A package with several kernels keeps a key for each: --variant NAME takes KEY.sign+NAME,
CERT.sign+NAME and the directories DIR+NAME. An empty NAME takes KEY.sign, CERT.sign
and DIR.`,
		Example: `  modsign modules-sign --split-debug root/usr/lib/debug --compress xz root/lib/modules/6.12.0
  modsign modules-sign --variant debug --mode 0644 root/lib/modules/6.12.0`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("nothing to sign: name the directory of the installed modules, DIR/lib/modules/KVER")
			}
			if o.variant != "" && keystore.IsURI(o.key) {
				return usagef("--variant chooses between key files: give the --key of the variant itself")
			}
			if cmd.Flags().Changed("variant") {
				args = o.chooseVariant(args)
			} else if !cmd.Flags().Changed("key") {
				o.cert = o.certificate()
			}
			if err := o.chooseHash(args); err != nil {
				return err
			}
			return o.run(cmd.Context(), u, args)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	o.keyOptions.addFlags(flags)
	key := flags.Lookup("key")
	key.Usage = "sign with the key in `FILE` or a URI"
	key.DefValue, o.key = kbuild.DefaultKey, kbuild.DefaultKey
	flags.StringVar(&o.variant, "variant", "", "sign the kernel `NAME` of a package with its own key")
	o.signOptions.addFlags(flags, u)
	return cmd
}

// certificate is the file with the certificate of the key, which the kernel's build writes
// beside the key.
func (o *modulesSignOptions) certificate() string {
	if o.cert != "" {
		return o.cert
	}
	if base, ok := strings.CutSuffix(o.key, ".pem"); ok && exists(base+".x509") {
		return base + ".x509"
	}
	return ""
}

// chooseVariant takes the key and the directories of a variant.
func (o *modulesSignOptions) chooseVariant(dirs []string) []string {
	suffix := ""
	if o.variant != "" {
		suffix = "+" + o.variant
	}
	cert := o.cert
	if base, ok := strings.CutSuffix(o.key, ".pem"); ok && cert == "" {
		cert = base + ".x509"
	}
	o.key += ".sign" + suffix
	o.cert = ""
	if cert != "" {
		o.cert = cert + ".sign" + suffix
	}
	chosen := make([]string, len(dirs))
	for i, dir := range dirs {
		chosen[i] = filepath.Clean(dir) + suffix
	}
	return chosen
}

// chooseHash takes the hash that the kernel was configured with.
func (o *modulesSignOptions) chooseHash(dirs []string) error {
	if o.hash != "" {
		return nil
	}
	var paths []string
	if certs := filepath.Dir(o.key); filepath.Base(certs) == filepath.Dir(kbuild.DefaultKey) {
		paths = append(paths, filepath.Join(certs, "../.config"))
	}
	for _, dir := range dirs {
		paths = append(paths, filepath.Join(dir, "config"), filepath.Join(dir, "build/.config"))
	}
	for _, path := range paths {
		config, err := kbuild.OpenConfig(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot read the hash from the kernel's configuration: %w", err)
		}
		if o.hash = hashFlag(config.SigHash()); o.hash != "" {
			return nil
		}
	}
	return nil
}
