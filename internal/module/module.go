// Package module reads and writes the container of a signed kernel module: the
// ELF payload with one or more appended signatures behind it.
//
// # Format
//
// Source: include/linux/module_signature.h, include/uapi/linux/module_signature.h
// since 7.1, and kernel/module_signature.c. All lengths are in bytes.
//
//	payload      the ELF file, at least 1
//	signature    Info.SigLen: a DER CMS message for type 2
//	Info         12: struct module_signature
//	marker       28: "~Module signature appended~\n"
//
// Info holds algo, hash, id_type, signer_len, key_id_len (one byte each), three
// bytes of padding and the length of the signature as a big-endian 32-bit
// number. All but id_type and the length have to be zero. An example, for a CMS
// message of 425 bytes:
//
//	00 00 02 00 00 00 00 00 00 00 01 a9
//
// What is signed is the payload: everything before the signature, and nothing
// behind it. A file that does not end in the marker is an unsigned module, not
// a broken one. Signing a file that is signed already stacks a second layer on
// the first; the kernel looks at the outermost alone, and takes the others for
// a part of the payload.
//
// The package finds the layers and says what is wrong with them. It does not
// look inside a signature: see internal/cms.
package module

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// Marker ends every signed module: MODULE_SIG_STRING, or since 7.1
// MODULE_SIGNATURE_MARKER.
const Marker = "~Module signature appended~\n"

// infoSize is the size of struct module_signature.
const infoSize = 12

// TrailerSize is what stands behind the signature in a signed module: Info and
// the marker.
const TrailerSize = infoSize + len(Marker)

// IDType is the id_type of struct module_signature: what kind of signature
// stands before it.
type IDType uint8

const (
	TypePGP    IDType = 0 // PKEY_ID_PGP: never accepted since 4.3
	TypeX509   IDType = 1 // PKEY_ID_X509: 3.7 to 4.2
	TypePKCS7  IDType = 2 // PKEY_ID_PKCS7, MODULE_SIGNATURE_TYPE_PKCS7
	TypeMerkle IDType = 3 // MODULE_SIGNATURE_TYPE_MERKLE, of the hash series alone
)

