package main

import (
	"errors"
	"regexp"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/keygen/keystore"
)

// keyHints says what to do about a file of a key or certificate. FILE stands for its
// name.
var keyHints = map[keygen.Reason]string{
	keygen.ErrNoPassphrase:      "set KBUILD_SIGN_PIN, use --passphrase-file, or run on a terminal to be asked",
	keygen.ErrKeyAlone:          "give the certificate's file too (--cert)",
	keygen.ErrCertificateAlone:  "name the private key's file, and the certificate's with --cert",
	keygen.ErrPublicKey:         "signing needs the private half",
	keygen.ErrNotPath:           "write the text to a file that only you can read, and give the name of that file",
	keygen.ErrNoPKCS11:          "write the certificate to a file: pkcs11-tool --read-object --type cert --label LABEL -o cert.der",
	keygen.ErrNoTPM:             "make a key in a file with modsign keygen",
	keygen.ErrDER:               "openssl pkey -inform DER -in FILE -out KEY.pem",
	keygen.ErrPKCS12:            "openssl pkcs12 -in FILE -noenc -out KEY.pem, then chmod 600 KEY.pem",
	keygen.ErrOpenSSH:           "on a copy: ssh-keygen -p -m PKCS8 -f COPY",
	keygen.ErrPuTTY:             "puttygen FILE -O private-openssh, then ssh-keygen -p -m PKCS8",
	keygen.ErrOpenPGP:           "the kernel knows X.509 alone: make a key with modsign keygen",
	keygen.ErrUnsupportedKey:    "make one with modsign keygen",
	keygen.ErrUnsupportedCipher: "openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out KEY.pem",
	keygen.ErrUnnamedCurve:      "openssl pkey -in FILE -ec_param_enc named_curve -out KEY.pem",
}

// fileInHint is where a hint names the file.
var fileInHint = regexp.MustCompile(`\bFILE\b`)

// keyHint says what to do about an error of package keygen, or nothing.
func keyHint(err error) string {
	if e, ok := errors.AsType[*keystore.Error](err); ok {
		return storeHint(e)
	}
	e, ok := errors.AsType[*keygen.LoadError](err)
	if !ok {
		return ""
	}
	hint := keyHints[e.Reason]
	if insecure, ok := errors.AsType[*keygen.InsecureError](e); ok {
		hint = insecureHint(insecure)
	}
	if mendable, ok := errors.AsType[*keyfile.HintError](e); ok {
		hint = mendable.Hint
	}
	if gone, ok := errors.AsType[*agent.UnavailableError](e); ok && gone.Kept {
		hint = "modsign agent start opens the key again"
	} else if ok {
		hint = "the next make makes a new key, and links its certificate into the kernel"
	}
	return fileInHint.ReplaceAllLiteralString(hint, shell.Quote(e.Path))
}

// storeHint says what to do about a key that is not a file.
func storeHint(e *keystore.Error) string {
	if mendable, ok := errors.AsType[*keyfile.HintError](e); ok {
		return mendable.Hint
	}
	switch {
	case errors.Is(e, keygen.ErrNoPassphrase):
		return keyHints[keygen.ErrNoPassphrase]
	case errors.Is(e, keygen.ErrNoCertificate):
		return "give the certificate's file (--cert)"
	}
	return ""
}

func insecureHint(e *keygen.InsecureError) string {
	switch {
	case e.ReadOnly:
		return "its mount is read-only: have it mounted with mode 0400 (Kubernetes: defaultMode of the secret's volume)"
	case e.NotOwner:
		return "its owner can: chmod 600 FILE"
	}
	return "chmod 600 FILE"
}

// nameInsecureFlag adds the flag to the hint about a key that others can read. Where
// a group is to read it, or its mount has no modes, there is nothing to mend.
func nameInsecureFlag(err error) error {
	if errors.Is(err, keygen.ErrInsecure) {
		return withHint(err, "%s # or sign with it as it is: --allow-insecure-key", keyHint(err))
	}
	return err
}

// hintFor adds what to do about the file of a certificate, where something can be
// done.
func hintFor(path string, err error) error {
	if e, ok := errors.AsType[*keyfile.HintError](err); ok && e.Hint != "" {
		return withHint(err, "%s", fileInHint.ReplaceAllLiteralString(e.Hint, shell.Quote(path)))
	}
	return err
}

// inOneLine is an error with its hint, for where there are no lines of hints, no flags
// for the key and no prompt.
func inOneLine(err error) string {
	hint := keyHint(err)
	if errors.Is(err, keygen.ErrNoPassphrase) {
		hint = "set KBUILD_SIGN_PIN"
	}
	if hint != "" {
		return err.Error() + " (" + hint + ")"
	}
	return err.Error()
}
