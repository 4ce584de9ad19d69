package rsabatch

import (
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// engines are the emulator and, where there is one, the processor.
func engines(t testing.TB) map[string]engine {
	all := map[string]engine{"emulator": emulator(t)}
	if e, err := hardware(); err == nil {
		all["processor"] = e
	} else {
		t.Logf("the assembly is emulated: %v", err)
	}
	return all
}

// fastest is the processor, or the emulator if that is all there is.
func fastest(t testing.TB) (e engine, isProcessor bool) {
	if e, err := hardware(); err == nil {
		return e, true
	}
	t.Log("the assembly is emulated")
	return emulator(t), false
}

// mixed returns a modulus that is another one in each lane, without what only an
// exponentiation needs.
func mixed(numbers []*big.Int, limbs int) *modulus {
	m := &modulus{vector: newVector(limbs), negInv: newVector(1)}
	word := power2(limbBits)
	for j, number := range numbers {
		toLane(m.vector, j, number)
		inverse := new(big.Int).ModInverse(number, word)
		toLane(m.negInv, j, inverse.Sub(word, inverse))
	}
	return m
}

func toLane(v []uint64, j int, number *big.Int) { setLane(v, j, limbsOf(number.Bytes(), len(v)/lanes)) }

// fromLane reads a number, and checks that its limbs have 52 bits.
func fromLane(t testing.TB, v []uint64, j int) *big.Int {
	limbs := lane(v, j)
	for _, limb := range limbs {
		if limb > limbMask {
			t.Fatalf("limb %#x", limb)
		}
	}
	return new(big.Int).SetBytes(bytesOf(limbs, len(limbs)*limbBits/8))
}

func power2(n int) *big.Int { return new(big.Int).Lsh(big.NewInt(1), uint(n)) }

func below(r *rand.Rand, limit *big.Int) *big.Int {
	words := make([]byte, (limit.BitLen()+71)/8)
	for i := range words {
		words[i] = byte(r.Uint32())
	}
	return new(big.Int).Mod(new(big.Int).SetBytes(words), limit)
}

// extremes are 64 odd numbers of a length: each of eight lowest limbs with each of eight
// highest ones, and zeros, ones or anything between them.
func extremes(r *rand.Rand, tiles int) []*big.Int {
	bits := tiles*tileBits - 16
	inner := []*big.Int{new(big.Int), new(big.Int).Sub(power2(bits-2*limbBits), big.NewInt(1))}
	var all []*big.Int
	for _, low := range []int64{1, 3, limbMask, limbMask - 2, 1<<51 | 1, 1<<51 - 1, 1<<32 | 1, 0x5555555555555} {
		for _, high := range []int64{
			1 << 35, 1<<36 - 1, 1<<35 | 1, 1<<36 - 2, 0xaaaaaaaaa, 0xfffff0000, 0x800000fff, 1<<35 | 1<<20,
		} {
			middle := below(r, power2(bits-limbBits-52))
			if n := len(all) % 3; n < 2 {
				middle = inner[n]
			}
			number := new(big.Int).Lsh(big.NewInt(high), uint(bits-36))
			number.Add(number, new(big.Int).Lsh(new(big.Int).Mod(middle, power2(bits-36-limbBits)), limbBits))
			all = append(all, number.Add(number, big.NewInt(low)))
		}
	}
	return all
}

// TestProducts compares products and squares with package math/big, bit for bit.
func TestProducts(t *testing.T) {
	if raceDetector {
		t.Skip("arithmetic of one goroutine: the race detector sees nothing in it")
	}
	for name, e := range engines(t) {
		rounds := testmod.Rounds(20, 1)
		if name == "processor" {
			rounds = testmod.Rounds(1000, 20)
		}
		for _, tiles := range testmod.Few([]int{2, 3, 4, 6, 8, 1, 5}, 3) {
			r := rand.New(rand.NewPCG(1, uint64(tiles)))
			limbs := tiles * tileLimbs
			x, y, z, q := newVector(limbs), newVector(limbs), newVector(limbs), newVector(limbs)
			for moduli := range slices.Chunk(extremes(r, tiles), lanes) {
				m := mixed(moduli, limbs)
				check := func(what string, factor [lanes][2]*big.Int) {
					t.Helper()
					for j, xy := range factor {
						want := montgomery(xy[0], xy[1], moduli[j], tiles*tileBits)
						if got := fromLane(t, z, j); got.Cmp(want) != 0 {
							t.Fatalf("%s, %s of %x and %x mod %x: got %x, want %x", name, what, xy[0], xy[1], moduli[j], got, want)
						}
					}
				}
				for round := range rounds + 3 {
					var xy, xx, zy [lanes][2]*big.Int
					for j, m := range moduli {
						twice := new(big.Int).Lsh(m, 1)
						edges := []*big.Int{new(big.Int), big.NewInt(1), new(big.Int).Sub(m, big.NewInt(1)), m,
							new(big.Int).Sub(twice, big.NewInt(1)), new(big.Int).Sub(power2(m.BitLen()-1), big.NewInt(1))}
						a, b := below(r, twice), below(r, twice)
						switch round {
						case 0:
							a, b = edges[r.IntN(len(edges))], edges[r.IntN(len(edges))]
						case 1:
							a = edges[r.IntN(len(edges))]
						}
						toLane(x, j, a)
						toLane(y, j, b)
						xy[j], xx[j] = [2]*big.Int{a, b}, [2]*big.Int{a, a}
						if round == 2 { // all limbs are ones: R-1 times what is below m
							a = new(big.Int).Sub(power2(tiles*tileBits), big.NewInt(1))
							b.Mod(b, m)
							toLane(x, j, a)
							toLane(y, j, b)
							xy[j] = [2]*big.Int{a, b}
						}
					}
					e.mul(z, x, y, m, q)
					check("product", xy)
					copy(z, x)
					e.mul(z, z, y, m, q)
					check("product in place", xy)
					copy(z, y)
					e.mul(z, x, z, m, q)
					check("product in place", xy)
					if round == 2 {
						continue // that square is too large
					}
					e.sqr(z, x, m, q)
					check("square", xx)
					copy(z, x)
					e.sqr(z, z, m, q)
					check("square in place", xx)
					for j := range zy {
						zy[j] = [2]*big.Int{fromLane(t, z, j), fromLane(t, y, j)}
					}
					e.mul(z, z, y, m, q)
					check("product of a result", zy)
				}
			}
		}
	}
}

func FuzzProducts(f *testing.F) {
	ones := strings.Repeat("\xff", 200)
	f.Add(uint8(2), []byte("\x01"), []byte("\x02"), []byte("\x03"))
	f.Add(uint8(3), []byte(ones), []byte(ones), []byte(ones))
	f.Add(uint8(4), []byte(ones), []byte(ones), []byte("\x01"))
	f.Add(uint8(8), []byte("\x80"+ones), []byte(ones), []byte("\x80"+ones+"\x01"))
	e, _ := fastest(f)
	f.Fuzz(func(t *testing.T, tiles uint8, a, b, c []byte) {
		if tiles == 0 || tiles > 8 {
			return
		}
		limbs := int(tiles) * tileLimbs
		fit := func(number []byte) *big.Int { // 16 bits remain free
			return new(big.Int).SetBytes(number[:min(len(number), (int(tiles)*tileBits-16)/8)])
		}
		number := fit(c)
		number.SetBit(number, 0, 1)
		twice := new(big.Int).Lsh(number, 1)
		m := mixed(slices.Repeat([]*big.Int{number}, lanes), limbs)
		x, y, z, q := newVector(limbs), newVector(limbs), newVector(limbs), newVector(limbs)
		var factors [lanes][2]*big.Int
		for j := range lanes {
			factors[j] = [2]*big.Int{fit(a), fit(b)}
			factors[j][0].Add(factors[j][0], big.NewInt(int64(j))).Mod(factors[j][0], twice)
			factors[j][1].Mod(factors[j][1], twice)
			toLane(x, j, factors[j][0])
			toLane(y, j, factors[j][1])
		}
		check := func(what string, second int) {
			for j, xy := range factors {
				got := fromLane(t, z, j)
				difference := new(big.Int).Mul(got, power2(int(tiles)*tileBits))
				difference.Sub(difference, new(big.Int).Mul(xy[0], xy[second]))
				if got.Cmp(twice) >= 0 || difference.Mod(difference, number).Sign() != 0 {
					t.Errorf("%s in lane %d is %x", what, j, got)
				}
			}
		}
		e.mul(z, x, y, m, q)
		check("product", 1)
		e.sqr(z, x, m, q)
		check("square", 0)
	})
}

func TestSelfTest(t *testing.T) {
	for name, e := range engines(t) {
		if err := selfTest(e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSelfTestFails checks that the self-test finds every function that is wrong.
func TestSelfTestFails(t *testing.T) {
	e, _ := fastest(t)
	for _, what := range []string{"mul", "sqr", "choose"} {
		if err := selfTest(&spoiled{engine: e, what: what}); err == nil {
			t.Errorf("%s is wrong, and the self-test has not noticed", what)
		}
	}
}

// spoiled flips a bit of one lane of the result of a function, at its call number at.
type spoiled struct {
	engine
	what     string
	at, lane int
	calls    int
}

func (s *spoiled) spoil(what string, z []uint64) {
	if what != s.what {
		return
	}
	if s.calls == s.at {
		z[s.lane] ^= 1
	}
	s.calls++
}

func (s *spoiled) mul(z, x, y []uint64, m *modulus, q []uint64) {
	s.engine.mul(z, x, y, m, q)
	s.spoil("mul", z)
}

func (s *spoiled) sqr(z, x []uint64, m *modulus, q []uint64) {
	s.engine.sqr(z, x, m, q)
	s.spoil("sqr", z)
}

func (s *spoiled) choose(z, table []uint64, index uint64) {
	s.engine.choose(z, table, index)
	s.spoil("choose", z)
}

// TestWay checks that the numbers have no influence on which instructions of the assembly
// are executed and on which addresses it uses.
func TestWay(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for _, tiles := range []int{2, 3, 4} {
		limbs := tiles * tileLimbs
		ways := make(map[uint64]bool)
		table := newVector(tableSize * limbs)
		moduli := extremes(r, tiles)
		for i, number := range moduli[:4] {
			m := newModulus(number.Bytes(), limbs)
			e := emulator(t)
			note, sum := waySum()
			e.way = note
			x, y, z, q := newVector(limbs), newVector(limbs), newVector(limbs), newVector(limbs)
			if i > 0 {
				for j := range lanes {
					toLane(x, j, below(r, number))
					toLane(y, j, below(r, number))
				}
			}
			e.mul(z, x, y, m, q)
			e.sqr(z, x, m, q)
			e.choose(z, table, r.Uint64N(tableSize))
			ways[sum()] = true
		}
		if len(ways) != 1 {
			t.Errorf("%d tiles: %d ways", tiles, len(ways))
		}
	}
}

// TestWayNoticesAddresses checks that TestWay would find an address that depends on a number.
func TestWayNoticesAddresses(t *testing.T) {
	text := "TEXT ·f(SB), NOSPLIT, $0-16\n" +
		"\tMOVQ x+0(FP), AX\n\tMOVQ i+8(FP), BX\n\tADDQ BX, AX\n\tVMOVDQU64 (AX), Z0\n\tRET\n"
	p, err := parseAssembly(text)
	if err != nil {
		t.Fatal(err)
	}
	var sums []uint64
	for _, i := range []uint64{0, 64} {
		note, sum := waySum()
		p.call("f", note, make([]uint64, 16), i)
		sums = append(sums, sum())
	}
	if sums[0] == sums[1] {
		t.Error("another address, the same way")
	}
}

// TestGenerated checks that the assembly is what the generator writes.
func TestGenerated(t *testing.T) {
	testmod.Slow(t, "builds the generator")
	dir := t.TempDir()
	testmod.Run(t, "go", "run", "-C", "asm", ".", "-pkg", "rsabatch", "-out", filepath.Join(dir, "ifma_amd64.s"),
		"-stubs", filepath.Join(dir, "ifma_amd64.go"))
	for _, name := range []string{"ifma_amd64.s", "ifma_amd64.go"} {
		var texts [2]string
		for i, path := range []string{name, filepath.Join(dir, name)} {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, texts[i], _ = strings.Cut(string(text), "\n") // the first line has the path
		}
		if texts[0] != texts[1] {
			t.Errorf("%s is not what the generator writes: go generate ./internal/rsabatch", name)
		}
	}
}
