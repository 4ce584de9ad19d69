package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/modsign/modsign/internal/onetime"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

// The certificate that modsign sign --one-time leaves: package onetime has the file.

// writeCert writes the certificate of a one-time key.
func (o *signOptions) writeCert(
	ctx context.Context, w *work, cert *onetime.Cert, pair *keygen.Pair, roots []string,
) error {
	cert.Path = cmp.Or(o.certOut, onetime.DefaultPath(o.output, roots))
	w.cert = cert.Path
	if _, err := os.Stat(w.cert); err == nil && w.options.Existing == sign.Skip {
		return withHint(fmt.Errorf("%s is the certificate of an earlier run, whose modules are to be skipped", w.cert),
			"choose another name with --cert-out, or sign all modules again without --existing=skip")
	}
	w.ui.beginAt(cert.Path)
	return cert.Write(ctx, pair)
}

// written are the directories or modules that a run has written.
func (o *signOptions) written(roots []string) []string {
	if o.output != "" {
		return []string{o.output}
	}
	return roots
}

// keptCerts removes the certificates of earlier runs that no module needs any more.
func (o *signOptions) keptCerts(ctx context.Context, cert *onetime.Cert, roots []string) error {
	if o.detached || len(cert.Kept) == 0 {
		return nil
	}
	return cert.Forget(ctx, o.written(roots))
}

// afterOneTime says where the certificate is, and how to verify with it.
func (o *signOptions) afterOneTime(w *work, cert *onetime.Cert, roots []string) {
	w.ui.note("the key is gone; its certificate is %s", w.cert)
	certs := ""
	for _, kept := range cert.Kept {
		w.ui.note("kept %s, the certificate of an earlier run: modules may still carry its signature", kept)
		certs += " --cert " + quote(kept)
	}
	if !o.detached && w.summary.Signed > 0 {
		w.ui.hint("modsign verify --cert %s%s %s", quote(w.cert), certs, quote(o.written(roots)...))
	}
}
