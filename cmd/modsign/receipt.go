package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/keygen/agent"
)

type jsonReceipt struct {
	Type string `json:"message_type"` // receipt
	*agent.Receipt
	Modules int `json:"modules"`
}

// receiptOptions are the flags of receipt.
type receiptOptions struct {
	unsigned  bool
	paragraph bool
	image     string
}

// newReceiptCommand makes the command, which is there twice: modsign receipt and modsign agent
// receipt.
func newReceiptCommand(u *ui) *cobra.Command {
	var o receiptOptions
	cmd := &cobra.Command{
		Use:   "receipt {FILE | DIR} [PATH...]",
		Short: "Check the receipt that a key agent left",
		Long: `Check and show the receipt that a key agent left when it ended. FILE is
.modsign/receipt-*.json in the object tree; for an object tree DIR, receipt takes
the newest one there. A one-time key signed its receipt as its last act.

With PATH, modules or directories of modules, receipt also checks that the key
signed exactly these modules and nothing else. It compares the SHA-256 of the list
of all digests that the key signed.

Compare the certificate's SHA-256 with that of the certificate in the kernel. Only
the agent can make the receipt of an RSA key. For an ECDSA or ML-DSA key, anyone who
was allowed to use the agent could have made the agent sign a false receipt.

Nobody signs the receipt of an agent that held a key from elsewhere (modsign agent
start): it is a note that proves nothing. Receipt exits with status 4 for it, unless
--unsigned accepts it.

--kernel also checks that the certificate is built into a kernel image. --paragraph
writes what has been checked as a text for the review of a shim, which asks whether
the key of the modules is ephemeral and which others the kernel loads. It needs
--kernel and PATH.`,
		Example: `  modsign receipt . /lib/modules/6.12.0
  modsign receipt receipt.json --kernel vmlinux --paragraph root/lib/modules/6.12.0`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usagef("no receipt: name its file, or the object tree")
			case o.paragraph && u.JSON:
				return usagef("--paragraph is for people, and --json is not: give one")
			case o.paragraph && o.unsigned:
				return usagef("--paragraph is about one-time keys, and --unsigned about others: give one")
			case o.paragraph && (o.image == "" || len(args) == 1):
				return usagef("--paragraph needs the kernel (--kernel) and its modules (PATH)")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return checkReceipt(cmd.Context(), u, args[0], args[1:], o)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.unsigned, "unsigned", false, "accept the receipt of a key that was kept elsewhere")
	flags.StringVar(&o.image, "kernel", "", "check that the certificate is built into the kernel `IMAGE`")
	flags.BoolVar(&o.paragraph, "paragraph", false, "write a text for a review of the kernel")
	addJSON(cmd.Flags(), u)
	return cmd
}

func checkReceipt(ctx context.Context, u *ui, path string, roots []string, o receiptOptions) error {
	r, err := readReceipt(u, path, o.unsigned)
	if err != nil {
		return err
	}
	modules := 0
	if len(roots) > 0 {
		if modules, err = matchReceipt(ctx, r, roots); err != nil {
			return err
		}
	}
	if o.paragraph && modules == 0 {
		return errors.New("there are no modules: a text about none would prove nothing")
	}
	var kernel *receiptKernel
	if o.image != "" {
		if kernel, err = holdsCertificate(o.image, r); err != nil {
			return err
		}
	}
	if o.paragraph {
		for _, line := range paragraph(r, modules, kernel) {
			u.Result("%s", line)
		}
		return nil
	}
	if u.JSON {
		u.Object(jsonReceipt{"receipt", r, modules})
		return nil
	}
	showReceipt(u, r)
	if kernel != nil {
		u.Note("%s has its certificate built in%s", o.image, kernel.besides())
	}
	switch {
	case len(roots) == 0:
	case r.Kept:
		u.Note("by this receipt, the agent signed exactly %s, and nothing else", plural(modules, "module"))
	default:
		u.Note("the key signed exactly %s, and nothing else", plural(modules, "module"))
	}
	return nil
}

// readReceipt reads and checks a receipt, the newest one if path is an object tree. Unsigned
// accepts one of a key that was kept elsewhere.
func readReceipt(u *ui, path string, unsigned bool) (*agent.Receipt, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		tree := path
		if path, err = agent.NewestReceipt(filepath.Join(tree, kbuildrun.Dir)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: no receipt of a key agent: a one-time key leaves it in %s when it ends",
				tree, kbuildrun.Dir)
		} else if err != nil {
			return nil, err
		}
		u.Note("%s:", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := agent.ReadReceipt(f)
	if err == nil {
		err = r.Check()
	}
	switch {
	case err == agent.ErrUnsigned && unsigned:
	case err == agent.ErrUnsigned:
		return nil, &failure{
			code: exitRefused, err: errors.New(describe(path, err)), hint: "--unsigned shows it, and proves nothing",
		}
	case err != nil:
		return nil, &failure{code: exitRefused, err: errors.New(describe(path, err))}
	}
	return r, nil
}

func showReceipt(u *ui, r *agent.Receipt) {
	field(u, "key", "%s", r.Algorithm)
	field(u, "certificate", "SHA-256 %s", r.CertificateSHA256)
	if r.Kept {
		field(u, "kept", "elsewhere: the key lives on")
	}
	field(u, "born", "%s", r.Born.Format(time.RFC3339))
	field(u, "died", "%s", r.Died.Format(time.RFC3339))
	field(u, "reason", "%s", r.Reason)
	field(u, "signatures", "%d", r.Signatures)
	field(u, "digests", "SHA-256 %s", r.DigestsSHA256)
	field(u, "installs", "%d", r.Installs)
	field(u, "memory_locked", "%t", r.MemoryLocked)
	field(u, "memory_hidden", "%t", r.MemoryHidden)
	if !r.MemoryHidden {
		u.Note("%s", memoryOpen)
	}
	if r.Kept {
		u.Note("receipt is not signed, and anybody can have written it")
	} else if !strings.HasPrefix(r.Algorithm, "rsa:") {
		kind := strings.NewReplacer("ecdsa", "ECDSA", "mldsa", "ML-DSA").Replace(strings.Split(r.Algorithm, ":")[0])
		u.Note("receipt is good, within the limits of an %s key: "+
			"anyone who was allowed to use the agent could have made it sign another one", kind)
	} else {
		u.Note("receipt is good")
	}
}

// matchReceipt checks that the key signed exactly the modules below roots, and returns
// their number.
func matchReceipt(ctx context.Context, r *agent.Receipt, roots []string) (int, error) {
	n, err := r.MatchModules(ctx, roots)
	switch {
	case errors.Is(err, agent.ErrOtherModules):
		return n, &failure{code: exitRefused, err: fmt.Errorf(
			"the key did not sign exactly these %s: it signed others too, or these in another form, such as unstripped",
			plural(n, "module"))}
	case errors.Is(err, agent.ErrOtherKey):
		return n, &failure{code: exitRefused, err: err}
	}
	return n, err
}
