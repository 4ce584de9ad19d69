package sign

import (
	"errors"
	"fmt"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
)

// readOld reads the signature that the new one is added to.
func (w *work) readOld(layers []module.Layer) error {
	if len(layers) > 1 {
		return fmt.Errorf("signed %d times, one on top of the other: only a single signature gets another signer",
			len(layers))
	}
	if layers[0].Info.SigLen > cms.MaxSize {
		return fmt.Errorf("signature of %d bytes: the kernel reads at most %d", layers[0].Info.SigLen, cms.MaxSize)
	}
	if layers[0].Info.IDType == module.TypeMerkle {
		return errors.New("a Merkle proof instead of a signature has no signers")
	}
	if err := layers[0].Check(module.TypePKCS7); err != nil {
		return err
	}
	der, err := layers[0].Signature(w.module)
	if err != nil {
		return err
	}
	w.old, err = cms.Parse(der)
	if err != nil {
		return fmt.Errorf("its signature cannot have another signer: %w", err)
	}
	return nil
}

// addTo adds the signers of a new signature to the old one, if that is kept.
func (w *work) addTo(t *trailer) error {
	if w.old == nil || t.kind == 0 {
		return nil
	}
	added, err := cms.Parse(t.message)
	if err != nil {
		return err
	}
	message, err := w.old.Add(added)
	if err != nil {
		return fmt.Errorf("its signature cannot have another signer: %w", err)
	}
	if w.result.Kept, err = signersBeside(message, added); err != nil {
		return err
	}
	if w.result.Kept > 0 {
		w.result.Removed = 0
	}
	t.message = message
	return nil
}

// signersBeside returns how many signers a message has besides those that were added.
func signersBeside(message []byte, added *cms.Message) (int, error) {
	m, err := cms.Parse(message)
	if err != nil {
		return 0, err
	}
	return len(m.Signers) - len(added.Signers), nil
}

// tryAdd is addTo before there is a signature: for dry runs, and so that no key signs what
// is refused.
func (w *work) tryAdd() error {
	if w.old == nil {
		return nil
	}
	t, err := w.trailers.draft()
	if err != nil {
		return err
	}
	return w.addTo(&t)
}
