// Command asm writes the assembly of package rsabatch, with AVX-512 IFMA. It is a module
// of its own, so that its dependency is none of modsign's:
//
//	go run . -out ../ifma_amd64.s -stubs ../ifma_amd64.go -pkg rsabatch
//
// A number is a vector of limbs of 52 bits. Limb i of eight numbers is one register, with
// a number in each lane. Ten limbs are a tile, and all lengths are multiples of it.
//
// Products are made column by column, ten columns at a time: accumulators of 64 bits
// gather the low and high halves of all products of these columns, and become limbs once,
// at the end. docs/rsabatch.md shows that they do not overflow.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

const (
	limbBytes = 64 // of one limb in eight lanes
	tileLimbs = 10
	tileBytes = tileLimbs * limbBytes
)

// Go's own code expects 0 in X15. It is not used here, so that no interrupt can find
// anything else in it.
var (
	acc    = []VecPhysical{Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, Z9} // the columns
	window = []VecPhysical{Z10, Z11, Z12, Z13, Z14, Z16, Z17, Z18, Z19, Z20, Z21}
	left   = Z22 // the limb that is multiplied by the window; the limb of q
	carry  = Z23 // into the next columns
	ones   = Z24 // 2^52-1
	negInv = Z25 // -1/m mod 2^52
	part   = Z26

	z, x, y, m, q = RDI, RSI, RDX, R8, R9 // what arguments point to
	length        = R10                   // of a number in bytes
	column        = R11                   // the first of the ten, in bytes
	pa, pb        = RAX, RBX              // the tiles to multiply
	remaining     = RCX                   // tiles, in bytes
	last          = R12                   // the last of these columns
)

func main() {
	ConstraintExpr("!purego")
	montgomery("montMul", "func(z, x, y, m, q, negInv *uint64, tiles int)", product)
	montgomery("montSqr", "func(z, x, m, q, negInv *uint64, tiles int)", square)
	choose()
	Generate()
}

// montgomery writes a function that reduces the columns that another one makes.
func montgomery(name, signature string, columns func()) {
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape")
	switch name {
	case "montMul":
		Doc(
			"montMul sets z to x*y/R mod m in each lane, where R is 2^(520*tiles), for x*y < R*m and limbs below 2^52.",
			"z is below 2*m. It may be x or y. negInv is -1/m mod 2^52. q is scratch as long as the others.")
		Load(Param("y"), y)
	case "montSqr":
		Doc("montSqr sets z to x*x/R mod m, as montMul does.")
	}
	Load(Param("z"), z)
	Load(Param("x"), x)
	Load(Param("m"), m)
	Load(Param("q"), q)
	Load(Param("negInv"), pa)
	VMOVDQU64(Mem{Base: pa}, negInv)
	Load(Param("tiles"), length)
	IMUL3Q(U32(tileBytes), length, length)
	VPTERNLOGQ(U8(0xff), ones, ones, ones)
	VPSRLQ(U8(12), ones, ones)
	VPXORQ(carry, carry, carry)
	XORQ(column, column)

	Label("columns")
	for _, a := range acc {
		VPXORQ(a, a, a)
	}
	columns()
	Comment("Add q*m, where q is what makes the lower half 0.")
	walk("reduce", q, m, nil)
	VPADDQ(carry, acc[0], acc[0])
	CMPQ(column, length)
	JGE(LabelRef("store"))
	quotient()
	JMP(LabelRef("next"))

	Label("store")
	Comment("The upper half is the result.")
	MOVQ(z, pa)
	ADDQ(column, pa)
	SUBQ(length, pa)
	for c, a := range acc {
		VPSRLQ(U8(52), a, carry)
		if c+1 < tileLimbs {
			VPADDQ(carry, acc[c+1], acc[c+1])
		}
		VPANDQ(ones, a, a)
		VMOVDQU64(a, Mem{Base: pa, Disp: c * limbBytes})
	}

	Label("next")
	ADDQ(U32(tileBytes), column)
	LEAQ(Mem{Base: length, Index: length, Scale: 1}, pb)
	CMPQ(column, pb)
	JLT(LabelRef("columns"))
	VZEROUPPER()
	RET()
}

// A shape says which products of two tiles belong to the ten columns. b is counted from
// the tile to which pb points: column c has the low halves of a[r]*b[c-r] and the high
// ones of a[r]*b[c-r-1]. From -10 to -1 it is in the tile before.
type shape func(r, b int) bool

