package cms

import (
	"crypto"
	"slices"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/mldsamu"
)

// mldsaSet is a parameter set of ML-DSA.
type mldsaSet struct {
	oid        string // of keys and signatures, content octets
	name       string // the kernel's
	mu         crypto.Hash
	parameters mldsa.Parameters
}

var mldsaSets = []mldsaSet{
	{oidMLDSA44, "mldsa44", mldsamu.Mu44, mldsa.MLDSA44()},
	{oidMLDSA65, "mldsa65", mldsamu.Mu65, mldsa.MLDSA65()},
	{oidMLDSA87, "mldsa87", mldsamu.Mu87, mldsa.MLDSA87()},
}

// findMLDSA returns nil if no parameter set is the one.
func findMLDSA(is func(mldsaSet) bool) *mldsaSet {
	i := slices.IndexFunc(mldsaSets, is)
	if i < 0 {
		return nil
	}
	return &mldsaSets[i]
}

func mldsaByOID(oid string) *mldsaSet {
	return findMLDSA(func(s mldsaSet) bool { return s.oid == oid })
}

func mldsaByName(name string) *mldsaSet {
	return findMLDSA(func(s mldsaSet) bool { return s.name == name })
}

func mldsaOf(key *mldsa.PublicKey) *mldsaSet {
	return findMLDSA(func(s mldsaSet) bool { return s.parameters == key.Parameters() })
}

// MuOf returns the only digest that an ML-DSA key signs, or 0 for other keys.
func MuOf(public crypto.PublicKey) crypto.Hash {
	if key, ok := public.(*mldsa.PublicKey); ok {
		return mldsaOf(key).mu
	}
	return 0
}

// muName is the name of mu in manifests and records, where other digests have those of
// CONFIG_MODULE_SIG_HASH.
func (s *mldsaSet) muName() string { return s.name + "-mu" }
