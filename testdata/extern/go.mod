module example.org/extern

go 1.26.0

require github.com/modsign/modsign v0.0.0

replace github.com/modsign/modsign => ../..
