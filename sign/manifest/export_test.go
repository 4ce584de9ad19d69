package manifest

// For the tests of this package that sign.
var (
	Text    = text
	WithSum = withSum
)
