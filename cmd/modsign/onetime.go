package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/verify"
)

// oneTimeCert is the certificate of a one-time key on disk: all that is left of the
// key, and the only proof of what it has signed.
type oneTimeCert struct {
	path   string
	chosen bool     // by the user: a path that may lead over links, or be a device
	wait   bool     // for another run that has a certificate of this name
	kept   []string // certificates of earlier runs beside it
	lock   *atomicfile.Lock
}

// unlock lets other runs have the name of the certificate.
func (c *oneTimeCert) unlock() {
	if c.lock != nil {
		c.lock.Unlock()
	}
}

// write writes the certificate, and keeps an earlier one beside it under another
// name: modules that this run does not reach carry its signature.
func (c *oneTimeCert) write(ctx context.Context, pair *keygen.Pair) error {
	path := c.path
	if c.chosen {
		// A link leads to the file that is meant.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			return pair.WriteCertificate(path, keygen.DER)
		}
	}
	// Until the end of the run: only then it is known which certificates are needed.
	if err := c.lockName(ctx, path); err != nil {
		return err
	}
	dir, err := dirfd.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("cannot write the certificate: %w", err)
	}
	defer dir.Close()
	if err := c.keep(dir, filepath.Base(path), pair.Certificate.Raw); err != nil {
		return fmt.Errorf("cannot keep the certificate of an earlier run: %w", err)
	}
	if err := atomicfile.WriteIn(dir, filepath.Base(path), pair.Certificate.Raw, 0o666, true); err != nil {
		return fmt.Errorf("cannot write the certificate: %w", err)
	}
	return nil
}

func (c *oneTimeCert) lockName(ctx context.Context, path string) (err error) {
	lock := func() (*atomicfile.Lock, error) { return atomicfile.LockName(path) }
	if c.wait {
		c.lock, err = atomicfile.Wait(ctx, lock, nil)
	} else {
		c.lock, err = lock()
	}
	return err
}

// keep renames the certificate of an earlier run, and finds those that are kept
// already.
func (c *oneTimeCert) keep(dir *dirfd.Dir, name string, now []byte) error {
	if err := dir.CheckFile(name); err != nil {
		return err
	}
	old, err := readCert(dir, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !bytes.Equal(old, now) && isCertificate(old):
		sum := sha256.Sum256(old)
		if err := dir.Rename(name, fmt.Sprintf("%s%x%s", keptStem(name), sum[:4], filepath.Ext(name))); err != nil {
			return err
		}
	}
	names, err := dir.Names()
	if err != nil {
		return err
	}
	for _, other := range names {
		middle, ok := strings.CutPrefix(other, keptStem(name))
		middle, ext := strings.CutSuffix(middle, filepath.Ext(name))
		if ok && ext && len(middle) == 8 && strings.Trim(middle, "0123456789abcdef") == "" {
			c.kept = append(c.kept, dir.Path(other))
		}
	}
	return nil
}

// isCertificate reports whether data is one: anything else of that name is of no use
// to anybody.
func isCertificate(data []byte) bool {
	_, err := cms.ParseX509(data)
	return err == nil
}

// readCert reads what may be a certificate, of which the beginning tells enough.
func readCert(dir *dirfd.Dir, name string) ([]byte, error) {
	f, err := dir.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// keptStem is what the names of kept certificates begin with.
func keptStem(name string) string { return strings.TrimSuffix(name, filepath.Ext(name)) + "-" }

// forget removes the kept certificates by which no module is signed any more: none
// below roots, and none in the directory of the certificate. Where the user has chosen
// the path, modules may be anywhere, and all are kept.
func (c *oneTimeCert) forget(ctx context.Context, roots []string) error {
	if c.chosen {
		return nil
	}
	roots = append(slices.Clone(roots), filepath.Dir(c.path))
	var carried []string
	for _, path := range c.kept {
		keys := new(verify.Keyring)
		if err := keys.AddFile(path); err != nil {
			carried = append(carried, path) // not ours, perhaps
			continue
		}
		is, err := carries(ctx, keys, roots)
		if err != nil {
			return err
		}
		if is {
			carried = append(carried, path)
		} else if err := os.Remove(path); err != nil {
			return err
		}
	}
	c.kept = carried
	return nil
}

// carries reports whether a module may be signed by a key: one that cannot be read
// may.
func carries(ctx context.Context, keys *verify.Keyring, roots []string) (bool, error) {
	is := false
	_, err := verify.Tree(ctx, keys, roots, verify.Options{Result: func(r verify.Result) {
		is = is || r.Verdict != verify.NotSigned && r.Verdict != verify.UnknownKey
	}})
	for _, verdict := range []error{verify.ErrRefused, verify.ErrIncomplete, verify.ErrNoModules} {
		if errors.Is(err, verdict) {
			err = nil
		}
	}
	return is, err
}