func whole(r, b int) bool { return true }
func lower(r, b int) bool { return b >= 0 }
func upper(r, b int) bool { return b < 0 }

// multiply adds the products of a shape to the columns.
func multiply(in shape) {
	held := make(map[int]int)
	for r := range tileLimbs {
		var low, high []int
		for c := range tileLimbs {
			if in(r, c-r) {
				low = append(low, c)
			}
			if in(r, c-r-1) {
				high = append(high, c)
			}
		}
		if len(low)+len(high) == 0 {
			continue
		}
		limb := func(b int) VecPhysical {
			slot := (b + 2*len(window)) % len(window)
			if at, ok := held[slot]; !ok || at != b {
				VMOVDQU64(Mem{Base: pb, Disp: b * limbBytes}, window[slot])
				held[slot] = b
			}
			return window[slot]
		}
		VMOVDQU64(Mem{Base: pa, Disp: r * limbBytes}, left)
		for _, c := range low {
			VPMADD52LUQ(limb(c-r), left, acc[c])
		}
		for _, c := range high {
			VPMADD52HUQ(limb(c-r-1), left, acc[c])
		}
	}
}

// walk adds to the columns the products of all pairs of tiles of a and b that belong to
// them. In the lower half of the columns it leaves the pair of tile 0 of b to atZero,
// with pa and pb at that pair.
func walk(name string, a, b GPPhysical, atZero func()) {
	MOVQ(a, pa)
	MOVQ(b, pb)
	MOVQ(column, remaining)
	CMPQ(column, length)
	JGE(LabelRef(name + "Upper"))
	ADDQ(column, pb)
	TESTQ(remaining, remaining)
	JE(LabelRef(name + "Walked"))
	JMP(LabelRef(name + "Whole"))

	Label(name + "Upper")
	ADDQ(column, pa)
	SUBQ(length, pa)
	ADDQ(length, pb)
	multiply(upper)
	ADDQ(U32(tileBytes), pa)
	SUBQ(U32(tileBytes), pb)
	LEAQ(Mem{Base: length, Index: length, Scale: 1, Disp: -tileBytes}, remaining)
	SUBQ(column, remaining)
	JE(LabelRef(name + "Walked"))

	Label(name + "Whole")
	multiply(whole)
	ADDQ(U32(tileBytes), pa)
	SUBQ(U32(tileBytes), pb)
	SUBQ(U32(tileBytes), remaining)
	JNE(LabelRef(name + "Whole"))

	Label(name + "Walked")
	if atZero != nil {
		CMPQ(column, length)
		JGE(LabelRef(name + "Done"))
		atZero()
		Label(name + "Done")
	}
}

// product makes the columns of x*y.
func product() {
	walk("product", x, y, func() { multiply(lower) })
}

// square makes the columns of x*x: twice the products of different limbs, and the
// squares.
func square() {
	const odd = "squareOdd"
	half := remaining // the bytes before the tile that is squared, or the first of two that lie next to each other
	MOVQ(column, half)
	TESTQ(U32(tileBytes&-tileBytes), column) // in odd multiples alone
	JE(LabelRef("squareHalve"))
	SUBQ(U32(tileBytes), half)
	Label("squareHalve")
	SHRQ(U8(1), half)
	MOVQ(x, pa)
	MOVQ(x, pb)
	CMPQ(column, length)
	JGE(LabelRef("squareUpper"))
	ADDQ(column, pb)
	TESTQ(remaining, remaining)
	JE(LabelRef("squareWalked"))
	JMP(LabelRef("squareWhole"))

	Label("squareUpper")
	ADDQ(column, pa)
	SUBQ(length, pa)
	ADDQ(length, pb)
	LEAQ(Mem{Base: length, Index: length, Scale: 1, Disp: -tileBytes}, last)
	CMPQ(column, last)
	JE(LabelRef("squareLast"))
	multiply(upper)
	ADDQ(U32(tileBytes), pa)
	SUBQ(U32(tileBytes), pb)
	ADDQ(x, remaining)
	SUBQ(pa, remaining)
	JE(LabelRef("squareWalked"))

	Label("squareWhole")
	multiply(whole)
	ADDQ(U32(tileBytes), pa)
	SUBQ(U32(tileBytes), pb)
	SUBQ(U32(tileBytes), remaining)
	JNE(LabelRef("squareWhole"))

	Label("squareWalked")
	CMPQ(pa, pb)
	JNE(LabelRef(odd))
	Comment("An even column begins at the square of a tile.")
	multiply(func(r, b int) bool { return b > r })
	JMP(LabelRef("squareDouble"))
	Label(odd)
	Comment("An odd column has the rest of that square, and the products with the next tile.")
	multiply(func(r, b int) bool { return b > r-tileLimbs })
	JMP(LabelRef("squareDouble"))
	Label("squareLast")
	Comment("There is no next tile.")
	multiply(func(r, b int) bool { return b > r-tileLimbs && b < 0 })

	Label("squareDouble")
	for _, a := range acc {
		VPADDQ(a, a, a)
	}
	MOVQ(column, pa)
	SHRQ(U8(1), pa)
	ADDQ(x, pa)
	for r := range tileLimbs / 2 {
		VMOVDQU64(Mem{Base: pa, Disp: r * limbBytes}, left)
		VPMADD52LUQ(left, left, acc[2*r])
		VPMADD52HUQ(left, left, acc[2*r+1])
	}
}

