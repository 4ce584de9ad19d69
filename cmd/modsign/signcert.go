package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/modsign/modsign/internal/onetime"
	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

// withCert signs with a one-time key: it writes the certificate before the first module,
// so that whatever happens, what is signed can be verified. At the end it removes the
// certificates of earlier runs that no module needs any more.
func (o *signOptions) withCert(ctx context.Context, w *work, pair *keygen.Pair, roots []string, do func() error) error {
	cert := onetime.Cert{Path: o.certOut, Chosen: o.certOut != "", Wait: o.wait}
	if !cert.Chosen {
		cert.Path = onetime.DefaultPath(o.output, roots)
	}
	if _, err := os.Stat(cert.Path); err == nil && w.options.Existing == sign.Skip {
		return withHint(fmt.Errorf("%s is the certificate of an earlier run, whose modules are to be skipped", cert.Path),
			"choose another name with --cert-out, or sign all modules again without --existing=skip")
	}
	w.cert = cert.Path
	w.ui.BeginAt(cert.Path)
	defer cert.Unlock()
	if err := cert.Write(ctx, pair); err != nil {
		return err
	}
	err := do()
	if err != nil && !errors.Is(err, exitStatus(exitSome)) {
		return err
	}
	if !o.detached {
		if err := cert.Forget(ctx, o.written(roots)); err != nil {
			return err
		}
	}
	o.afterOneTime(w, &cert, roots)
	return err
}

// written are the directories or modules that a run has written.
func (o *signOptions) written(roots []string) []string {
	if o.output != "" {
		return []string{o.output}
	}
	return roots
}

// afterOneTime says where the certificate is, and how to verify with it.
func (o *signOptions) afterOneTime(w *work, cert *onetime.Cert, roots []string) {
	w.ui.Note("the key is gone; its certificate is %s", w.cert)
	certs := ""
	for _, kept := range cert.Kept {
		w.ui.Note("kept %s, the certificate of an earlier run: modules may still carry its signature", kept)
		certs += " --cert " + shell.Quote(kept)
	}
	if !o.detached && w.summary.Signed > 0 {
		w.ui.Hint("modsign verify --cert %s%s %s", shell.Quote(w.cert), certs, shell.Quote(o.written(roots)...))
	}
}
