package tpmkey

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/modsign/modsign/internal/keyfile"
)

// ErrPassphrase reports a passphrase that is not the key's.
var ErrPassphrase = errors.New("wrong passphrase")

// An explanation says what a response code of a TPM means for a key.
type explanation struct {
	code       tpm2.TPMRC
	what, hint string
}

const clearLockout = "tpm2_dictionarylockout --clear-lockout, or wait: the TPM forgets a wrong passphrase after a time " +
	"(tpm2_getcap properties-variable shows TPM2_PT_LOCKOUT_INTERVAL in seconds)"

// explanations of codes that may come at any time.
var explanations = []explanation{
	{tpm2.TPMRCLockout, "TPM is locked: there were too many wrong passphrases", clearLockout},
	{tpm2.TPMRCInitialize, "TPM is not started", "tpm2_startup -c; for swtpm: --flags not-need-init,startup-clear"},
	{tpm2.TPMRCObjectMemory, "TPM has no room for a key", flush},
	{tpm2.TPMRCSessionMemory, "TPM has no room for a session", flush},
	{tpm2.TPMRCSessionHandles, "TPM has no room for a session", flush},
	{tpm2.TPMRCFailure, "TPM has failed its self-test", "tpm2_gettestresult says more; a restart of the machine may help"},
}

const flush = "use the kernel's resource manager (device:/dev/tpmrm0), or free the TPM: tpm2_flushcontext -t -l -s"

// explain makes an error about a step of the work. The first explanation of the code wins,
// and what has none is a failure of the step.
func explain(step string, err error, of ...explanation) error {
	if err == nil {
		return nil
	}
	for _, e := range append(of, explanations...) {
		if errors.Is(err, e.code) {
			return &keyfile.HintError{Err: fmt.Errorf("%s (%w)", e.what, err), Hint: e.hint}
		}
	}
	if _, ok := errors.AsType[tpm2.TPMRC](err); ok {
		return fmt.Errorf("TPM refuses %s: %w", step, err)
	}
	return err
}
