// Package module reads and writes the container of a signed kernel module: the ELF
// payload followed by one or more signatures.
//
// Use [Layers] or [Split] to find signatures, [Check] for the kernel's verdict on the
// container, and [AppendSignature] to add a signature. [Open] opens a module file, and
// [Find] lists the modules of a tree.
//
// # Format
//
// Source: include/linux/module_signature.h, include/uapi/linux/module_signature.h since
// 7.1, and kernel/module_signature.c. All lengths are in bytes.
//
//	payload      the ELF file, at least 1
//	signer       Info.SignerLen: who signed, 0 today
//	key id       Info.KeyIDLen: with which key, 0 today
//	signature    Info.SigLen: a DER CMS message for type 2
//	Info         12: struct module_signature
//	marker       28: "~Module signature appended~\n"
//
// Info consists of algo, hash, id_type, signer_len, key_id_len (one byte each), three
// bytes of padding and the length of the signature as a big-endian 32-bit number. All
// fields except id_type and the length must be zero. An example, for a CMS message of
// 425 bytes:
//
//	00 00 02 00 00 00 00 00 00 00 01 a9
//
// Linux 3.7 to 4.2 used type 1 instead (kernel/module_signing.c and scripts/sign-file
// of those versions): algo and hash are numbers of algorithms ([Info.AlgoName],
// [Info.HashName]), signer is the name of the certificate's subject, and key id its
// subject key identifier. The signature is the raw value after its length in two bytes,
// big-endian; Info.SigLen counts both. An example, for a key of 2048 bits and SHA-256:
//
//	01 04 01 1d 14 00 00 00 00 00 01 02
//
// A signature covers the payload: everything before the signer, and nothing after it. A
// file without the marker at its end is an unsigned module, not a broken one. Signing a
// signed file adds a second layer on top of the first. The kernel checks only the
// outermost layer, and treats the others as a part of the payload.
//
// [Split] and [Layers] use only this layout, whatever the type and the fields are. That
// suffices to remove, replace or describe a signature. [Check] applies the kernel's
// rule, for verdicts.
//
// The package finds the layers and reports what is wrong with them. It does not parse
// the signatures; see internal/cms.
package module

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
)

// Marker is the end of every signed module: MODULE_SIG_STRING, or since 7.1
// MODULE_SIGNATURE_MARKER.
const Marker = "~Module signature appended~\n"

// infoSize is the size of struct module_signature.
const infoSize = 12

// TrailerSize is the size of Info and marker, the bytes after the signature.
const TrailerSize = infoSize + len(Marker)

// IDType is the id_type of struct module_signature: the kind of signature.
type IDType uint8

const (
	TypePGP    IDType = 0 // PKEY_ID_PGP: never accepted since 4.3
	TypeX509   IDType = 1 // PKEY_ID_X509: accepted by 3.7 to 4.2
	TypePKCS7  IDType = 2 // PKEY_ID_PKCS7, MODULE_SIGNATURE_TYPE_PKCS7
	TypeMerkle IDType = 3 // MODULE_SIGNATURE_TYPE_MERKLE, only with the module hashes patches
)

