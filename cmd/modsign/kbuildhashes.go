package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
)

// hasHashes reports whether the kernel of a tree is to know its modules by hashes.
func hasHashes(tree *kbuild.Tree) bool {
	return tree.Config.HashFormat() != "" && tree.Config.Bool("MODULES")
}

// hashes makes the kernel and its modules and gives vmlinux the hashes of these, before
// a boot image is made of it, where the kernel is to have them.
func (m *kbuildMake) hashes(ctx context.Context, u *ui, overrides []string) (done bool, err error) {
	tree, err := m.tree()
	if err != nil || m.idle() || !hasHashes(tree) {
		return false, err
	}
	if err := m.make(ctx, []string{"vmlinux", "modules"}, overrides...); err != nil {
		return false, err
	}
	if tree, err = m.tree(); err != nil { // it has a release now
		return false, err
	}
	if age, err := sinceHashed(tree); age < 0 || err != nil {
		return true, err
	}
	_, _, err = embedHashes(ctx, u, tree, 2*max(m.flags.Jobs, 0))
	return true, err
}

// sinceHashed goes by times, as make does: it is how much newer than the hashes the
// newest is of what they depend on, the modules, vmlinux and the configuration. The
// list is written last of all.
func sinceHashed(tree *kbuild.Tree) (time.Duration, error) {
	list, err := os.Stat(filepath.Join(tree.Objtree, kbuildrun.HashList))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	names, err := tree.Modules()
	if err != nil {
		return 0, err
	}
	newest := time.Duration(math.MinInt64)
	for _, name := range append(names, "modules.order", "vmlinux", "include/config/auto.conf") {
		info, err := os.Stat(filepath.Join(tree.Objtree, name))
		if err != nil {
			return 0, err
		}
		newest = max(newest, info.ModTime().Sub(list.ModTime()))
	}
	return newest, nil
}

// stillHashed is for after the rest was made: it must not have made modules anew.
func (m *kbuildMake) stillHashed() error {
	tree, err := m.tree()
	if err != nil {
		return err
	}
	// The same time is that of a file system which keeps no more than seconds.
	if age, err := sinceHashed(tree); age <= 0 || err != nil {
		return err
	}
	return withHint(errors.New("vmlinux or a module was built again after vmlinux had got the hashes"), "run make again")
}

// installHashed is install for a kernel that knows its modules by hashes.
func (m *kbuildMake) installHashed(ctx context.Context, u *ui, tree *kbuild.Tree, step kbuildrun.Step) error {
	installs, merkle := step.Work == kbuildrun.Install, tree.Config.HashFormat() == "merkle"
	strip, _ := tree.Vars.Lookup("INSTALL_MOD_STRIP")
	switch was := tree.Config.InstallStrip(); {
	case installs && strip != was:
		return stripsOtherwise(strip, was)
	case !merkle:
		if err := m.installSigned(ctx, u, tree, step); err != nil || !installs || m.idle() {
			return err
		}
		return m.verifyInstalled(ctx, u, tree)
	case !installs:
		return errors.New("the modules of this kernel carry proofs in the place of signatures (CONFIG_MODULE_HASHES_MERKLE): there is nothing to sign")
	case m.idle():
		u.say("would run %s -f Makefile modules_install, and append the proofs", m.makeProgram)
		return nil
	}
	names, err := tree.Modules()
	if err != nil {
		return err
	}
	kernel, err := m.hashedKernel()
	if err != nil {
		return err
	}
	proofs, err := hashlist.ReadProofs(tree.Objtree, names, *kernel.Embedded.Root)
	if err != nil {
		return withHint(err, "make writes the proofs")
	}
	// What was hashed was stripped by modsign.
	return m.seal(ctx, u, tree, step, sealing{
		verb: "proving", strips: strip != "", overrides: []string{"CONFIG_MODULE_HASHES_MERKLE=", "CONFIG_MODULE_INSTALL_STRIP=", "INSTALL_MOD_STRIP="},
		do: func(modules *sign.Tree, options sign.Options) (sign.Summary, error) {
			return modules.Prove(ctx, proofs, options)
		},
	})
}

// hashedKernel is the vmlinux of the tree, with the hashes of its modules.
func (m *kbuildMake) hashedKernel() (*hashlist.Kernel, error) {
	path := m.path("vmlinux")
	kernel, err := hashlist.OpenKernel(path)
	if err == nil && kernel.Embedded.Blank() {
		err = fmt.Errorf("%s does not have the hashes of its modules yet", path)
	}
	if err != nil {
		return nil, withHint(err, "run make first")
	}
	return kernel, nil
}

// verifyInstalled sees to it that the kernel will load all that was installed: what
// stripped the modules was not modsign.
func (m *kbuildMake) verifyInstalled(ctx context.Context, u *ui, tree *kbuild.Tree) error {
	kernel, err := m.hashedKernel()
	if err != nil {
		return err
	}
	modlib, err := tree.ModLib()
	if err != nil {
		return err
	}
	order, err := kbuild.InstalledModules(modlib)
	if err != nil {
		return err
	}
	reference, err := hashlist.NewKernelReference(kernel.Embedded, order)
	if err != nil {
		return withHint(err, "run make first")
	}
	refused := 0
	_, err = reference.Verify(ctx, modlib, hashlist.VerifyOptions{Result: func(r hashlist.Result) {
		if r.Verdict == hashlist.Trusted || !slices.Contains(order, r.Name) && !strings.HasPrefix(r.Name, "kernel/") {
			return // modules of others have other ways
		}
		refused++
		if r.Err != nil {
			u.say("%s", describe(r.Path, r.Err))
		} else {
			u.say("%s: %s", r.Name, r)
		}
	}})
	if err != nil && !errors.Is(err, hashlist.ErrRefused) {
		return err
	}
	if refused > 0 {
		return withHint(fmt.Errorf("the kernel will not load %s of those that were installed", plural(refused, "module")), "run make, and install again")
	}
	return nil
}
