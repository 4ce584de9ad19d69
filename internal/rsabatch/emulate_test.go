package rsabatch

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// program is the assembly of this package, read from its source. It runs on processors
// that lack the instructions, with the same results, and far slower. Unlike a processor it
// refuses what lies outside of its arguments, and tells which way it took.
type program struct {
	lines  []instruction
	labels map[string]int // by function and name
}

type instruction struct {
	name string
	args []operand
	line int
}

type operand struct {
	kind   byte // i: immediate, r: general register, z: vector, k: mask, m: memory, a: argument, l: label
	value  int64
	label  string
	index  int // of the general register, or -1
	number int // of the register
}

// general are the registers that the assembly uses.
var general = []string{"AX", "BX", "CX", "DX", "SI", "DI", "R8", "R9", "R10", "R11", "R12"}

// machine runs one function.
type machine struct {
	program *program
	regs    [16]uint64
	z       [32][8]uint64
	k       [8]uint8
	less    bool
	equal   bool
	args    []uint64
	memory  [][]uint64 // the argument i lies at (i+1)<<32
	trace   func(instruction, uint64)
}

var assembly = sync.OnceValues(func() (*program, error) {
	text, err := os.ReadFile("ifma_amd64.s")
	if err != nil {
		return nil, err
	}
	return parseAssembly(string(text))
})

func parseAssembly(text string) (*program, error) {
	p := &program{labels: make(map[string]int)}
	function := ""
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "//")
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || strings.HasPrefix(line, "#"):
			continue
		case fields[0] == "TEXT":
			function = strings.TrimSuffix(strings.TrimPrefix(fields[1], "·"), "(SB),")
			p.labels[function] = len(p.lines)
			continue
		case strings.HasSuffix(fields[0], ":"):
			p.labels[function+"."+strings.TrimSuffix(fields[0], ":")] = len(p.lines)
			continue
		}
		in := instruction{name: fields[0], line: i + 1}
		if len(fields) > 1 {
			for arg := range strings.SplitSeq(strings.Join(fields[1:], ""), ",") {
				op, err := parseOperand(function, arg)
				if err != nil {
					return nil, fmt.Errorf("line %d: %w", i+1, err)
				}
				in.args = append(in.args, op)
			}
		}
		p.lines = append(p.lines, in)
	}
	return p, nil
}

func parseOperand(function, s string) (op operand, err error) {
	switch {
	case strings.HasPrefix(s, "$"):
		op.kind = 'i'
		op.value, err = strconv.ParseInt(s[1:], 0, 64)
	case strings.HasSuffix(s, "(FP)"):
		op.kind = 'a'
		_, offset, _ := strings.Cut(strings.TrimSuffix(s, "(FP)"), "+")
		op.value, err = strconv.ParseInt(offset, 10, 64)
	case strings.HasSuffix(s, ")"):
		op.kind = 'm'
		offset, rest, _ := strings.Cut(s, "(")
		if offset != "" {
			if op.value, err = strconv.ParseInt(offset, 10, 64); err != nil {
				return op, err
			}
		}
		base, rest, _ := strings.Cut(rest, ")")
		op.number = slices.Index(general, base)
		if op.index = -1; rest != "" {
			index, scale, _ := strings.Cut(strings.Trim(rest, "()"), "*")
			if op.index = slices.Index(general, index); scale != "1" || op.index < 0 {
				err = fmt.Errorf("index of %s", s)
			}
		}
	case s[0] == 'Z' || s[0] == 'K':
		op.kind = s[0] | 0x20
		op.number, err = strconv.Atoi(s[1:])
	case strings.ToUpper(s) == s:
		op.kind, op.number = 'r', slices.Index(general, s)
	default:
		op.kind, op.label = 'l', function+"."+s
	}
	if op.number < 0 {
		err = fmt.Errorf("register of %s", s)
	}
	return op, err
}

