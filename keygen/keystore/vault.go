package keystore

import (
	"context"

	"github.com/modsign/modsign/internal/transit"
	"github.com/modsign/modsign/keygen"
)

// openVault opens a key in the transit engine of Vault or OpenBao. The engine knows of no
// certificate.
func openVault(ctx context.Context, uri string, o Options) (storedKey, error) {
	mount, name, version, err := transit.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if o.Certificate == nil {
		return nil, keygen.ErrNoCertificate
	}
	c, err := transit.FromEnvironment(o.LookupEnv, o.Note)
	if err != nil {
		return nil, err
	}
	c.Mount, c.Name, c.Version, c.Public = mount, name, version, o.Certificate.PublicKey
	key, err := transit.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return key, nil
}
