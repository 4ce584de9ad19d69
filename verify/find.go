package verify

import (
	"context"

	"github.com/modsign/modsign/internal/module"
)

// Found are the modules that paths lead to.
type Found struct {
	entries []module.Entry
	skipped []string
}

// Find lists the modules that paths name: files, and what depmod would find below
// directories, so that modprobe may load it. These are the files *.ko, *.ko.gz,
// *.ko.xz and *.ko.zst, also over symbolic links to files and to directories, in the
// tree and out of it; a file with several names is listed under each. What has the
// name of a module and cannot be one, such as a link that leads nowhere, is listed too.
func Find(paths []string) ([]string, error) {
	found, err := FindIn("", paths)
	if err != nil {
		return nil, err
	}
	return found.Paths(), nil
}

// FindIn is Find for the system whose root directory is root. The paths begin with
// that, and links lead where they would lead after chroot(2). If root is empty, it is
// the machine's own.
func FindIn(root string, paths []string) (*Found, error) {
	in, err := module.NewRoot(root)
	if err != nil {
		return nil, err
	}
	loadable, err := module.FindLoadable(in, paths)
	if err != nil {
		return nil, err
	}
	return &Found{loadable.Entries, loadable.Skipped}, nil
}

// Len is the number of modules.
func (f *Found) Len() int { return len(f.entries) }

// Paths are the names of the modules, as they were found.
func (f *Found) Paths() []string {
	paths := make([]string, len(f.entries))
	for i, e := range f.entries {
		paths[i] = e.Path
	}
	return paths
}

// Skipped are the links to directories that were not followed: build and source, which
// depmod does not follow either, as they lead to whole kernel trees.
func (f *Found) Skipped() []string { return f.skipped }

// Inspect is the function [Inspect] for one of the modules.
func (f *Found) Inspect(ctx context.Context, i int, maxSize int64) (*Description, error) {
	return inspect(ctx, f.entries[i], maxSize)
}
