package siglayout

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/module"
)

// debianList is files.json, as far as it matters here.
type debianList struct {
	Packages map[string]debianPackage `json:"packages"`
}

type debianPackage struct {
	TrustedCerts []string `json:"trusted_certs"`
	Files        []struct {
		Type string `json:"sig_type"`
		File string `json:"file"`
	} `json:"files"`
}

// debianSearch matches the packages of a list with the modules of a tree.
type debianSearch struct {
	*Tree
	*Files
	dir         string         // holds the list
	list        string         // its path
	index       map[string]int // of modules, by their installed names
	fingerprint string         // SHA-256 of the certificate, in hexadecimal
	note        func(string)
}

// Debian finds signatures in the layout of Debian's code signing: dir/files.json lists
// what is to be signed, and dir/signatures/PACKAGE/PATH.sig holds each signature. It
// refuses a package that does not trust the certificate, which is DER. Packages without a
// module in the tree are passed over: a tree of one kernel is not that of all. note, if it
// is not nil, is told of those.
func (t *Tree) Debian(dir string, cert []byte, note func(string)) (*Files, error) {
	s := &debianSearch{
		Tree: t, Files: &Files{Paths: make([]string, len(t.Modules))},
		dir: dir, list: filepath.Join(dir, "files.json"),
		fingerprint: fmt.Sprintf("%x", sha256.Sum256(cert)), note: note,
	}
	packages, err := s.read()
	if err != nil {
		return nil, err
	}
	if s.index, err = t.installedNames(); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(packages)) {
		if err := s.searchPackage(name, packages[name]); err != nil {
			return nil, err
		}
	}
	for i, e := range t.Modules {
		if s.Paths[i] == "" {
			s.refuse("%s: no signature for this module: %s does not list it", e.Path, s.list)
		}
	}
	return s.Files, nil
}

// read reads the list.
func (s *debianSearch) read() (map[string]debianPackage, error) {
	data, err := ReadFile(s.list, 64<<20)
	if err != nil {
		return nil, err
	}
	var list debianList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", s.list, err)
	}
	if len(list.Packages) == 0 {
		return nil, fmt.Errorf("%s: no packages in the list", s.list)
	}
	return list.Packages, nil
}

// debianMatch is what a package has in common with the tree.
type debianMatch struct {
	signatures map[string]bool // paths of all signatures that the package lists
	modules    int             // that it lists
	here       int             // of them, in the tree
	absent     []string        // of them, not in the tree
}

// searchPackage takes the signatures of one package.
func (s *debianSearch) searchPackage(name string, p debianPackage) error {
	if module.CheckPath(name) != nil || strings.Contains(name, "/") {
		return fmt.Errorf("%s: %q is not the name of a package", s.list, name)
	}
	dir := filepath.Join(s.dir, "signatures", name)
	m, err := s.match(name, p, dir)
	if err != nil {
		return err
	}
	if others := len(p.Files) - m.modules; others > 0 {
		s.notef("%s: %s: skipped %d of %d files, which are not modules (sig_type efi)", s.list, name, others, len(p.Files))
	}
	if m.here == 0 {
		if m.modules > 0 {
			s.notef("%s: %s: skipped, since none of its modules is in %s", s.list, name, s.roots())
		}
		return nil
	}
	for _, file := range m.absent {
		s.refuse("%s: %s: %s is not a module in %s", s.list, name, file, s.roots())
	}
	if !p.trusts(s.fingerprint) {
		s.refuse("%s: %s: trusted_certs lacks the certificate with SHA-256 %s: the kernel would reject the modules",
			s.list, name, s.fingerprint)
	}
	return s.findUnlisted(dir, m.signatures)
}

// match finds the module of each file that a package lists.
func (s *debianSearch) match(name string, p debianPackage, dir string) (*debianMatch, error) {
	m := &debianMatch{signatures: make(map[string]bool)}
	for _, f := range p.Files {
		if err := module.CheckPath(f.File); err != nil {
			return nil, fmt.Errorf("%s: package %s: %q: %w", s.list, name, f.File, err)
		}
		sig := filepath.Join(dir, f.File+".sig")
		if m.signatures[sig] {
			return nil, fmt.Errorf("%s: package %s: %s occurs twice", s.list, name, f.File)
		}
		m.signatures[sig] = true
		switch f.Type {
		case "linux-module":
		case "efi":
			continue
		default:
			return nil, fmt.Errorf("%s: package %s: %s: sig_type %q is neither linux-module nor efi",
				s.list, name, f.File, f.Type)
		}
		m.modules++
		i, ok := s.index[module.BaseName(strings.TrimPrefix(f.File, "usr/"))]
		switch {
		case !ok:
			m.absent = append(m.absent, f.File)
			continue
		case s.Paths[i] != "":
			return nil, fmt.Errorf("%s: %s occurs twice, once as %s", s.list, f.File, s.Paths[i])
		}
		m.here++
		s.Paths[i] = sig
		if missing(sig) {
			s.refuse("%s: no signature for this module (%s)", s.Modules[i].Path, sig)
		}
	}
	return m, nil
}

// trusts reports whether a package's kernel has a certificate built in. A list that does
// not say trusts all.
func (p *debianPackage) trusts(fingerprint string) bool {
	return len(p.TrustedCerts) == 0 || slices.ContainsFunc(p.TrustedCerts, func(s string) bool {
		return strings.EqualFold(strings.ReplaceAll(s, ":", ""), fingerprint)
	})
}

// findUnlisted refuses files in the directory of a package that it does not list.
func (s *debianSearch) findUnlisted(dir string, listed map[string]bool) error {
	return filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !listed[at] {
			s.refuse("%s: %s does not list what this would sign", at, s.list)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // match has refused that
		}
		return err
	})
}

func (s *debianSearch) notef(format string, args ...any) {
	if s.note != nil {
		s.note(fmt.Sprintf(format, args...))
	}
}

// installedNames are the indexes of the modules by their paths in a package.
func (t *Tree) installedNames() (map[string]int, error) {
	index := make(map[string]int)
	for i, e := range t.Modules {
		name, err := installedName(e)
		if err != nil {
			return nil, err
		}
		if k, ok := index[name]; ok {
			return nil, fmt.Errorf("%s and %s would both be %s: attach to one after the other", t.Modules[k].Path, e.Path, name)
		}
		index[name] = i
	}
	return index, nil
}

// installedName is the path of a module in its package, from lib/modules on.
func installedName(e module.Entry) (string, error) {
	at, err := filepath.Abs(e.Path)
	if err != nil {
		return "", err
	}
	if i := strings.LastIndex(at, "/lib/modules/"); i >= 0 {
		return module.BaseName(at[i+1:]), nil
	}
	return module.BaseName(path.Clean(e.Rel)), nil
}
