package kbuildrun

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/kbuild"
)

// An Embedding is what [EmbedHashes] did.
type Embedding struct {
	Embedded *hashlist.Embedded // what vmlinux has now
	Changed  bool               // vmlinux had something else
	Modules  int
	Bytes    int64 // that were hashed
	Took     time.Duration
}

// EmbedHashes brings the vmlinux of an object tree up to date with the modules that are
// built there. To hash them it calls build, which is [hashlist.Build].
func EmbedHashes(ctx context.Context, tree *kbuild.Tree, jobs int,
	build func(context.Context, hashlist.Source, hashlist.BuildOptions) (*hashlist.Built, error)) (*Embedding, error) {
	format := tree.Config.HashFormat()
	if format == "" {
		return nil, &HintError{fmt.Errorf("%s: the kernel is configured without CONFIG_MODULE_HASHES_LIST and _MERKLE", tree.Objtree),
			"modsign kbuild patch adds them to a kernel's source"}
	}
	start := time.Now()
	source, options, err := HashSource(tree)
	if err != nil {
		return nil, err
	}
	options.Format, options.Jobs = hashlist.Format(format), jobs
	built, err := build(ctx, source, options)
	if err != nil {
		return nil, err
	}
	old, err := built.Embed(hashlist.ObjectTree{
		Vmlinux:   filepath.Join(tree.Objtree, "vmlinux"),
		BootFiles: tree.BootFiles,
		WriteList: func(text []byte) error { return WriteHashList(tree.Objtree, text) },
	})
	if err != nil {
		return nil, err
	}
	e := built.Embedded()
	return &Embedding{Embedded: e, Changed: !old.Has(e), Modules: len(source.Names), Bytes: built.Bytes, Took: time.Since(start)}, nil
}

// HashSource returns the modules of an object tree, and how to hash them as modules_install
// will install them.
func HashSource(tree *kbuild.Tree) (source hashlist.Source, options hashlist.BuildOptions, err error) {
	strip, given := tree.Vars.Lookup("INSTALL_MOD_STRIP")
	if tree.Config.HashFormat() != "" {
		frozen := tree.Config.InstallStrip()
		if given && strip != frozen {
			return source, options, stripsOtherwise(strip, frozen)
		}
		strip = frozen
	}
	source = hashlist.Source{Dir: tree.Objtree, Prefix: "kernel/", Release: tree.Release}
	if source.Names, err = tree.Modules(); err != nil {
		return source, options, err
	}
	if tree.Release == "" {
		return source, options, fmt.Errorf("%s: the kernel has no release yet: run make first", tree.Objtree)
	}
	options.StripProgram = stripProgram(tree)
	switch strip {
	case "":
	case "1", "--strip-debug", "-g":
		options.Strip = true
	default:
		return source, options, fmt.Errorf("INSTALL_MOD_STRIP is %q: modsign can predict the installed modules only if it is empty or 1", strip)
	}
	return source, options, nil
}

// stripsOtherwise is the error about modules that would not be those that were hashed.
func stripsOtherwise(strip, frozen string) error {
	return &HintError{fmt.Errorf("INSTALL_MOD_STRIP is %q, but was %q when the kernel was built, and the kernel has the hashes of modules stripped that way", strip, frozen),
		"use the same value, or run make with the new one first"}
}
