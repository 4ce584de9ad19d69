//go:build !amd64 || purego

package rsabatch

// hardware returns an error: this build has no assembly.
func hardware() (engine, error) { return nil, ErrBuild }
