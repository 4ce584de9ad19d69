package sign

import (
	"bytes"
	"context"
	"io"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// samePayload reports whether two files hold the same module apart from signatures. If a
// has a temporary name, the name of b says how it is compressed.
func samePayload(a, b location) (bool, error) {
	two, err := openModule(b, b.name())
	if err != nil {
		return false, err
	}
	defer two.Close()
	name := a.name()
	if atomicfile.IsTemp(name) {
		name = b.name()
	}
	one, err := openModule(a, name)
	if err != nil {
		return false, err
	}
	defer one.Close()
	oneSize, err := payloadSize(one)
	if err != nil {
		return false, err
	}
	twoSize, err := payloadSize(two)
	if err != nil || oneSize != twoSize {
		return false, err
	}
	return equal(one.Payload(oneSize), two.Payload(twoSize))
}

func openModule(at location, name string) (m *module.File, err error) {
	err = at.in(func(dir *dirfd.Dir, base string) error {
		m, err = module.OpenAs(context.Background(), dir, base, name, module.Limits{})
		return err
	})
	return m, err
}

func payloadSize(m *module.File) (int64, error) {
	layers, err := module.Layers(m, m.Size)
	return module.PayloadSize(layers, m.Size), err
}

// equal compares two readers of the same length.
func equal(a, b io.Reader) (bool, error) {
	var one, two [32 << 10]byte
	for {
		n, err := io.ReadFull(a, one[:])
		if _, err := io.ReadFull(b, two[:n]); err != nil {
			return false, err
		}
		if !bytes.Equal(one[:n], two[:n]) {
			return false, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}
