package hashlist_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/modsign/modsign/hashlist"
)

// Hash the modules of a kernel, and compare them with the list later.
func Example() {
	ctx, dir := context.Background(), "../testdata/modules/amd64-6.12/plain"
	names, err := hashlist.FindNames(dir) // or, with package kbuild, from modules.order
	if err != nil {
		log.Fatal(err)
	}
	source := hashlist.Source{Dir: dir, Names: names, Release: "6.12.0"}
	built, err := hashlist.Build(ctx, source, hashlist.BuildOptions{Format: hashlist.FormatMerkle})
	if err != nil {
		log.Fatal(err)
	}
	if err := built.List.Write(os.Stdout); err != nil {
		log.Fatal(err)
	}
	fmt.Println("the kernel gets", built.Embedded())

	summary, err := hashlist.NewReference(built.List).Verify(ctx, dir, hashlist.VerifyOptions{})
	fmt.Println(summary, err)
	// Output:
	// modsign hash list 1 6.12.0
	// a30c2a53da76e6260e3b500bf462aa1d0b7eb32e4a1e06edb450ccf05159db8f   16024 counter.ko
	// e2c1911659b753050eab967eef9b5d770c2b3364afbec9cd5efe7449fa0bd97f   17456 hello.ko
	// 591fa9c1940360d6c3d487ecafe7cf53d47ad9b3e89ab72b2f99876308d894a7   19504 ring.ko
	// 3
	// the kernel gets the root afe3485b458a9bfb... of a tree of height 2
	// all trusted <nil>
}
