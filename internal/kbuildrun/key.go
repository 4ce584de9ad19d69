package kbuildrun

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/keygen/keystore"
	"github.com/modsign/modsign/sign"
)

// certificate sees to it that there is a certificate to link into a kernel, and returns
// the variables that lead Kbuild to it. The agent makes a key where Kbuild would make one
// in the tree.
func (d *Driver) certificate(ctx context.Context) (overrides []string, err error) {
	tree, err := d.tree()
	if err != nil {
		return nil, err
	}
	if tree.Config != nil && !tree.Synced && !d.idle() {
		// The configuration counts after Kconfig has completed it.
		if err := d.make(ctx, []string{"syncconfig"}); err != nil {
			return nil, err
		}
		if tree, err = d.tree(); err != nil {
			return nil, err
		}
	}
	switch key := tree.Config.SigKey(); {
	case keystore.IsURI(key):
		return d.storedCertificate(ctx, tree)
	case key != kbuild.DefaultKey:
		return nil, nil
	}
	if !d.idle() {
		if err := d.oneTimeKey(ctx, tree); err != nil {
			return nil, err
		}
	} else if !exists(d.path(Certificate)) {
		return nil, nil
	}
	return []string{"CONFIG_MODULE_SIG_KEY=" + Certificate}, nil
}

// oneTimeKey sees to it that the agent holds a key of the configured kind, and that its
// certificate is in the tree.
func (d *Driver) oneTimeKey(ctx context.Context, tree *kbuild.Tree) error {
	wanted, err := d.agent(tree)
	if err != nil {
		return err
	}
	client, err := agent.Dial(wanted.Dir)
	gone, isGone := errors.AsType[*agent.UnavailableError](err)
	switch {
	case err == nil:
		defer client.Close()
		if client.Kept() {
			return heldInstead()
		}
		status, err := client.Status()
		if err != nil {
			return err
		}
		if status.Profile == wanted.Profile && client.Published() == nil {
			return nil
		}
		d.Front.Note("the configuration of the key has changed: a new one-time key is made, and the kernel is linked with it")
		if err := client.Forget(); err != nil {
			return err
		}
	case !isGone:
		return err
	default:
		if exists(d.path(Certificate)) {
			d.Front.Say("%v: a new one-time key is made, and the kernel is linked with it", gone)
		}
	}
	client, err = wanted.Start(ctx, d.System.Environ)
	if err != nil {
		return fmt.Errorf("cannot make a one-time key: %w", err)
	}
	return client.Close()
}

// heldInstead is the error where the configuration asks for a one-time key, and the agent
// holds another key. Somebody has started that agent for something else, and may need it.
func heldInstead() error {
	return &HintError{
		errors.New("the key agent in .modsign holds a key from elsewhere, and the configuration asks for a one-time key"),
		"modsign agent forget ends the agent; or set CONFIG_MODULE_SIG_KEY to the key that it holds",
	}
}

// agent returns the agent that the configuration of the tree asks for.
func (d *Driver) agent(tree *kbuild.Tree) (Agent, error) {
	a := Agent{Dir: d.path(Dir), Tree: d.Objtree, Hash: tree.Config.SigHash(), Keep: d.Keep, Lifetime: d.Lifetime}
	var profile []byte
	given, standard := d.path("certs/x509.genkey"), filepath.Join(tree.Srctree, "certs/default_x509.genkey")
	for _, genkey := range []string{given, standard} {
		text, err := readProfile(genkey)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return a, err
		}
		a.Genkey, profile = genkey, text
		break
	}
	a.Profile = fmt.Sprintf("%s %s %x", tree.Config.SigKeyType(), a.Hash, sha256.Sum256(profile))
	switch kind := tree.Config.SigKeyType(); kind {
	case "rsa": // of the size that the profile says
	case "ecdsa":
		a.KeyType = keygen.ECDSAP384.String()
	default:
		if algorithm, err := keygen.ParseAlgorithm(kind); err == nil { // mldsa65 and the like
			a.KeyType = algorithm.String()
			break
		}
		return a, fmt.Errorf("the configuration asks for a one-time key of type %s, which modsign cannot make: "+
			"choose RSA, ECDSA or ML-DSA (CONFIG_MODULE_SIG_KEY_TYPE_*)", kind)
	}
	return a, nil
}

// readProfile reads an x509.genkey.
func readProfile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxOwnFile+1))
	if err == nil && len(text) > maxOwnFile {
		err = fmt.Errorf("%s: too large for a profile: more than %d bytes", path, maxOwnFile)
	}
	return text, err
}

// A signingKey is the key that the kernel of a tree was linked with.
type signingKey struct {
	pair   *keygen.Pair
	signer *sign.Signer
}

func (d *Driver) signingKey(ctx context.Context, tree *kbuild.Tree) (*signingKey, error) {
	path, pair, err := d.loadKey(ctx, tree)
	if err != nil {
		return nil, err
	}
	key := &signingKey{pair: pair}
	if err := d.fit(key, path, tree); err != nil {
		pair.Close()
		return nil, err
	}
	return key, nil
}

