//go:build race

package rsabatch

const raceDetector = true