// call runs a function. A []uint64 is a pointer to its elements.
func (p *program) call(function string, trace func(instruction, uint64), args ...any) {
	m := &machine{program: p, trace: trace}
	for _, arg := range args {
		switch arg := arg.(type) {
		case []uint64:
			m.memory = append(m.memory, arg)
			m.args = append(m.args, uint64(len(m.memory))<<32)
		case uint64:
			m.args = append(m.args, arg)
		case int:
			m.args = append(m.args, uint64(arg))
		default:
			panic(fmt.Sprintf("argument %T", arg))
		}
	}
	for pc := p.labels[function]; pc >= 0; {
		pc = m.step(pc)
	}
}

func (m *machine) address(op operand) uint64 {
	a := m.regs[op.number] + uint64(op.value)
	if op.index >= 0 {
		a += m.regs[op.index]
	}
	return a
}

// words are the eight at an address.
func (m *machine) words(op operand) []uint64 {
	a := m.address(op)
	area, offset := a>>32, a&(1<<32-1)
	if area == 0 || area > uint64(len(m.memory)) || offset%64 != 0 || offset/8+8 > uint64(len(m.memory[area-1])) {
		panic(fmt.Sprintf("address %#x is in no argument", a))
	}
	return m.memory[area-1][offset/8:][:8]
}

func (m *machine) scalar(op operand) uint64 {
	switch op.kind {
	case 'i':
		return uint64(op.value)
	case 'r':
		return m.regs[op.number]
	case 'a':
		return m.args[op.value/8]
	}
	panic("no scalar")
}

func (m *machine) vector(op operand) []uint64 {
	if op.kind == 'm' {
		return m.words(op)
	}
	return m.z[op.number][:]
}

const mask52 = 1<<52 - 1

