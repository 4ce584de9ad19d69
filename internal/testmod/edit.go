package testmod

import (
	"slices"
	"testing"
)

// Edit returns a copy of data with changes, for fuzz targets whose inputs are large:
// their fuzzer chooses a seed and a few numbers. Go's fuzzer makes each input of bytes
// that finds something smaller before it goes on, and for some kB that takes minutes;
// numbers it leaves as they are.
//
// Of a change that is not 0, the lowest byte is a value, the next one says what is
// done with it, and the others where.
func Edit(data []byte, changes ...uint64) []byte {
	b := slices.Clone(data)
	for _, c := range changes {
		if c == 0 || len(b) == 0 {
			continue
		}
		value, what, at := byte(c), (c>>8)%8, int((c>>16)%uint64(len(b)))
		switch what {
		case 0:
			b[at] = value
		case 1:
			b[at] ^= value
		case 2:
			b[at] += value
		case 3:
			b = slices.Insert(b, at, value)
		case 4:
			b = slices.Delete(b, at, min(at+1+int(value), len(b)))
		case 5: // what stands there comes twice
			b = slices.Insert(b, at, slices.Clone(b[at:min(at+1+int(value), len(b))])...)
		case 6: // a number of four bytes
			for i := range b[at:min(at+4, len(b))] {
				b[at+i] = value
			}
		case 7:
			b = b[:at]
		}
	}
	return b
}

// ShowInputs is deferred by fuzz targets whose seeds differ from process to process:
// when they fail, it logs what they failed with, since the numbers alone tell nobody.
func ShowInputs(t testing.TB, inputs ...[]byte) {
	failure := recover()
	if failure != nil || t.Failed() {
		for i, input := range inputs {
			t.Logf("input %d: %x", i+1, input)
		}
	}
	if failure != nil {
		panic(failure)
	}
}
