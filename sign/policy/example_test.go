package policy_test

import (
	"crypto"
	"fmt"
	"strings"
	"time"

	"github.com/modsign/modsign/sign/policy"
)

// A signing service judges what it is asked to sign.
func Example() {
	const text = `# network drivers of one kernel
policy 1
path kernel/drivers/net/**
vermagic 6.12.0 *
license GPL
max-modules 500
expires 2027-06-30
`
	p, err := policy.Parse("net.policy", strings.NewReader(text))
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Date(2027, 6, 29, 0, 0, 0, 0, time.UTC)
	if err := p.CheckRun(now, crypto.SHA512, 2); err != nil {
		fmt.Println(err)
	}
	for _, m := range []policy.Module{
		{Path: "kernel/drivers/net/dummy.ko", Tags: []string{"license=GPL", "vermagic=6.12.0 SMP "}},
		{Path: "kernel/drivers/net/other.ko", Tags: []string{"license=MIT", "vermagic=6.12.0 SMP "}},
	} {
		if err := p.Check(&m); err != nil {
			fmt.Printf("%s: %v\n", m.Path, err)
		}
	}
	// Output:
	// kernel/drivers/net/other.ko: refused by net.policy:5: license: the license "MIT" is not "GPL"
}
