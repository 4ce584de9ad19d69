package sign

import (
	"hash"
	"io"
	"slices"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/module"
)

// A trailerSource makes what follows the payload of each module in a run: a signature,
// a proof, or nothing. Several goroutines call it.
type trailerSource interface {
	// begin starts the digests of the module with a name in the tree. There is none if
	// the trailer does not depend on the module's bytes.
	begin(name string) []hash.Hash
	// trailer returns the trailer of the module with this name, payload size and digests.
	trailer(name string, size int64, digests [][]byte) (trailer, error)
	// draft returns a trailer with zeros for signatures, as long as the longest one, to see
	// whether it can be added to an older one. The zero value tells nothing about that.
	draft() (trailer, error)
	// action names what has been done with a module that has its trailer. changed tells
	// that its payload is not the old file.
	action(changed bool) Action
	// byName reports whether names of the same file have different digests.
	byName() bool
	// jobs returns how many modules to work on at once if the caller asks for n.
	jobs(n int) int
	// isNewFile reports whether Kbuild has a program write the module anew for this trailer,
	// as sign-file does.
	isNewFile() bool
}

// trailer is a message and its kind. The zero value is no trailer.
type trailer struct {
	kind    module.IDType
	message []byte
}

// bytes is the trailer as it follows a payload.
func (t trailer) bytes() []byte {
	if t.kind == 0 {
		return nil
	}
	return module.AppendSignature(nil, t.kind, t.message)
}

// signs is embedded in the sources whose modules count as signed.
type signs struct{}

func (signs) action(bool) Action      { return Signed }
func (signs) jobs(n int) int          { return batch.Jobs(n) }
func (signs) isNewFile() bool         { return true }
func (signs) draft() (trailer, error) { return trailer{}, nil }

// signsNot is embedded in the sources that make no trailer.
type signsNot struct{}

func (signsNot) begin(string) []hash.Hash                         { return nil }
func (signsNot) trailer(string, int64, [][]byte) (trailer, error) { return trailer{}, nil }
func (signsNot) draft() (trailer, error)                          { return trailer{}, nil }
func (signsNot) byName() bool                                     { return false }
func (signsNot) jobs(n int) int                                   { return batch.Jobs(n) }
func (signsNot) isNewFile() bool                                  { return false }

// signatures are made by a Signer.
type signatures struct {
	signs
	*Signer
}

func (s signatures) begin(string) []hash.Hash { return s.newHashes() }

func (s signatures) trailer(name string, size int64, digests [][]byte) (trailer, error) {
	message, err := s.signDigests(name, size, digests)
	return trailer{module.TypePKCS7, message}, err
}

func (s signatures) draft() (trailer, error) {
	message, err := s.Signer.draft()
	return trailer{module.TypePKCS7, message}, err
}

func (signatures) byName() bool { return false }

func (s signatures) jobs(n int) int { return s.Signer.jobs(n) }

// A Prover makes proofs, which stand in the place of signatures for a kernel that knows
// its modules by their hashes. A proof leads from the hash of a module to the root of a
// tree of hashes.
type Prover interface {
	// NewHash begins the hash of the module with a name in the tree.
	NewHash(name string) hash.Hash
	// Proof returns the proof of the module with that name and hash, or the reason why
	// there is none. Several goroutines call it.
	Proof(name string, sum []byte) ([]byte, error)
}

// proofs are made by a Prover.
type proofs struct {
	signs
	Prover
}

func (p proofs) begin(name string) []hash.Hash { return []hash.Hash{orFailing(p.NewHash(name))} }

func (p proofs) trailer(name string, _ int64, sums [][]byte) (trailer, error) {
	proof, err := p.Proof(name, sums[0])
	return trailer{module.TypeMerkle, proof}, err
}

func (proofs) byName() bool { return true }

func (proofs) isNewFile() bool { return false }

// noTrailer leaves modules unsigned.
type noTrailer struct{ signsNot }

func (noTrailer) action(changed bool) Action {
	if changed {
		return Stripped
	}
	return Skipped
}

// digests are what a run is for that places nothing.
type digests struct {
	signsNot
	hash Hash
}

func (d digests) begin(string) []hash.Hash { return []hash.Hash{d.hash.New()} }

func (digests) action(bool) Action { return Digested }

// trailer makes the trailer of the module, and copies the payload to dst on the way if
// dst is not nil: the bytes that are hashed are the bytes that are written.
func (w *work) trailer(dst io.Writer) (trailer, error) {
	name := w.job.names[0].name
	hashes, sum := w.trailers.begin(name), w.guard.begin()
	all := hashes
	if sum != nil {
		all = append(slices.Clip(hashes), sum)
	}
	if out := tee(all, dst); out != nil {
		if err := w.content.copyTo(out); err != nil {
			return trailer{}, err
		}
	}
	digests := sums(hashes)
	if len(digests) > 0 {
		w.result.Digest = digests[0]
	}
	if err := w.allow(sum); err != nil {
		return trailer{}, err
	}
	t, err := w.trailers.trailer(name, w.result.Payload, digests)
	if err == nil {
		err = w.addTo(&t)
	}
	w.result.Signature = len(t.message)
	return t, err
}

// tee writes to hashes and to a writer, which may be nil. It is nil if there is neither.
func tee(hashes []hash.Hash, w io.Writer) io.Writer {
	var writers []io.Writer
	for _, h := range hashes {
		writers = append(writers, h)
	}
	if w != nil {
		writers = append(writers, w)
	}
	switch len(writers) {
	case 0:
		return nil
	case 1:
		return writers[0]
	}
	return io.MultiWriter(writers...)
}

func sums(hashes []hash.Hash) [][]byte {
	sums := make([][]byte, len(hashes))
	for i, h := range hashes {
		sums[i] = h.Sum(nil)
	}
	return sums
}
