//go:build !race

package rsabatch

const raceDetector = false
