package verify

import (
	"context"
	"fmt"
	"strings"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/module"
)

// Options tell [Tree] and [InspectTree] how to go through a tree.
type Options struct {
	Jobs    int   // modules that are read at once; 0 means twice the number of processors
	MaxSize int64 // of a decompressed module, in bytes; 0 means 2 GiB
	// Root is the root directory of the system that the modules belong to: symbolic links
	// lead where they would lead after chroot(2). Empty means the machine's own.
	Root string

	// Tree calls these functions one at a time. Both may be nil.
	Progress func(done, total int) // modules
	Result   func(Result)          // in the order in which the modules were found

	// Kernel makes the keyring of a kernel image in a package, for [Archive] without a keyring.
	// The image is closed when Kernel returns. If Kernel is nil, the keyring is that of
	// [Keyring.AddOpened].
	Kernel func(image *Image) (*Keyring, error)
	// Configs has Kernel wait for the configuration that the package has for the kernel, which
	// [Image.Config] then returns: boot/config-KVER or lib/modules/KVER/config. Without one,
	// the modules wait for the end of the package.
	Configs bool
}

// Summary counts the results of [Tree].
type Summary struct {
	Modules  int
	Verdicts map[Verdict]int // modules with each verdict; none has a count of 0
	Linked   int             // modules that were found over symbolic links
	// Skipped are symbolic links to directories that were not followed: build and source,
	// which depmod does not follow either, as they lead to whole kernel trees.
	Skipped []string

	// These are of [Archive] alone. Kernels are the kernel images in the package that judged
	// its modules. Outside are lib/modules, the directories above it and all below, where they
	// are symbolic links out of the package, so that it is unknown which modules they lead to. Inner are archives in the
	// package, such as other packages, whose modules were not looked at.
	Kernels, Outside, Inner []string
	// Boot are those of Inner that a machine boots: an initramfs or a unified kernel image.
	Boot []string
}

// String returns "all trusted", "all that were looked at are trusted" if Outside or Inner has
// something that was not, "no module", or the number of modules with each verdict.
func (s Summary) String() string {
	switch s.Modules {
	case 0:
		return "no module"
	case s.Verdicts[Trusted]:
		if len(s.Outside)+len(s.Inner) > 0 {
			return "all that were looked at are trusted"
		}
		return "all trusted"
	}
	var parts []string
	for _, verdict := range verdicts {
		if n := s.Verdicts[verdict]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, verdict))
		}
	}
	return strings.Join(parts, ", ")
}

// Tree verifies the modules that roots name: files, and below directories all that
// depmod would find, so that modprobe may load it. These are the files *.ko, *.ko.gz,
// *.ko.xz and *.ko.zst, also over symbolic links to files and directories, inside of the
// tree and outside. A file with several names is verified under each. What has the name
// of a module and cannot be one, such as a broken link, has a Result too.
//
// The error is nil only if there are modules and all are Trusted. Otherwise it is
// [ErrNoModules], or [ErrRefused], [ErrIncomplete] or both, or the cause of the context
// if that has ended.
func Tree(ctx context.Context, keys *Keyring, roots []string, o Options) (Summary, error) {
	summary := Summary{Verdicts: make(map[Verdict]int)}
	if keys == nil {
		return summary, errNoKeyring
	}
	found, err := o.find(roots)
	if err != nil {
		return summary, err
	}
	summary.Skipped = found.Skipped
	total := len(found.Entries)
	if total == 0 {
		return summary, noModules(roots)
	}
	var outcome outcome
	emit := func(r Result) {
		summary.add(r)
		outcome.add(r)
		if o.Progress != nil {
			o.Progress(summary.Modules, total)
		}
		if o.Result != nil {
			o.Result(r)
		}
	}
	limits := module.SharedLimits(o.MaxSize)
	work := func(i int) Result { return file(ctx, keys, found.Entries[i], limits) }
	if err := batch.Map(ctx, total, o.Jobs, work, emit); err != nil {
		return summary, err
	}
	return summary, outcome.err(total)
}

func (s *Summary) add(r Result) {
	s.Modules++
	s.Verdicts[r.Verdict]++
	if r.Target != "" {
		s.Linked++
	}
}

// find checks the options and lists the modules.
func (o *Options) find(roots []string) (*module.Loadable, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	in, err := module.NewRoot(o.Root)
	if err != nil {
		return nil, err
	}
	return module.FindLoadable(in, roots)
}

func noModules(roots []string) error {
	if len(roots) == 0 {
		return ErrNoModules
	}
	return fmt.Errorf("%w in %s", ErrNoModules, strings.Join(roots, ", "))
}