// quotient makes ten limbs of q, each from a column, and adds their products with the
// first tile of m to the columns after it. It keeps these limbs.
func quotient() {
	Comment("q begins with limbs for these columns.")
	MOVQ(q, pa)
	ADDQ(column, pa)
	modulus := window[:tileLimbs]
	for i, limb := range modulus {
		VMOVDQU64(Mem{Base: m, Disp: i * limbBytes}, limb)
	}
	for r, a := range acc {
		VPXORQ(left, left, left)
		VPMADD52LUQ(negInv, a, left)
		VMOVDQU64(left, Mem{Base: pa, Disp: r * limbBytes})
		// The low half of q*m[0] makes the column a multiple of 2^52. What it carries is
		// known without the product.
		VPADDQ(ones, a, carry)
		VPSRLQ(U8(52), carry, carry)
		if r+1 == tileLimbs {
			break
		}
		// The next column first, and on a short way: the next limb waits for it.
		VPXORQ(part, part, part)
		VPADDQ(carry, acc[r+1], acc[r+1])
		VPMADD52HUQ(modulus[0], left, part)
		VPMADD52LUQ(modulus[1], left, acc[r+1])
		VPADDQ(part, acc[r+1], acc[r+1])
		for c := r + 2; c < tileLimbs; c++ {
			VPMADD52LUQ(modulus[c-r], left, acc[c])
		}
		for c := r + 2; c < tileLimbs; c++ {
			VPMADD52HUQ(modulus[c-r-1], left, acc[c])
		}
	}
}

// choose writes a function that copies an entry of a table.
func choose() {
	TEXT("choose", NOSPLIT, "func(z, table *uint64, index uint64, entries, tiles int)")
	Pragma("noescape")
	Doc("choose sets z to the entry of a table with an index. It reads all entries, whatever the index is.")
	var (
		entry, entries, tiles, rest = RSI, RDX, R8, RCX
		wanted, at, one, mask       = Z10, Z11, Z12, Z13
	)
	Load(Param("z"), z)
	Load(Param("table"), pb)
	Load(Param("index"), RAX)
	VPBROADCASTQ(RAX, wanted)
	Load(Param("entries"), entries)
	Load(Param("tiles"), tiles)
	IMUL3Q(U32(tileBytes), tiles, length)
	VPTERNLOGQ(U8(0xff), one, one, one)
	VPSRLQ(U8(63), one, one)

	Label("tile")
	MOVQ(pb, entry)
	MOVQ(entries, rest)
	VPXORQ(at, at, at)
	for _, a := range acc {
		VPXORQ(a, a, a)
	}

	Label("entry")
	VPCMPEQQ(wanted, at, K1)
	VPMOVM2Q(K1, mask)
	VPADDQ(one, at, at)
	for i, a := range acc {
		VPTERNLOGQ(U8(0xf8), Mem{Base: entry, Disp: i * limbBytes}, mask, a) // a |= mask & entry
	}
	ADDQ(length, entry)
	DECQ(rest)
	JNE(LabelRef("entry"))
	for i, a := range acc {
		VMOVDQU64(a, Mem{Base: z, Disp: i * limbBytes})
	}
	ADDQ(U32(tileBytes), z)
	ADDQ(U32(tileBytes), pb)
	DECQ(tiles)
	JNE(LabelRef("tile"))
	VZEROUPPER()
	RET()
}
