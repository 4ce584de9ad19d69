package rsabatch

import (
	"encoding/binary"
	"unsafe"
)

// A vector is eight numbers of the same length, one in each lane: limb i of lane j, 52
// bits, is word 8*i+j. A tile is ten limbs, and all lengths are multiples of it. None of
// these functions has a branch or an address that depends on the value of a limb.
const (
	lanes     = BatchSize
	limbBits  = 52
	limbMask  = 1<<limbBits - 1
	tileLimbs = 10
	tileBits  = tileLimbs * limbBits
	tileWords = tileLimbs * lanes
)

// newVector returns a vector of zeros, which begins at a cache line.
func newVector(limbs int) []uint64 {
	const line = 8 // words
	words := make([]uint64, limbs*lanes+line-1)
	offset := -uintptr(unsafe.Pointer(unsafe.SliceData(words))) / 8 % line
	return words[offset:][: limbs*lanes : limbs*lanes]
}

// limbsOf splits a big-endian number into limbs, of which there are enough.
func limbsOf(number []byte, limbs int) []uint64 {
	little := make([]byte, limbs*limbBits/8+8)
	for i, b := range number {
		little[len(number)-1-i] = b
	}
	out := make([]uint64, limbs)
	for i := range out {
		bit := i * limbBits
		out[i] = binary.LittleEndian.Uint64(little[bit/8:]) >> (bit % 8) & limbMask
	}
	return out
}

// bytesOf joins limbs to a big-endian number of a size, in which it has room.
func bytesOf(limbs []uint64, size int) []byte {
	little := make([]byte, len(limbs)*limbBits/8+8)
	for i, limb := range limbs {
		bit := i * limbBits
		at := little[bit/8:]
		binary.LittleEndian.PutUint64(at, binary.LittleEndian.Uint64(at)|limb<<(bit%8))
	}
	out := make([]byte, size)
	for i := range out {
		out[i] = little[size-1-i]
	}
	return out
}

// setLane copies a number into a lane, whose upper limbs become 0.
func setLane(v []uint64, lane int, number []uint64) {
	for i := range len(v) / lanes {
		v[i*lanes+lane] = 0
		if i < len(number) {
			v[i*lanes+lane] = number[i]
		}
	}
}

// lane returns the number in a lane.
func lane(v []uint64, lane int) []uint64 {
	out := make([]uint64, len(v)/lanes)
	for i := range out {
		out[i] = v[i*lanes+lane]
	}
	return out
}

// fill returns a vector with the same number in all lanes.
func fill(number []uint64, limbs int) []uint64 {
	v := newVector(limbs)
	for j := range lanes {
		setLane(v, j, number)
	}
	return v
}

// add sets z to x+y, which has no more limbs than they have. y may be shorter.
func add(z, x, y []uint64) {
	var carry [lanes]uint64
	for i := range z {
		sum := x[i] + carry[i%lanes]
		if i < len(y) {
			sum += y[i]
		}
		carry[i%lanes] = sum >> limbBits
		z[i] = sum & limbMask
	}
}

// sub sets z to x-y and returns all ones for each lane in which that is negative. Then z
// has wrapped around.
func sub(z, x, y []uint64) (negative [lanes]uint64) {
	for i := range z {
		difference := x[i] - y[i] + negative[i%lanes]
		negative[i%lanes] = uint64(int64(difference) >> limbBits) // 0 or -1
		z[i] = difference & limbMask
	}
	return negative
}

// reduce subtracts m from z where z is not below it. scratch is as long as z.
func reduce(z, m, scratch []uint64) {
	negative := sub(scratch, z, m)
	for i := range z {
		z[i] = z[i]&negative[i%lanes] | scratch[i]&^negative[i%lanes]
	}
}