// fit makes the signer of a key, if it is the one for the tree.
func (d *Driver) fit(key *signingKey, path string, tree *kbuild.Tree) (err error) {
	if err := d.checkLinked(path, key.pair, tree); err != nil {
		return err
	}
	hash, err := cms.HashByName(tree.Config.SigHash())
	if err != nil {
		return fmt.Errorf("CONFIG_MODULE_SIG_HASH: %w", err)
	}
	key.signer, err = sign.NewSigner(key.pair.Signer, key.pair.Certificate, sign.SignerOptions{Hash: hash})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// LinkedCertificate is the certificate that Kbuild links into the kernel.
const LinkedCertificate = "certs/signing_key.x509"

// loadKey loads the configured key, and returns the name by which errors name it.
func (d *Driver) loadKey(ctx context.Context, tree *kbuild.Tree) (path string, pair *keygen.Pair, err error) {
	path = tree.Config.SigKey()
	oneTime := path == kbuild.DefaultKey
	switch {
	case oneTime && exists(d.path(Certificate)):
		path = Certificate
		pair, err = d.agentPair()
	case keystore.IsURI(path):
		linked := d.path(LinkedCertificate)
		if !exists(linked) { // the headers of an installed kernel: the store may have it
			linked = ""
		}
		if pair = HeldFor(d.Objtree, linked); pair == nil {
			pair, err = d.System.LoadKey(ctx, path, linked)
		}
		path = keystore.Redact(path)
	default: // the tree may have been built before modsign was enabled in it
		if !filepath.IsAbs(path) {
			path = d.path(path)
		}
		pair, err = d.System.LoadKey(ctx, path, "")
	}
	if _, gone := errors.AsType[*agent.UnavailableError](err); gone || oneTime && errors.Is(err, fs.ErrNotExist) {
		return path, nil, d.keyGone()
	}
	return path, pair, err
}

// HeldFor returns the key of the certificate in a file, if the agent of an object tree holds
// that key from elsewhere. Otherwise it is nil. The tree may be another user's: what counts
// is the certificate, with which the signatures are checked.
func HeldFor(objtree, cert string) *keygen.Pair {
	if cert == "" {
		return nil
	}
	certs, err := keygen.LoadCertificates(cert)
	if err != nil {
		return nil // said by who needs the certificate
	}
	return agent.Held(filepath.Join(objtree, Dir), certs[0])
}

// agentPair is the key of the agent. The file of the certificate is not loaded as a key:
// in a tree of another user, it might lead to a key of root's.
func (d *Driver) agentPair() (*keygen.Pair, error) {
	client, err := agent.Dial(d.path(Dir))
	if err != nil {
		return nil, err
	}
	if client.Kept() {
		err = heldInstead()
	} else {
		err = client.Published()
	}
	if err != nil {
		client.Close()
		return nil, err
	}
	return client.Pair(), nil
}

// checkLinked checks that a key is the one that the kernel was linked with.
func (d *Driver) checkLinked(path string, pair *keygen.Pair, tree *kbuild.Tree) error {
	linked, err := keygen.LoadCertificates(d.path(LinkedCertificate))
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case err == nil && !linked[0].Equal(pair.Certificate):
		err := fmt.Errorf("%s is not the key that this kernel was linked with (%s)", path, LinkedCertificate)
		return &HintError{err, "run make, which links the kernel with it, then install again"}
	case missing && tree.Config.SigKey() == kbuild.DefaultKey: // make clean was here
		return d.keyGone()
	case missing:
		return nil
	}
	return err
}

// keyGone says that nobody can sign for the kernel of this tree any more.
func (d *Driver) keyGone() error {
	err := errors.New("the one-time key of this kernel is gone")
	if _, why := agent.Dial(d.path(Dir)); why != nil {
		err = fmt.Errorf("%w: %w", err, why)
	}
	return &HintError{err, "run make, which makes a new key and links the kernel with it, then install again"}
}

// reportInstall tells the agent that the kernel's modules are installed, which may be what
// it waits for to end.
func (d *Driver) reportInstall() error {
	if d.ExtMod != "" {
		return nil
	}
	client, err := agent.Dial(d.path(Dir))
	if _, gone := errors.AsType[*agent.UnavailableError](err); gone {
		return nil // another key has signed
	}
	if err != nil {
		return err
	}
	defer client.Close()
	linked, err := keygen.LoadCertificates(d.path(LinkedCertificate))
	if err == nil && !linked[0].Equal(client.Certificate()) {
		return nil // likewise
	}
	return client.Installed()
}

// mayHaveKey reports whether an object tree may have an agent with a key. It is false only
// where it certainly has none.
func mayHaveKey(objtree string) bool {
	client, err := agent.Dial(filepath.Join(objtree, Dir))
	if err == nil {
		client.Close()
	}
	_, none := errors.AsType[*agent.UnavailableError](err)
	return !none
}

// destroyKey destroys the one-time key of an object tree and removes its files, but not
// its receipt. It reports whether there was a key. It leaves an agent alone that holds a
// key from elsewhere: a clean tree needs that key again.
func destroyKey(objtree string) (had bool, err error) {
	client, err := agent.Dial(filepath.Join(objtree, Dir))
	switch _, gone := errors.AsType[*agent.UnavailableError](err); {
	case err == nil:
		defer client.Close()
		if client.Kept() {
			return false, Remove(objtree, HashList)
		}
		if err := client.Forget(); err != nil {
			return true, err
		}
		had = true
	case !gone:
		return false, err
	}
	for _, name := range []string{Certificate, tokenCertificate, Dir + "/agent.sock", HashList} {
		if err := Remove(objtree, name); err != nil {
			return had, err
		}
	}
	return had, nil
}
