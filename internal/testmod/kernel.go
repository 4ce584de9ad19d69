package testmod

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Kernel is a Debian kernel package, unpacked under Root as it would be
// installed under /.
type Kernel struct {
	Version string   // as uname -r says it
	Root    string   // holds boot/ and lib/modules/
	Image   string   // boot/vmlinuz-VERSION
	Config  string   // boot/config-VERSION
	Modules []string // every module as packaged (.ko or .ko.xz), sorted
}

// PortedImage is the kernel image of a Debian package for some architecture.
type PortedImage struct {
	Arch    string // Debian's name
	Version string // as uname -r says it
	Path    string
	Modules string // a directory with 50 to 80 modules of the package, or ""
}

// PortedImages returns the kernel images that scripts/images has fetched, at least one,
// sorted by architecture.
func PortedImages(t testing.TB) []PortedImage {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	paths, _ := filepath.Glob(filepath.Join(cache, "images", "*", "boot", "vmlinu[xz]-*"))
	var images []PortedImage
	for _, path := range paths {
		root := filepath.Dir(filepath.Dir(path))
		_, version, _ := strings.Cut(filepath.Base(path), "-")
		image := PortedImage{Arch: filepath.Base(root), Version: version, Path: path}
		if dir := filepath.Join(root, "lib", "modules"); exists(dir) {
			image.Modules = dir
		}
		images = append(images, image)
	}
	if len(images) == 0 {
		Missing(t, "a kernel image of each architecture", "run scripts/images")
	}
	return images
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// CacheDir is where scripts/kernels keeps what it fetches: MODSIGN_CACHE, or
// modsign in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("MODSIGN_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "modsign"), err
}

// Kernels returns the kernel packages that scripts/kernels has fetched, oldest
// version first; at least one.
func Kernels(t testing.TB) []Kernel {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	images, _ := filepath.Glob(filepath.Join(cache, "kernels", "*", "boot", "vmlinuz-*"))
	slices.SortFunc(images, naturalCompare)
	var kernels []Kernel
	for _, image := range images {
		version := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
		root := filepath.Dir(filepath.Dir(image))
		k := Kernel{Version: version, Root: root, Image: image, Config: filepath.Join(root, "boot", "config-"+version)}
		err := filepath.WalkDir(
			filepath.Join(root, "lib", "modules", version),
			func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
					k.Modules = append(k.Modules, path)
				}
				return err
			},
		)
		if err != nil || len(k.Modules) == 0 {
			t.Fatalf("%s holds no modules (%v): remove it and run scripts/kernels again", root, err)
		}
		kernels = append(kernels, k)
	}
	if len(kernels) == 0 {
		Missing(t, "a real kernel's package", "run scripts/kernels")
	}
	return kernels
}
