package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

// The certificate that modsign sign --one-time leaves: oneTimeCert has the file.

// writeCert writes the certificate of a one-time key.
func (o *signOptions) writeCert(
	ctx context.Context, w *work, cert *oneTimeCert, pair *keygen.Pair, roots []string,
) error {
	cert.path = o.certPath(roots)
	w.cert = cert.path
	if _, err := os.Stat(w.cert); err == nil && w.options.Existing == sign.Skip {
		return withHint(fmt.Errorf("%s is the certificate of an earlier run, whose modules are to be skipped", w.cert),
			"choose another name with --cert-out, or sign all modules again without --existing=skip")
	}
	w.ui.beginAt(cert.path)
	return cert.write(ctx, pair)
}

// certPath is the path of a one-time certificate.
func (o *signOptions) certPath(roots []string) string {
	if o.certOut != "" {
		return o.certOut
	}
	return outputCert(o.output, roots, func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && info.IsDir()
	})
}

// outputCert is the default path of a one-time certificate: in the output directory, or in
// the directory whose modules are signed in place.
func outputCert(output string, roots []string, isDir func(string) bool) string {
	const name = "modsign-one-time.x509"
	switch {
	case output != "":
		return filepath.Join(output, name)
	case isDir(roots[0]):
		return filepath.Join(roots[0], name)
	}
	return filepath.Join(filepath.Dir(roots[0]), name)
}

// written are the directories or modules that a run has written.
func (o *signOptions) written(roots []string) []string {
	if o.output != "" {
		return []string{o.output}
	}
	return roots
}

// keptCerts removes the certificates of earlier runs that no module needs any more.
func (o *signOptions) keptCerts(ctx context.Context, cert *oneTimeCert, roots []string) error {
	if o.detached || len(cert.kept) == 0 {
		return nil
	}
	return cert.forget(ctx, o.written(roots))
}

// afterOneTime says where the certificate is, and how to verify with it.
func (o *signOptions) afterOneTime(w *work, cert *oneTimeCert, roots []string) {
	w.ui.note("the key is gone; its certificate is %s", w.cert)
	certs := ""
	for _, kept := range cert.kept {
		w.ui.note("kept %s, the certificate of an earlier run: modules may still carry its signature", kept)
		certs += " --cert " + quote(kept)
	}
	if !o.detached && w.summary.Signed > 0 {
		w.ui.hint("modsign verify --cert %s%s %s", quote(w.cert), certs, quote(o.written(roots)...))
	}
}
