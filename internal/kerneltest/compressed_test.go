//go:build kerneltest

package kerneltest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// file returns the file name for verify. The name tells the compression of the content.
func (m made) file() string {
	if m.Compressed {
		return "m.ko" + compress.FromMagic(m.Data[:min(len(m.Data), 6)]).Suffix()
	}
	return "m.ko"
}

// modsignCompress compresses like modsign.
func modsignCompress(t testing.TB, format compress.Format, data []byte) []byte {
	t.Helper()
	encoder, err := compress.NewEncoder(compress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := encoder.Compress(t.Context(), format, &b, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// filter runs a program from standard input to standard output.
func filter(t testing.TB, data []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(testmod.Program(t, name, name), args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	return out
}

// A tool is a program that compresses, with options.
type tool struct {
	command  string
	relation relation
}

// tools exercise the rules of kernel/module/decompress.c and lib/xz. The first of each
// format is that of scripts/Makefile.modinst.
var tools = map[compress.Format][]tool{
	compress.Gzip: {{"gzip -n", same}, {"gzip -1", same}, {"gzip -9", same}},
	compress.XZ: {
		{"xz --check=crc32 --lzma2=dict=1MiB", same}, {"xz --check=none", same}, {"xz --check=crc32 -9e", same},
		{"xz --check=crc32 --lzma2=dict=64MiB", same}, {"xz --check=crc32 --lzma2=dict=4KiB", same},
		{"xz --check=crc32 --block-size=4KiB", same},
		{"xz", warned}, {"xz --check=sha256", warned},
		{"xz --check=crc32 --x86 --lzma2", same}, {"xz --check=crc32 --delta --lzma2", warned},
		{"xz --check=crc32 --x86 --arm --lzma2", warned}, {"xz --check=crc32 --arm64 --lzma2", unreadable},
	},
	compress.Zstd: {
		{"zstd -q", same}, {"zstd -q -19", same}, {"zstd -q --ultra -22", same}, {"zstd -q --fast=5", same},
		{"zstd -q --no-check", same}, {"zstd -q --long=31", same},
		{"zstd -q --no-content-size", same}, {"zstd -q --no-content-size --long=27", same},
		{"zstd -q --no-content-size --long=28", unreadable},
	},
}

// compressedCases makes modules for the decompressor of a kernel configured for one
// format.
func compressedCases(t testing.TB, pairs keys, format compress.Format, payload []byte) []made {
	t.Helper()
	var cases []made
	add := func(name string, relation relation, data []byte) {
		cases = append(cases, made{Case{Name: format.String() + ", " + name, Data: data, Compressed: true}, relation})
	}
	p256, rsa := keygen.ECDSAP256.String(), keygen.RSA2048.String()
	good := pairs.signed(t, p256, payload)
	packed := modsignCompress(t, format, good)
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"good", good},
		{"not signed", payload},
		{"unknown key", pairs.signed(t, "unknown", payload)},
		{"revoked key", pairs.signed(t, "revoked", payload)},
		{"payload changed", changed(good, len(payload)/2)},
		{"signature changed", changed(good, -60)},
		{"trailer wrong", changed(good, -40)},
		{"stacked", pairs.signed(t, p256, good)},
		{"ml-dsa-44", pairs.signed(t, "ml-dsa-44", payload)},
		{"ml-dsa-65", pairs.signed(t, "ml-dsa-65", payload)},
		{"ml-dsa-87", pairs.signed(t, "ml-dsa-87", payload)},
		{"ml-dsa-65, payload changed", changed(pairs.signed(t, "ml-dsa-65", payload), len(payload)/2)},
		{"ml-dsa-65, signature changed", changed(pairs.signed(t, "ml-dsa-65", payload), -60)},
		{"no payload", pairs.signed(t, p256, nil)},
		{"3 MiB", pairs.signed(t, p256, append(slices.Clone(payload), make([]byte, 3<<20)...))},
		// The content ends at a page boundary of the decompressor. RSA signatures have
		// a fixed length.
		{"whole pages", pairs.signed(t, rsa, append(slices.Clone(payload),
			make([]byte, 4096-len(pairs.signed(t, rsa, payload))%4096)...))},
	} {
		add(c.name, same, modsignCompress(t, format, c.data))
	}
	for _, tool := range tools[format] {
		fields := strings.Fields(tool.command)
		if fields[0] == "zstd" && !slices.Contains(fields, "--no-content-size") {
			fields = append(fields, "--stream-size="+strconv.Itoa(len(good)))
		}
		add(tool.command, tool.relation, filter(t, good, fields[0], append(fields[1:], "-c")...))
	}
	for _, other := range append(slices.Clone(formats), compress.None) {
		if other != format {
			add("in the format "+other.String(), configured, modsignCompress(t, other, good))
		}
	}
	add("magic changed", configured, changed(packed, 0))
	add("magic alone", same, packed[:6])
	add("cut in the middle", relationOf(format, same, same, stricter), packed[:len(packed)/2])
	add("cut by a byte", relationOf(format, stricter, same, stricter), packed[:len(packed)-1])
	add("cut by nine bytes", relationOf(format, same, same, stricter), packed[:len(packed)-9])
	middle := len(packed) / 2
	for format == compress.Gzip && !wrongSum(packed, middle) { // any reader may stop at another byte
		middle++
	}
	add("changed in the middle", relationOf(format, stricter, same, same), changed(packed, middle))
	add("last byte changed", relationOf(format, stricter, same, same), changed(packed, -1))
	add("rubbish after it", stricter, append(slices.Clone(packed), "rubbish"...))
	add("zeros after it", relationOf(format, stricter, same, stricter), append(slices.Clone(packed), 0, 0, 0, 0))
	add("twice", stricter, slices.Concat(packed, packed))
	add("in two streams", stricter, slices.Concat(modsignCompress(t, format, good[:1000]),
		modsignCompress(t, format, good[1000:])))
	if format == compress.Gzip {
		for _, header := range []struct {
			has string
			gzip.Header
			relation relation
		}{
			{"a name", gzip.Header{Name: "md4.ko"}, same}, {"a time", gzip.Header{ModTime: time.Unix(1e9, 0)}, same},
			{"a comment", gzip.Header{Comment: "comment"}, warned},
			{"an extra field", gzip.Header{Extra: []byte("extra")}, warned},
		} {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			w.Header = header.Header
			_, err := w.Write(good)
			if err := errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
			add("with "+header.has+" in the header", header.relation, b.Bytes())
		}
	}
	return cases
}

// relationOf selects the relation for a format. In a damaged stream the kernel's gzip
// ignores the checksum, and its zstd accepts the data before the damage.
func relationOf(format compress.Format, ofGzip, ofXZ, ofZstd relation) relation {
	switch format {
	case compress.Gzip:
		return ofGzip
	case compress.XZ:
		return ofXZ
	}
	return ofZstd
}

// wrongSum reports whether a gzip stream with a changed byte is valid except for its
// checksum, which the kernel ignores.
func wrongSum(packed []byte, i int) bool {
	r, err := gzip.NewReader(bytes.NewReader(changed(packed, i)))
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Is(err, gzip.ErrChecksum)
}
