// Package onetime keeps the certificates of one-time keys: all that is left of such a key,
// and the only means to verify what it signed.
package onetime

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

// DefaultPath is where a run leaves the certificate by default: in the output directory,
// or in the directory whose modules are signed in place.
func DefaultPath(output string, roots []string) string {
	dir := output
	if dir == "" {
		dir = roots[0]
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			dir = filepath.Dir(dir)
		}
	}
	return filepath.Join(dir, "modsign-one-time.x509")
}

// A Cert is the certificate of a one-time key on disk.
type Cert struct {
	Path   string
	Chosen bool     // the user gave the path, which may lead over links or be a device
	Wait   bool     // wait for another run with a certificate of this name
	Kept   []string // certificates of earlier runs beside it
	lock   *atomicfile.Lock
}

// Unlock releases the name of the certificate to other runs.
func (c *Cert) Unlock() {
	if c.lock != nil {
		c.lock.Unlock()
	}
}

// Write writes the certificate and keeps an earlier one beside it under another name:
// modules that this run does not reach have a signature by its key. The name is locked
// until Unlock.
func (c *Cert) Write(ctx context.Context, pair *keygen.Pair) error {
	path := c.Path
	if c.Chosen {
		// The target of a link is replaced, not the link.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			return pair.WriteCertificate(path, keygen.DER)
		}
	}
	// Until the end of the run, which shows which certificates are still needed.
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

func (c *Cert) lockName(ctx context.Context, path string) (err error) {
	lock := func() (*atomicfile.Lock, error) { return atomicfile.LockName(path) }
	if c.Wait {
		c.lock, err = atomicfile.Wait(ctx, lock, nil)
	} else {
		c.lock, err = lock()
	}
	return err
}

// keep renames the certificate of an earlier run, and lists those that are kept already.
func (c *Cert) keep(dir *dirfd.Dir, name string, now []byte) error {
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
			c.Kept = append(c.Kept, dir.Path(other))
		}
	}
	return nil
}

// isCertificate reports whether data is a certificate. Any other file of that name is not
// worth keeping.
func isCertificate(data []byte) bool {
	_, err := cms.ParseX509(data)
	return err == nil
}

// readCert reads the beginning of a file, enough to tell whether it is a certificate.
func readCert(dir *dirfd.Dir, name string) ([]byte, error) {
	f, err := dir.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// keptStem returns the beginning of the names of kept certificates.
func keptStem(name string) string { return strings.TrimSuffix(name, filepath.Ext(name)) + "-" }

// Forget removes the kept certificates that no module needs any more, neither below
// roots nor in the directory of the certificate. Where the user chose the path, modules
// may be anywhere, and all certificates stay.
func (c *Cert) Forget(ctx context.Context, roots []string) error {
	if c.Chosen {
		return nil
	}
	roots = append(slices.Clone(roots), filepath.Dir(c.Path))
	var carried []string
	for _, path := range c.Kept {
		keys := new(verify.Keyring)
		if err := keys.AddFile(path); err != nil {
			carried = append(carried, path) // perhaps not one of modsign's
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
	c.Kept = carried
	return nil
}

// carries reports whether any module may be signed by a key of keys. A module that
// cannot be read counts.
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
