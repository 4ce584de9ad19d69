package kbuildrun

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
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
)

// hasHashes reports whether the kernel of a tree knows its modules by their hashes.
func hasHashes(tree *kbuild.Tree) bool {
	return tree.Config.HashFormat() != "" && tree.Config.Bool("MODULES")
}

// hashes makes vmlinux and the modules, and puts the hashes of the modules into vmlinux
// before a boot image is made of it. It does nothing for a kernel without hashes.
func (d *Driver) hashes(ctx context.Context, overrides []string) (done bool, err error) {
	tree, err := d.tree()
	if err != nil || d.idle() || !hasHashes(tree) {
		return false, err
	}
	if err := d.make(ctx, []string{"vmlinux", "modules"}, overrides...); err != nil {
		return false, err
	}
	if tree, err = d.tree(); err != nil { // it has a release now
		return false, err
	}
	if age, err := sinceHashed(tree); age < 0 || err != nil {
		return true, err
	}
	e, err := EmbedHashes(ctx, tree, d.jobs(), d.Front.Hash)
	if err == nil && e.Changed {
		d.Front.Embedded(e)
	}
	return true, err
}

// hasRightHashes reports whether vmlinux has the hashes of the modules that are there.
func (d *Driver) hasRightHashes() bool {
	tree, err := d.tree()
	if err != nil || d.idle() || !hasHashes(tree) {
		return false
	}
	age, err := sinceHashed(tree)
	return err == nil && age < 0
}

// sinceHashed returns how much newer than the hashes the newest file is that they depend
// on: the modules, vmlinux and the configuration. It compares times, as make does. The
// list is what modsign writes last.
func sinceHashed(tree *kbuild.Tree) (time.Duration, error) {
	list, err := os.Stat(filepath.Join(tree.Objtree, HashList))
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

// stillHashed checks that the rest of the build made no module again.
func (d *Driver) stillHashed() error {
	tree, err := d.tree()
	if err != nil {
		return err
	}
	// Equal times are those of a file system that keeps seconds only.
	if age, err := sinceHashed(tree); age <= 0 || err != nil {
		return err
	}
	return &HintError{errors.New("vmlinux or a module was built again after vmlinux got the hashes"), "run make again"}
}

// installHashed is install for a kernel that knows its modules by their hashes.
func (d *Driver) installHashed(ctx context.Context, tree *kbuild.Tree, step Step) error {
	installs := step.Work == Install
	strip, _ := tree.Vars.Lookup("INSTALL_MOD_STRIP")
	if frozen := tree.Config.InstallStrip(); installs && strip != frozen {
		return stripsOtherwise(strip, frozen)
	}
	if tree.Config.HashFormat() == string(hashlist.FormatMerkle) {
		return d.installProven(ctx, tree, step, strip != "")
	}
	if err := d.installSigned(ctx, tree, step); err != nil || !installs || d.idle() {
		return err
	}
	return d.verifyInstalled(ctx, tree)
}

// installProven is install for a kernel with the root of a Merkle tree: a module carries a
// proof in the place of a signature.
func (d *Driver) installProven(ctx context.Context, tree *kbuild.Tree, step Step, strips bool) error {
	if step.Work != Install {
		return errors.New("the modules of this kernel carry proofs in the place of signatures " +
			"(CONFIG_MODULE_HASHES_MERKLE): there is nothing to sign")
	}
	if d.idle() {
		d.Front.Say("would run %s -f Makefile modules_install, and append the proofs", d.Make)
		return nil
	}
	names, err := tree.Modules()
	if err != nil {
		return err
	}
	kernel, err := d.hashedKernel()
	if err != nil {
		return err
	}
	proofs, err := hashlist.ReadProofs(tree.Objtree, names, *kernel.Embedded.Root)
	if err != nil {
		return &HintError{err, "run make, which writes the proofs"}
	}
	return d.finish(ctx, tree, step, installStep{
		strips:    strips, // with what stripped the modules that were hashed
		overrides: []string{"CONFIG_MODULE_HASHES_MERKLE=", "CONFIG_MODULE_INSTALL_STRIP=", "INSTALL_MOD_STRIP="},
		do: func(modules *sign.Tree, l *lines, o sign.Options) error {
			return d.Front.Prove(ctx, o, l.through(func(o sign.Options) (sign.Summary, error) {
				return modules.Prove(ctx, proofs, sign.ProveOptions{WriteOptions: o.WriteOptions, DebugOptions: o.DebugOptions})
			}))
		},
	})
}

// hashedKernel is the vmlinux of the tree, with the hashes of its modules.
func (d *Driver) hashedKernel() (*hashlist.Kernel, error) {
	path := d.path("vmlinux")
	kernel, err := hashlist.OpenKernel(path)
	if err == nil && kernel.Embedded.Blank() {
		err = fmt.Errorf("%s does not have the hashes of its modules yet", path)
	}
	if err != nil {
		return nil, &HintError{err, "run make first"}
	}
	return kernel, nil
}

// verifyInstalled checks that the kernel will load all modules that were installed: it was
// not modsign that stripped them.
func (d *Driver) verifyInstalled(ctx context.Context, tree *kbuild.Tree) error {
	kernel, err := d.hashedKernel()
	if err != nil {
		return err
	}
	modlib, err := tree.ModLib()
	if err != nil {
		return err
	}
	lock, err := d.lockInstalls(ctx, modlib) // another install may have begun
	if err != nil {
		return err
	}
	defer lock.Unlock()
	order, err := kbuild.InstalledModules(modlib)
	if err != nil {
		return err
	}
	reference, err := hashlist.NewKernelReference(kernel.Embedded, order)
	if err != nil {
		return &HintError{err, "run make first"}
	}
	rejected := 0
	_, err = reference.Verify(ctx, modlib, hashlist.VerifyOptions{Result: func(r hashlist.Result) {
		if r.Verdict == hashlist.Trusted || !slices.Contains(order, r.Name) && !strings.HasPrefix(r.Name, "kernel/") {
			return // external modules have other ways
		}
		rejected++
		d.Front.Rejected(r)
	}})
	if err != nil && !errors.Is(err, hashlist.ErrRefused) {
		return err
	}
	if rejected > 0 {
		err := fmt.Errorf("the kernel will reject %d of the installed modules", rejected)
		return &HintError{err, "run make, and install again"}
	}
	return nil
}