// String returns modinfo's name for the type.
func (t IDType) String() string {
	switch t {
	case TypePGP:
		return "PGP"
	case TypeX509:
		return "X509"
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

// oldAlgorithms and oldHashes are enum pkey_algo and enum pkey_hash_algo of Linux 3.7,
// with modinfo's names. The latter is still the beginning of enum hash_algo.
var (
	oldAlgorithms = [...]string{"dsa", "rsa"}
	oldHashes     = [...]string{"md4", "md5", "sha1", "rmd160", "sha256", "sha384", "sha512", "sha224"}
)

// AlgoName returns the public key algorithm of a signature in the format before 4.3.
func (i Info) AlgoName() string { return numbered(oldAlgorithms[:], i.Algo) }

// HashName returns the hash of a signature in the format before 4.3.
func (i Info) HashName() string { return numbered(oldHashes[:], i.Hash) }

func numbered(names []string, n uint8) string {
	if int(n) < len(names) {
		return names[n]
	}
	return fmt.Sprintf("number %d", n)
}

// size returns the size in bytes of a layer without Info and marker.
func (i Info) size() int64 { return int64(i.SignerLen) + int64(i.KeyIDLen) + int64(i.SigLen) }

// A Layer is one appended signature.
type Layer struct {
	Info   Info
	Offset int64 // start of the signer: the length of the signed data
}

// Signer reads a layer's signer name from the module. The bytes may be anything.
func (l Layer) Signer(r io.ReaderAt) ([]byte, error) {
	return read(r, l.Offset, int(l.Info.SignerLen))
}

// KeyID reads the key identifier of a layer.
func (l Layer) KeyID(r io.ReaderAt) ([]byte, error) {
	return read(r, l.Offset+int64(l.Info.SignerLen), int(l.Info.KeyIDLen))
}

// Signature reads the signature of a layer.
func (l Layer) Signature(r io.ReaderAt) ([]byte, error) {
	return read(r, l.Offset+int64(l.Info.SignerLen)+int64(l.Info.KeyIDLen), int(l.Info.SigLen))
}

// NumberSize returns the length of the signature value in a layer of type X509. It
// returns -1 if the length field before the value does not match.
func (l Layer) NumberSize(r io.ReaderAt) (int, error) {
	const size = 2
	if l.Info.SigLen < size {
		return -1, nil
	}
	b, err := read(r, l.Offset+l.Info.size()-int64(l.Info.SigLen), size)
	if err != nil {
		return 0, err
	}
	if n := int(binary.BigEndian.Uint16(b)); int64(n)+size == int64(l.Info.SigLen) {
		return n, nil
	}
	return -1, nil
}

func read(r io.ReaderAt, off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	return b, readFull(r, b, off)
}

// Check returns a [*FormatError] if a kernel that knows only signatures of the given
// types would reject the layer without checking its signature.
func (l Layer) Check(types ...IDType) error {
	return l.Info.check(l.Offset+l.Info.size(), types)
}

// AppendSignature appends to b what makes a payload a signed module: the signature,
// Info and the marker.
func AppendSignature(b []byte, t IDType, signature []byte) []byte {
	b = append(b, signature...)
	b = Info{IDType: t, SigLen: uint32(len(signature))}.append(b)
	return append(b, Marker...)
}

// ErrNotSigned reports that a file does not end in the marker.
var ErrNotSigned = errors.New("not signed")

// These errors describe a malformed trailer, in the order of the checks in
// mod_check_sig of kernel/module_signature.c. A [FormatError] wraps them. [Split]
// reports the first two, [Check] all of them.
var (
	ErrNoInfo     = errors.New("too short to hold a signature before its marker")
	ErrSigLen     = errors.New("signature length does not fit the file")
	ErrIDType     = errors.New("unsupported signature type")
	ErrInfoFields = errors.New("nonzero fields in the signature descriptor that must be zero")
)

// A FormatError reports a trailer that the kernel rejects.
type FormatError struct {
	Err    error // one of ErrNoInfo, ErrSigLen, ErrIDType, ErrInfoFields
	Offset int64 // offset in the (decompressed) file
	Info   Info  // as found; zero for ErrNoInfo
}

func (e *FormatError) Unwrap() error { return e.Err }

func (e *FormatError) Error() string {
	switch e.Err {
	case ErrSigLen:
		names := ""
		if e.Info.SignerLen > 0 || e.Info.KeyIDLen > 0 {
			names = fmt.Sprintf(", a signer of %d and a key id of %d", e.Info.SignerLen, e.Info.KeyIDLen)
		}
		return fmt.Sprintf("malformed signature at offset %d: %v: its descriptor claims %d bytes%s",
			e.Offset, e.Err, e.Info.SigLen, names)
	case ErrIDType:
		return fmt.Sprintf("signature at offset %d: %v: %s; the kernel accepts only PKCS#7",
			e.Offset, e.Err, e.Info.IDType)
	case ErrInfoFields:
		return fmt.Sprintf("malformed signature at offset %d: %v: algo %d, hash %d, signer_len %d, key_id_len %d, padding %x",
			e.Offset, e.Err, e.Info.Algo, e.Info.Hash, e.Info.SignerLen, e.Info.KeyIDLen, e.Info.Pad)
	}
	return fmt.Sprintf("malformed signature at offset %d: %v", e.Offset, e.Err)
}

// Errno returns the error number that init_module(2) returns for such a module.
func (e *FormatError) Errno() syscall.Errno {
	if e.Err == ErrIDType {
		return syscall.ENOPKG
	}
	return syscall.EBADMSG
}

// Split finds the outermost signature of a module of size bytes, by the layout alone.
// It returns [ErrNotSigned] if there is none, and a [*FormatError] if the lengths do
// not fit the file.
func Split(r io.ReaderAt, size int64) (Layer, error) {
	info, end, err := readInfo(r, size)
	if err != nil {
		return Layer{}, err
	}
	if info.size() >= end { // at least one byte of payload
		return Layer{}, &FormatError{Err: ErrSigLen, Offset: end + 8, Info: info}
	}
	return Layer{Info: info, Offset: end - info.size()}, nil
}

// Check is [Split] with the rule of a kernel that knows signatures of the given types.
// It returns a [*FormatError] if that kernel would reject the module without checking
// the signature.
func Check(r io.ReaderAt, size int64, types ...IDType) (Layer, error) {
	info, end, err := readInfo(r, size)
	if err != nil {
		return Layer{}, err
	}
	// The kernel does not add signer_len and key_id_len: it rejects all but zero before
	// they could be too large.
	if int64(info.SigLen) >= end {
		return Layer{}, &FormatError{Err: ErrSigLen, Offset: end + 8, Info: info}
	}
	if err := info.check(end, types); err != nil {
		return Layer{}, err
	}
	return Layer{Info: info, Offset: end - info.size()}, nil
}

// check checks the fields of an Info at offset off.
func (i Info) check(off int64, types []IDType) error {
	switch {
	case !slices.Contains(types, i.IDType):
		return &FormatError{Err: ErrIDType, Offset: off + 2, Info: i}
	case i != Info{IDType: i.IDType, SigLen: i.SigLen}:
		return &FormatError{Err: ErrInfoFields, Offset: off, Info: i}
	}
	return nil
}

// readInfo reads the Info of the outermost signature, and returns the offset where the
// signature ends. Without a marker it returns [ErrNotSigned].
func readInfo(r io.ReaderAt, size int64) (info Info, end int64, err error) {
	// As in the kernel, a file that is only the marker is not signed.
	if size <= int64(len(Marker)) {
		return Info{}, 0, ErrNotSigned
	}
	var tail [TrailerSize]byte
	n := min(size, int64(len(tail)))
	if err := readFull(r, tail[int64(len(tail))-n:], size-n); err != nil {
		return Info{}, 0, err
	}
	if string(tail[infoSize:]) != Marker {
		return Info{}, 0, ErrNotSigned
	}
	end = size - int64(TrailerSize)
	if end <= 0 {
		return Info{}, 0, &FormatError{Err: ErrNoInfo, Offset: size - int64(len(Marker))}
	}
	return parseInfo([infoSize]byte(tail[:infoSize])), end, nil
}

// maxLayers is the largest number of signatures that Layers looks for: a file may hold
// millions of empty ones.
const maxLayers = 1000

// ErrLayers reports that a file has more stacked signatures than [Layers] looks for.
var ErrLayers = fmt.Errorf("more than %d stacked signatures", maxLayers)

// Layers finds all signatures of a module, the outermost first. A module without
// signatures is not an error. The Offset of the innermost layer is the length of the
// unsigned module. Layers uses the layout alone, as [Split] does. If the lengths of a
// layer do not fit, it returns the layers around it and a [*FormatError]. If there are
// too many, it returns the outer ones and [ErrLayers].
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

// PayloadSize returns the length of a module of size bytes without its layers, as
// before it was signed.
func PayloadSize(layers []Layer, size int64) int64 {
	if len(layers) == 0 {
		return size
	}
	return layers[len(layers)-1].Offset
}

// readFull reads all of b at off, in a file that was long enough: a short read means
// that the file has shrunk since.
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
