package rsabatch

import (
	"flag"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var dudect = flag.Duration("dudect", 0, "measure for so long whether the time of an exponentiation depends on secrets")

// BenchmarkTiming measures exponentiations with fixed and with random secrets, in random order,
// and compares the times with Welch's test: the method of dudect (Reparaz, Balasch and
// Verbauwhede, 2017). It runs when asked for, on a quiet machine:
//
//	go test ./internal/rsabatch -run "^$" -bench Timing -dudect 5m
func BenchmarkTiming(b *testing.B) {
	if *dudect == 0 {
		b.Skip("measures with -dudect DURATION")
	}
	e, ok := processor(b)
	if !ok {
		return
	}
	k := newPrivate(testKey(b, 2048), e)
	w := newWorkspace(k.p.limbs())
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	random := func(v []uint64) {
		for i := range v {
			v[i] = r.Uint64() & limbMask
		}
	}
	for _, secret := range []string{"exponent", "message"} {
		var times [2][]float64
		f := *k.p
		f.exponent = slices.Clone(f.exponent)
		random(w.low)
		clear(w.high)
		fixed := slices.Clone(w.low)
		z := newVector(k.p.limbs())
		for end := time.Now().Add(*dudect / 2); time.Now().Before(end); {
			class := r.IntN(2)
			copy(w.low, fixed)
			for i := range f.exponent {
				digit := uint8(r.IntN(tableSize))
				if class == 0 || secret != "exponent" {
					digit = 0
				}
				f.exponent[i] = digit
			}
			random(z)
			if secret == "message" {
				if class == 0 {
					clear(z)
				}
				copy(w.low, z)
			}
			start := time.Now()
			k.exponentiate(z, &f, w)
			times[class] = append(times[class], float64(time.Since(start)))
		}
		worst := worstWelch(times)
		b.Logf("%s: %d measurements, |t| = %.2f", secret, len(times[0])+len(times[1]), worst)
		if worst > 10 { // dudect takes that for certain, and 4.5 for a suspicion
			b.Errorf("the time of an exponentiation depends on the %s", secret)
		}
	}
}

// worstWelch returns the largest |t| of all measurements, and of those below several
// quantiles, where interrupts do not hide a small difference.
func worstWelch(times [2][]float64) float64 {
	all := slices.Sorted(slices.Values(slices.Concat(times[0], times[1])))
	worst := 0.0
	for _, quantile := range []float64{0.25, 0.5, 0.75, 0.9, 1} {
		limit := all[int(quantile*float64(len(all)-1))]
		var cut [2][]float64
		for class := range times {
			for _, x := range times[class] {
				if x <= limit {
					cut[class] = append(cut[class], x)
				}
			}
		}
		worst = max(worst, math.Abs(welch(cut[0], cut[1])))
	}
	return worst
}

// welch returns Student's t for two samples of unequal variance, and 0 for what is too small.
func welch(a, b []float64) float64 {
	if len(a) < 2 || len(b) < 2 {
		return 0
	}
	meanA, errorA := meanAndError(a)
	meanB, errorB := meanAndError(b)
	if errorA+errorB == 0 {
		return 0
	}
	return (meanA - meanB) / math.Sqrt(errorA+errorB)
}

// meanAndError returns the mean of a sample and the square of its standard error.
func meanAndError(sample []float64) (mean, squared float64) {
	n := float64(len(sample))
	for _, x := range sample {
		mean += x / n
	}
	for _, x := range sample {
		squared += (x - mean) * (x - mean) / (n - 1) / n
	}
	return mean, squared
}

// TestWelch checks the statistics of BenchmarkTiming with numbers that are made up.
func TestWelch(t *testing.T) {
	// The means are 3 and 5, the variances 2.5 and 10.
	if got := welch([]float64{1, 2, 3, 4, 5}, []float64{1, 3, 5, 7, 9}); math.Abs(got+2/math.Sqrt(2.5)) > 1e-9 {
		t.Errorf("t = %v", got)
	}
	r := rand.New(rand.NewPCG(5, 5))
	var same, other [2][]float64
	for i := range 20_000 {
		same[i%2] = append(same[i%2], 1000+100*r.NormFloat64())
		other[i%2] = append(other[i%2], 1000+10*float64(i%2)+100*r.NormFloat64())
	}
	if got := worstWelch(same); got > 4.5 {
		t.Errorf("no difference, and |t| = %v", got)
	}
	if got := worstWelch(other); got < 4.5 {
		t.Errorf("a difference, and |t| = %v", got)
	}
}
