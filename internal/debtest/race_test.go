//go:build race

package debtest

const raceDetector = true