// step executes the instruction at pc and returns where the next one is.
func (m *machine) step(pc int) int {
	in := &m.program.lines[pc]
	if m.trace != nil {
		at := uint64(0)
		for _, arg := range in.args {
			if arg.kind == 'm' {
				at = m.address(arg)
			}
		}
		m.trace(*in, at)
	}
	a := in.args
	lanes := func(f func(old, y, x uint64) uint64) int { // of NAME x, y, z
		x, y, z := m.vector(a[0]), m.vector(a[1]), &m.z[a[2].number]
		for i := range z {
			z[i] = f(z[i], y[i], x[i])
		}
		return pc + 1
	}
	set := func(op operand, value uint64) int {
		m.regs[op.number] = value
		return pc + 1
	}
	jump := func(taken bool) int {
		if !taken {
			return pc + 1
		}
		to, ok := m.program.labels[a[0].label]
		if !ok {
			panic("no label " + a[0].label)
		}
		return to
	}
	shift := func() uint64 { return uint64(a[0].value) }
	switch in.name {
	case "VPMADD52LUQ":
		x, y, z := (*[8]uint64)(m.vector(a[0])), (*[8]uint64)(m.vector(a[1])), &m.z[a[2].number]
		for i := range z {
			z[i] += (x[i] & mask52) * (y[i] & mask52) & mask52
		}
		return pc + 1
	case "VPMADD52HUQ":
		x, y, z := (*[8]uint64)(m.vector(a[0])), (*[8]uint64)(m.vector(a[1])), &m.z[a[2].number]
		for i := range z {
			high, low := bits.Mul64(x[i]&mask52, y[i]&mask52)
			z[i] += high<<12 | low>>52
		}
		return pc + 1
	case "VPADDQ":
		return lanes(func(_, y, x uint64) uint64 { return y + x })
	case "VPANDQ":
		return lanes(func(_, y, x uint64) uint64 { return y & x })
	case "VPXORQ":
		return lanes(func(_, y, x uint64) uint64 { return y ^ x })
	case "VPSRLQ":
		return lanesOf(m, a, pc, func(y uint64) uint64 { return y >> shift() })
	case "VPTERNLOGQ":
		x, y, z := m.vector(a[1]), m.vector(a[2]), &m.z[a[3].number]
		for i := range z {
			result := uint64(0)
			for row := range 8 { // of the truth table
				if a[0].value>>row&1 == 1 {
					result |= (z[i] ^ -uint64(^row>>2&1)) & (y[i] ^ -uint64(^row>>1&1)) & (x[i] ^ -uint64(^row&1))
				}
			}
			z[i] = result
		}
		return pc + 1
	case "VMOVDQU64":
		copy(m.vector(a[1]), m.vector(a[0]))
		return pc + 1
	case "VPBROADCASTQ":
		for i := range 8 {
			m.z[a[1].number][i] = m.scalar(a[0])
		}
		return pc + 1
	case "VPCMPEQQ":
		x, y := m.vector(a[0]), m.vector(a[1])
		m.k[a[2].number] = 0
		for i := range x {
			if x[i] == y[i] {
				m.k[a[2].number] |= 1 << i
			}
		}
		return pc + 1
	case "VPMOVM2Q":
		for i := range 8 {
			m.z[a[1].number][i] = -uint64(m.k[a[0].number] >> i & 1)
		}
		return pc + 1
	case "VZEROUPPER":
		return pc + 1
	case "MOVQ":
		return set(a[1], m.scalar(a[0]))
	case "LEAQ":
		return set(a[1], m.address(a[0]))
	case "ADDQ":
		return set(a[1], m.scalar(a[1])+m.scalar(a[0]))
	case "XORQ":
		return set(a[1], m.scalar(a[1])^m.scalar(a[0]))
	case "SUBQ":
		m.equal = m.scalar(a[1]) == m.scalar(a[0])
		return set(a[1], m.scalar(a[1])-m.scalar(a[0]))
	case "DECQ":
		m.equal = m.scalar(a[0]) == 1
		return set(a[0], m.scalar(a[0])-1)
	case "SHRQ":
		return set(a[1], m.scalar(a[1])>>m.scalar(a[0]))
	case "IMUL3Q":
		return set(a[2], m.scalar(a[1])*m.scalar(a[0]))
	case "CMPQ":
		m.equal = m.scalar(a[0]) == m.scalar(a[1])
		m.less = int64(m.scalar(a[0])) < int64(m.scalar(a[1]))
		return pc + 1
	case "TESTQ":
		m.equal = m.scalar(a[0])&m.scalar(a[1]) == 0
		return pc + 1
	case "JMP":
		return jump(true)
	case "JE":
		return jump(m.equal)
	case "JNE":
		return jump(!m.equal)
	case "JGE":
		return jump(!m.less)
	case "JLT":
		return jump(m.less)
	case "RET":
		return -1
	}
	panic(fmt.Sprintf("line %d: %s is unknown here", in.line, in.name))
}

// lanesOf is for instructions with an immediate and one source.
func lanesOf(m *machine, a []operand, pc int, f func(y uint64) uint64) int {
	y, z := m.vector(a[1]), &m.z[a[2].number]
	for i := range z {
		z[i] = f(y[i])
	}
	return pc + 1
}

// emulated is the arithmetic as program runs it. way sums up the instructions and the
// addresses of all calls, in order.
type emulated struct {
	program *program
	way     func(instruction, uint64)
}

func emulator(t testing.TB) *emulated {
	p, err := assembly()
	if err != nil {
		t.Fatal(err)
	}
	return &emulated{program: p}
}

func (e *emulated) mul(z, x, y []uint64, m *modulus, q []uint64) {
	e.program.call("montMul", e.way, z, x, y, m.vector, q, m.negInv, m.tiles())
}

func (e *emulated) sqr(z, x []uint64, m *modulus, q []uint64) {
	e.program.call("montSqr", e.way, z, x, m.vector, q, m.negInv, m.tiles())
}

func (e *emulated) choose(z, table []uint64, index uint64) {
	e.program.call("choose", e.way, z, table, index, len(table)/len(z), len(z)/tileWords)
}

// waySum returns a function that notes a way, and one that returns its sum.
func waySum() (note func(instruction, uint64), sum func() uint64) {
	h := fnv.New64a()
	return func(in instruction, at uint64) {
		h.Write(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(in.line)), at))
	}, h.Sum64
}
