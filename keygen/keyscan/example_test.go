package keyscan_test

import (
	"context"
	"fmt"
	"log"

	"github.com/modsign/modsign/keygen/keyscan"
)

func Example() {
	scanner, err := keyscan.New(keyscan.Options{Exclude: []string{"*.jks"}})
	if err != nil {
		log.Fatal(err)
	}
	if err := scanner.Tree(context.Background(), "testdata/putty2.ppk"); err != nil {
		log.Fatal(err)
	}
	report := scanner.Report()
	for _, f := range report.Findings {
		fmt.Printf("%s: %s, %s\n", f.Name(), f.Algorithm, f.Form)
	}
	fmt.Println(report.Err())
	// Output:
	// testdata/putty2.ppk: RSA 2048, PuTTY
	// private keys found
}
