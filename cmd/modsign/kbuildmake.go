package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/sign"
)

// kbuildMake is one call of make in a tree where modsign is enabled: the hook
// hands it here, and here it is given to the kernel's Makefile, step by step.
type kbuildMake struct {
	makeProgram string
	objtree     string
	extmod      string
	program     string // where modsign is, as enable wrote it down
	keep        string
	lifetime    time.Duration

	flags kbuildrun.MakeFlags
	vars  kbuild.Vars
}

func newKbuildMakeCommand(u *ui) *cobra.Command {
	var m kbuildMake
	cmd := &cobra.Command{
		Use:    "make --objtree DIR [--extmod DIR] -- [GOAL...]",
		Short:  "Do what the hook is called for",
		Hidden: true,
		Long: `Make is what the hook calls, from within make: it gives the goals to the
kernel's Makefile one after the other, with the certificate of a one-time key
where a kernel may be linked, and signs what modules_install installs. The
flags and variables of make come in MAKEFLAGS, as to any make below make.`,
		RunE: func(cmd *cobra.Command, goals []string) error { return m.run(cmd.Context(), u, goals) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&m.objtree, "objtree", ".", "the object tree, `DIR`")
	flags.StringVar(&m.extmod, "extmod", "", "the folder of an external module, `DIR`")
	flags.StringVar(&m.makeProgram, "make", "make", "the `PROGRAM` to call")
	flags.StringVar(&m.program, "program", "", "where modsign is, `FILE`")
	addAgentEnd(flags, &m.keep, &m.lifetime)
	return cmd
}

func (m *kbuildMake) run(ctx context.Context, u *ui, goals []string) error {
	m.flags = kbuildrun.ParseMakeFlags(os.Getenv("MAKEFLAGS"))
	m.vars = kbuild.Vars{Line: m.flags.Vars, LookupEnv: os.LookupEnv}
	u.quiet = m.flags.Silent
	if err := m.complain(u, goals); err != nil {
		return err
	}
	var failed error
	for _, step := range kbuildrun.Plan(goals) {
		err := m.step(ctx, u, step)
		if err != nil && (!m.flags.KeepGoing || ctx.Err() != nil) {
			return err
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// complain tells of modules that an interrupted run may have left unsigned,
// unless they are about to be installed again.
func (m *kbuildMake) complain(u *ui, goals []string) error {
	dirs, err := kbuildrun.Unfinished(m.objtree)
	if err != nil || len(dirs) == 0 {
		return err
	}
	var target string
	if tree, err := kbuild.OpenTree(m.objtree, m.extmod, m.vars); err == nil && slices.Contains(goals, "modules_install") {
		target, _ = tree.ModLib()
	}
	for _, dir := range dirs {
		if dir != target {
			u.say("warning: an earlier make modules_install did not come to its end, and modules in %s may be unsigned: run it again", dir)
		}
	}
	return nil
}

func (m *kbuildMake) step(ctx context.Context, u *ui, step kbuildrun.Step) error {
	if m.extmod != "" && step.Work != kbuildrun.Install && step.Work != kbuildrun.Sign {
		return m.make(ctx, step.Goals)
	}
	switch step.Work {
	case kbuildrun.Build:
		return m.build(ctx, u, step.Goals)
	case kbuildrun.Package:
		return m.pack(ctx, u, step.Goals)
	case kbuildrun.Install, kbuildrun.Sign:
		return m.install(ctx, u, step)
	case kbuildrun.Clean, kbuildrun.Purge:
		return m.clean(ctx, u, step)
	}
	return m.make(ctx, step.Goals)
}

// idle reports whether make is not to do its work: -n, -t and -q.
func (m *kbuildMake) idle() bool { return m.flags.DryRun || m.flags.Touch || m.flags.Question }

// make calls the kernel's Makefile. It is the outermost make that people see.
func (m *kbuildMake) make(ctx context.Context, goals []string, overrides ...string) error {
	args := append([]string{"-f", "Makefile"}, overrides...)
	return runMake(ctx, m.makeProgram, append(os.Environ(), "MAKELEVEL=0"), append(args, goals...))
}

// runMake calls make in the place of this program.
func runMake(ctx context.Context, program string, env, args []string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it tidies up what it was making
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exitStatus(exit.ExitCode()) // it has said why
	}
	return err
}

func (m *kbuildMake) tree() (*kbuild.Tree, error) {
	return kbuild.OpenTree(m.objtree, m.extmod, m.vars)
}

func (m *kbuildMake) hook() *kbuildrun.Hook {
	return &kbuildrun.Hook{Objtree: m.objtree, Program: m.program}
}

func (m *kbuildMake) path(elem ...string) string {
	return filepath.Join(append([]string{m.objtree}, elem...)...)
}

// build makes goals that may link a kernel.
func (m *kbuildMake) build(ctx context.Context, u *ui, goals []string) error {
	overrides, err := m.certificate(ctx, u)
	if err != nil {
		return err
	}
	hashed := false
	if !allCertificates(goals) {
		if hashed, err = m.hashes(ctx, u, overrides); err != nil {
			return err
		}
	}
	if err := m.make(ctx, goals, overrides...); err != nil {
		return err
	}
	if hashed {
		if err := m.stillHashed(); err != nil {
			return err
		}
	}
	return m.placeSignFile()
}

func allCertificates(goals []string) bool {
	return len(goals) > 0 && !slices.ContainsFunc(goals, func(goal string) bool { return !strings.HasPrefix(goal, "certs/") })
}

// pack makes a package. The package's own make installs modules past the hook,
// with the sign-file in the tree: it has to be there, and be modsign, before.
func (m *kbuildMake) pack(ctx context.Context, u *ui, goals []string) error {
	overrides, err := m.certificate(ctx, u)
	if err != nil {
		return err
	}
	if !m.idle() {
		if err := m.make(ctx, []string{"scripts"}, overrides...); err != nil {
			return err
		}
		if err := m.placeSignFile(); err != nil {
			return err
		}
		if _, err := m.hashes(ctx, u, overrides); err != nil {
			return err
		}
	}
	if err := m.make(ctx, goals, overrides...); err != nil || m.idle() {
		return err
	}
	return m.installed()
}

// certificate sees to it that there is a certificate to link into a kernel, and
// returns the variables that lead Kbuild to it: where Kbuild would make a key in
// the tree, the agent makes one.
func (m *kbuildMake) certificate(ctx context.Context, u *ui) (overrides []string, err error) {
	tree, err := m.tree()
	if err != nil {
		return nil, err
	}
	if tree.Config != nil && !tree.Synced && !m.idle() {
		// What the configuration says counts after Kconfig has completed it.
		if err := m.make(ctx, []string{"syncconfig"}); err != nil {
			return nil, err
		}
		if tree, err = m.tree(); err != nil {
			return nil, err
		}
	}
	if tree.Config.SigKey() != kbuild.DefaultKey {
		return nil, nil
	}
	if !m.idle() {
		if err := m.oneTimeKey(ctx, u, tree); err != nil {
			return nil, err
		}
	} else if !exists(m.path(kbuildrun.Certificate)) {
		return nil, nil
	}
	return []string{"CONFIG_MODULE_SIG_KEY=" + kbuildrun.Certificate}, nil
}

// placeSignFile puts modsign in the place of a sign-file that Kbuild has built.
func (m *kbuildMake) placeSignFile() error {
	tree, err := m.tree()
	if err != nil || m.idle() || !tree.Config.Bool("MODULE_SIG_FORMAT") || !kbuildrun.Enabled(m.objtree) {
		return err
	}
	return m.hook().PlaceSignFile()
}

// oneTimeKey sees to it that the agent holds a key of the configured kind, and
// that its certificate is in the tree.
func (m *kbuildMake) oneTimeKey(ctx context.Context, u *ui, tree *kbuild.Tree) error {
	o, err := m.agentOptions(tree)
	if err != nil {
		return err
	}
	client, err := agent.Dial(o.Dir)
	gone, isGone := errors.AsType[*agent.UnavailableError](err)
	switch {
	case err == nil:
		defer client.Close()
		status, err := client.Status()
		if err != nil {
			return err
		}
		if status.Profile == o.Profile && m.certificateIs(client) {
			return nil
		}
		u.note("the configuration of the key has changed: a new one-time key is made, and the kernel is linked with it")
		if err := client.Forget(); err != nil {
			return err
		}
	case !isGone:
		return err
	default:
		if exists(m.path(kbuildrun.Certificate)) {
			u.say("%v: a new one-time key is made, and the kernel is linked with it", gone)
		}
	}
	client, err = startAgent(ctx, o)
	if err != nil {
		return fmt.Errorf("cannot make a one-time key: %w", err)
	}
	return client.Close()
}

// certificateIs reports whether the certificate in the tree is the agent's.
func (m *kbuildMake) certificateIs(client *agent.Client) bool {
	return client.Published() == nil
}

// agentOptions are the one-time key as the tree's configuration wants it.
func (m *kbuildMake) agentOptions(tree *kbuild.Tree) (agentStart, error) {
	o := agentStart{Dir: m.path(kbuildrun.Dir), Tree: m.objtree, Hash: tree.Config.SigHash(), Keep: m.keep, Lifetime: m.lifetime}
	var profile []byte
	for _, genkey := range []string{m.path("certs/x509.genkey"), filepath.Join(tree.Srctree, "certs/default_x509.genkey")} {
		text, err := readLimited(genkey)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return o, err
		}
		o.Genkey, profile = genkey, text
		break
	}
	o.Profile = fmt.Sprintf("%s %s %x", tree.Config.SigKeyType(), o.Hash, sha256.Sum256(profile))
	switch kind := tree.Config.SigKeyType(); kind {
	case "rsa": // of the size that the profile says
	case "ecdsa":
		o.KeyType = keygen.ECDSAP384.String()
	default:
		return o, fmt.Errorf("the configuration wants a one-time key of type %s, which modsign cannot make: choose RSA or ECDSA (CONFIG_MODULE_SIG_KEY_TYPE_*)", kind)
	}
	return o, nil
}

// install is modules_install and modules_sign.
func (m *kbuildMake) install(ctx context.Context, u *ui, step kbuildrun.Step) error {
	tree, err := m.tree()
	if err != nil {
		return err
	}
	if hasHashes(tree) && m.extmod == "" {
		return m.installHashed(ctx, u, tree, step)
	}
	return m.installSigned(ctx, u, tree, step)
}

func (m *kbuildMake) installSigned(ctx context.Context, u *ui, tree *kbuild.Tree, step kbuildrun.Step) error {
	config, installs := tree.Config, step.Work == kbuildrun.Install
	signs := config.Bool("MODULES") && config.Bool("MODULE_SIG") && config.SigKey() != "" && (config.SigAll() || !installs)
	if installs && !signs {
		if m.idle() {
			u.say("would run %s -f Makefile modules_install", m.makeProgram)
			return nil
		}
		// Kbuild would try it with an empty key too.
		return m.make(ctx, step.Goals, "CONFIG_MODULE_SIG_ALL=")
	}
	if !signs && config.SigKey() == "" && config.Bool("MODULE_SIG") {
		return errors.New("CONFIG_MODULE_SIG_KEY is empty: there is no key to sign modules with; modsign sign --key FILE does it")
	}
	if !signs {
		return m.make(ctx, step.Goals) // which says why not
	}
	modlib, err := tree.ModLib()
	if err != nil {
		return err
	}
	if strings.HasPrefix(config.SigKey(), "pkcs11:") {
		u.note("modsign has no support for keys in a token (PKCS #11): Kbuild signs and compresses the modules itself")
		if m.idle() && installs {
			return nil
		}
		return m.make(ctx, step.Goals)
	}
	if m.idle() {
		// Kbuild removes the installed modules even when make -n asks what it would do.
		if installs {
			u.say("would run %s -f Makefile modules_install without signing, compression and depmod", m.makeProgram)
		}
		u.say("would sign the modules in %s", modlib)
		return nil
	}

	signer, how, err := m.signer(tree)
	if err != nil {
		if m.extmod == "" || !installs {
			return err
		}
		u.say("%s is installed unsigned: %v; a kernel that wants signatures will refuse it until modsign sign --key FILE has signed it", m.extmod, err)
		return m.make(ctx, step.Goals, "CONFIG_MODULE_SIG_ALL=")
	}
	return m.seal(ctx, u, tree, step, sealing{how: how, verb: "signing", do: func(modules *sign.Tree, options sign.Options) (sign.Summary, error) {
		return modules.Sign(ctx, signer, options)
	}})
}

// A sealing is what is done to modules that Kbuild has installed, before they are
// compressed.
type sealing struct {
	verb, how string
	strips    bool // Kbuild is not to
	overrides []string
	do        func(*sign.Tree, sign.Options) (sign.Summary, error)
}

// seal has Kbuild install the modules, and does the rest to all of them at once.
func (m *kbuildMake) seal(ctx context.Context, u *ui, tree *kbuild.Tree, step kbuildrun.Step, s sealing) error {
	installs := step.Work == kbuildrun.Install
	modlib, err := tree.ModLib()
	if err != nil {
		return err
	}
	err = kbuildrun.MarkInstallStarted(m.objtree, modlib)
	remembered := err == nil
	switch {
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS):
		// As of root, where the object tree lies on another machine.
		u.note("an interruption will not be remembered: %v", err)
	case err != nil:
		return err
	}
	if err := os.MkdirAll(modlib, 0o777); err != nil {
		return err
	}
	var failed error
	if installs {
		failed = m.make(ctx, step.Goals, append(s.overrides, "CONFIG_MODULE_SIG_ALL=", "CONFIG_MODULE_COMPRESS_ALL=", "CONFIG_MODULE_COMPRESS_GZIP=",
			"CONFIG_MODULE_COMPRESS_XZ=", "CONFIG_MODULE_COMPRESS_ZSTD=", "DEPMOD=true")...)
		if failed != nil && (!m.flags.KeepGoing || ctx.Err() != nil) {
			return failed
		}
	}
	if err := m.sealTree(ctx, u, tree, s, installs, failed != nil); err != nil {
		return errors.Join(failed, err)
	}
	if failed != nil {
		return failed
	}
	if installs {
		if err := m.depmod(ctx, u, tree); err != nil {
			return err
		}
	}
	if remembered {
		if err := kbuildrun.MarkInstallDone(m.objtree, modlib); err != nil {
			return err
		}
	}
	return m.installed()
}

// keyGone says that nobody can sign for the kernel of this tree any more.
func (m *kbuildMake) keyGone() error {
	err := errors.New("the one-time key of this kernel is gone")
	if _, why := agent.Dial(m.path(kbuildrun.Dir)); why != nil {
		err = fmt.Errorf("%w: %w", err, why)
	}
	return withHint(err, "make makes a new one, and links the kernel with it; then install again")
}

// signer is the key that the kernel of this tree was linked with.
func (m *kbuildMake) signer(tree *kbuild.Tree) (*sign.Signer, string, error) {
	path, oneTime := tree.Config.SigKey(), tree.Config.SigKey() == kbuild.DefaultKey
	var pair *keygen.Pair
	var err error
	if oneTime && exists(m.path(kbuildrun.Certificate)) {
		path = kbuildrun.Certificate
		pair, err = m.agentPair()
	} else { // the tree may have been built before modsign was enabled in it
		if !filepath.IsAbs(path) {
			path = m.path(path)
		}
		keepSecrets()
		pair, err = keygen.Load(path, "", keygen.LoadOptions{Passphrase: buildPIN, KeyOf: agent.KeyOf})
	}
	if _, gone := errors.AsType[*agent.UnavailableError](err); gone || oneTime && errors.Is(err, fs.ErrNotExist) {
		return nil, "", m.keyGone()
	}
	if err != nil {
		return nil, "", err
	}
	linked, err := keygen.LoadCertificates(m.path("certs/signing_key.x509"))
	switch {
	case err == nil && !linked[0].Equal(pair.Certificate):
		return nil, "", withHint(fmt.Errorf("%s is not the key that this kernel was linked with (certs/signing_key.x509)", path), "make links it again; then install again")
	case errors.Is(err, fs.ErrNotExist) && oneTime: // make clean was here
		return nil, "", m.keyGone()
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, "", err
	}
	hash, err := cms.HashByName(tree.Config.SigHash())
	if err != nil {
		return nil, "", fmt.Errorf("CONFIG_MODULE_SIG_HASH: %w", err)
	}
	signer, err := newSigner(pair, path, hash, false)
	return signer, signedWith(pair, hash), err
}

// agentPair is the agent's key. The certificate's file is not loaded as a key's: where
// the tree is another user's, it might lead to a key of root's.
func (m *kbuildMake) agentPair() (*keygen.Pair, error) {
	client, err := agent.Dial(m.path(kbuildrun.Dir))
	if err == nil {
		err = client.Published()
	}
	if err != nil {
		return nil, err
	}
	return client.Pair(), nil
}

// sealTree does it to the modules that this tree installs, and no others.
func (m *kbuildMake) sealTree(ctx context.Context, u *ui, tree *kbuild.Tree, s sealing, installs, some bool) error {
	names, err := tree.Modules()
	if err != nil {
		return err
	}
	destination, err := tree.Destination()
	if err != nil {
		return err
	}
	if some { // make -k went on without a few
		names = slices.DeleteFunc(names, func(name string) bool { return !exists(filepath.Join(destination, name)) })
	}
	if len(names) == 0 {
		return nil
	}
	format, err := sign.ParseFormat(cmp.Or(tree.Config.Compression(), "none"))
	if err != nil {
		return err
	}
	modules, err := sign.Open(sign.Source{Roots: []string{destination}, Names: names, Compress: format})
	if err != nil {
		return err
	}
	defer modules.Close()
	// Twice as many, as by default: at any time half of them wait for the agent or the disk.
	w := work{ui: u, verb: s.verb, how: s.how, options: sign.Options{
		Jobs: 2 * max(m.flags.Jobs, 0), Sync: sign.SyncNone, Extend: installs, StripDebug: s.strips, StripProgram: stripProgram(tree),
	}}
	return w.do(ctx, func(options sign.Options) (sign.Summary, error) { return s.do(modules, options) })
}

// depmod does as the kernel's scripts/depmod.sh.
func (m *kbuildMake) depmod(ctx context.Context, u *ui, tree *kbuild.Tree) error {
	if _, err := os.Stat(m.path("System.map")); err != nil {
		u.say("warning: depmod is left out, as there is no System.map in %s", m.objtree)
		return nil
	}
	name, _ := m.vars.Lookup("DEPMOD")
	name = cmp.Or(name, "depmod")
	program, err := lookPath(name)
	if err != nil {
		u.say("warning: depmod is left out, as there is no program %s (Debian's package kmod has it)", name)
		return nil
	}
	args := []string{"-ae", "-F", "System.map"}
	if root := tree.InstallModPath(); root != "" {
		args = append(args, "-b", root)
	}
	cmd := exec.CommandContext(ctx, program, append(args, tree.Release)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.objtree, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// lookPath finds a program, also in /sbin, which is not in everyone's PATH.
func lookPath(name string) (string, error) {
	program, err := exec.LookPath(name)
	if err != nil {
		return exec.LookPath(filepath.Join("/sbin", name))
	}
	return program, nil
}

// installed tells the agent that the kernel's modules are installed, which may be
// what it waits for to end.
func (m *kbuildMake) installed() error {
	if m.extmod != "" {
		return nil
	}
	client, err := agent.Dial(m.path(kbuildrun.Dir))
	if _, gone := errors.AsType[*agent.UnavailableError](err); gone {
		return nil // another key has signed
	}
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Installed()
}

// clean destroys the key, whatever make says of the rest.
func (m *kbuildMake) clean(ctx context.Context, u *ui, step kbuildrun.Step) error {
	err := m.make(ctx, step.Goals)
	if m.idle() || ctx.Err() != nil {
		return err
	}
	if _, forget := m.forget(); forget != nil {
		return errors.Join(err, forget)
	}
	if step.Work == kbuildrun.Purge && err == nil {
		err = m.purge()
	}
	return err
}

// forget destroys the key, and reports whether there was one.
func (m *kbuildMake) forget() (had bool, err error) {
	client, err := agent.Dial(m.path(kbuildrun.Dir))
	switch _, gone := errors.AsType[*agent.UnavailableError](err); {
	case err == nil:
		defer client.Close()
		if err := client.Forget(); err != nil {
			return true, err
		}
		had = true
	case !gone:
		return false, err
	}
	for _, name := range []string{kbuildrun.Certificate, kbuildrun.Dir + "/agent.sock", kbuildrun.HashList} {
		if err := kbuildrun.Remove(m.objtree, name); err != nil {
			return had, err
		}
	}
	return had, nil
}

// purge removes the receipts too, as mrproper removes all but the source.
func (m *kbuildMake) purge() error {
	if err := kbuildrun.RemoveReceipts(m.objtree); err != nil {
		return err
	}
	return m.hook().Purge()
}