func (t IDType) String() string {
	switch t {
	case TypePGP:
		return "PGP"
	case TypeX509:
		return "X.509"
	case TypePKCS7:
		return "PKCS#7"
	case TypeMerkle:
		return "Merkle"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Info is struct module_signature.
type Info struct {
	Algo      uint8
	Hash      uint8
	IDType    IDType
	SignerLen uint8
	KeyIDLen  uint8
	Pad       [3]byte
	SigLen    uint32
}

func parseInfo(b [infoSize]byte) Info {
	return Info{
		Algo: b[0], Hash: b[1], IDType: IDType(b[2]), SignerLen: b[3], KeyIDLen: b[4],
		Pad:    [3]byte(b[5:8]),
		SigLen: binary.BigEndian.Uint32(b[8:]),
	}
}

func (i Info) append(b []byte) []byte {
	b = append(b, i.Algo, i.Hash, uint8(i.IDType), i.SignerLen, i.KeyIDLen)
	b = append(b, i.Pad[:]...)
	return binary.BigEndian.AppendUint32(b, i.SigLen)
}

// A Layer is one appended signature.
type Layer struct {
	Info   Info
	Offset int64 // where the signature begins: the length of what it signs
}

// Signature reads the signature of a layer out of the module that it was found
// in.
func (l Layer) Signature(r io.ReaderAt) ([]byte, error) {
	sig := make([]byte, l.Info.SigLen)
	if _, err := r.ReadAt(sig, l.Offset); err != nil {
		return nil, err
	}
	return sig, nil
}

// AppendSignature appends to b what turns a payload into a signed module: the
// signature, Info and the marker.
func AppendSignature(b []byte, t IDType, signature []byte) []byte {
	b = append(b, signature...)
	b = Info{IDType: t, SigLen: uint32(len(signature))}.append(b)
	return append(b, Marker...)
}

// ErrNotSigned says that a file does not end in the marker.
var ErrNotSigned = errors.New("not signed")

// What can be wrong with a trailer, in the order in which mod_check_sig of
// kernel/module_signature.c looks at it. They come wrapped in a [FormatError].
var (
	ErrNoInfo     = errors.New("too short to hold a signature before its marker")
	ErrSigLen     = errors.New("signature length does not fit the file")
	ErrIDType     = errors.New("unsupported signature type")
	ErrInfoFields = errors.New("fields of the signature descriptor that have to be zero are not")
)

// A FormatError is a trailer that the kernel refuses.
type FormatError struct {
	Err    error // one of ErrNoInfo, ErrSigLen, ErrIDType, ErrInfoFields
	Offset int64 // where in the (decompressed) file
	Info   Info  // as it stands there, zero for ErrNoInfo
}

func (e *FormatError) Unwrap() error { return e.Err }

func (e *FormatError) Error() string {
	switch e.Err {
	case ErrSigLen:
		return fmt.Sprintf("malformed signature at offset %d: %v: it claims %d bytes", e.Offset, e.Err, e.Info.SigLen)
	case ErrIDType:
		return fmt.Sprintf("signature at offset %d: %v: %s, where the kernel takes PKCS#7 alone", e.Offset, e.Err, e.Info.IDType)
	case ErrInfoFields:
		return fmt.Sprintf("malformed signature at offset %d: %v: algo %d, hash %d, signer_len %d, key_id_len %d, padding %x",
			e.Offset, e.Err, e.Info.Algo, e.Info.Hash, e.Info.SignerLen, e.Info.KeyIDLen, e.Info.Pad)
	}
	return fmt.Sprintf("malformed signature at offset %d: %v", e.Offset, e.Err)
}

// Errno is what init_module(2) fails with for such a module.
func (e *FormatError) Errno() syscall.Errno {
	if e.Err == ErrIDType {
		return syscall.ENOPKG
	}
	return syscall.EBADMSG
}

// Split finds the outermost signature of a module of size bytes. Without one it
// returns [ErrNotSigned], and for one that the kernel would not even look into,
// a [*FormatError]. TypeMerkle is let through, for kernels that have it.
func Split(r io.ReaderAt, size int64) (Layer, error) {
	// As the kernel: a file that is nothing but the marker is not signed.
	if size <= int64(len(Marker)) {
		return Layer{}, ErrNotSigned
	}
	var tail [TrailerSize]byte
	n := min(size, int64(len(tail)))
	end := tail[int64(len(tail))-n:]
	if err := readFull(r, end, size-n); err != nil {
		return Layer{}, err
	}
	if string(tail[infoSize:]) != Marker {
		return Layer{}, ErrNotSigned
	}
	rest := size - int64(len(Marker))
	if rest <= infoSize {
		return Layer{}, &FormatError{Err: ErrNoInfo, Offset: rest}
	}
	rest -= infoSize
	info := parseInfo([infoSize]byte(tail[:infoSize]))
	switch {
	case int64(info.SigLen) >= rest: // at least one byte of payload
		return Layer{}, &FormatError{Err: ErrSigLen, Offset: rest + 8, Info: info}
	case info.IDType != TypePKCS7 && info.IDType != TypeMerkle:
		return Layer{}, &FormatError{Err: ErrIDType, Offset: rest + 2, Info: info}
	case info != Info{IDType: info.IDType, SigLen: info.SigLen}:
		return Layer{}, &FormatError{Err: ErrInfoFields, Offset: rest, Info: info}
	}
	return Layer{Info: info, Offset: rest - int64(info.SigLen)}, nil
}

// maxLayers is how many signatures are looked for: a file may hold millions of
// empty ones.
const maxLayers = 1000

// ErrLayers says that a file has more signatures stacked than anybody makes.
var ErrLayers = fmt.Errorf("more than %d signatures, one on the other", maxLayers)

// Layers finds all the signatures of a module, the outermost first; none is not
// an error. The innermost one's Offset is the length of the module as it was
// before anybody signed it. With a malformed layer come the good ones around
// it and the [*FormatError], with too many the outer ones and [ErrLayers].
func Layers(r io.ReaderAt, size int64) ([]Layer, error) {
	var layers []Layer
	for {
		if len(layers) == maxLayers {
			return layers, ErrLayers
		}
		layer, err := Split(r, size)
		if err == ErrNotSigned {
			return layers, nil
		}
		if err != nil {
			return layers, err
		}
		layers = append(layers, layer)
		size = layer.Offset
	}
}

// PayloadSize is the length of a module of size bytes without all its layers: as
// it was before anybody signed it.
func PayloadSize(layers []Layer, size int64) int64 {
	if len(layers) == 0 {
		return size
	}
	return layers[len(layers)-1].Offset
}

// readFull reads all of b at off, where the file is known to be long enough: a
// short read means that it has shrunk since.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
