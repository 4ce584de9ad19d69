package agent_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"time"

	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
)

// A build starts an agent before it links the kernel, with the certificate that the
// agent writes to build/.modsign. The install signs with the agent's key.
func Example() {
	client, err := agent.Dial("build/.modsign")
	if gone, ok := errors.AsType[*agent.UnavailableError](err); ok {
		fmt.Println("no key:", gone.Reason)
		client, err = agent.Start(context.Background(), exec.Command("my-agent"), "build/.modsign")
	}
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	pair := client.Pair() // pair.Signer asks the agent for each signature
	digest := sha256.Sum256([]byte("the payload of a module"))
	signature, err := pair.Signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes by %s\n", len(signature), pair.Certificate.Subject)

	if err := client.Forget(); err != nil { // leaves a receipt in build/.modsign
		log.Fatal(err)
	}
}

// The program of an agent, which Start starts.
func ExampleServe() {
	_ = agent.Hide(os.Args, os.Environ()) // where the system does not have it, Status says so
	if err := agent.CloseInherited(); err != nil {
		log.Fatal(err)
	}
	err := agent.Serve(context.Background(), agent.Options{
		Algorithm:  keygen.RSA4096,
		Template:   keygen.DefaultTemplate(),
		Dir:        "/src/build/.modsign",
		Tree:       "/src/build",
		Installs:   1,
		Lifetime:   24 * time.Hour,
		RuntimeDir: os.Getenv("XDG_RUNTIME_DIR"),
	}, func() error { return agent.Detach(os.Stdout) })
	if err != nil {
		log.Fatal(err)
	}
}

// A receipt names its set of digests by the SHA-256 of their sorted list.
func ExampleDigests() {
	digests := make(agent.Digests)
	for _, payload := range []string{"one module", "another"} {
		digest := sha256.Sum256([]byte(payload))
		digests.Add(crypto.SHA256, digest[:])
	}
	fmt.Println(digests.SHA256())
	// Output:
	// eb8e3b93b93082e7b41075f3293364c37b6253e41f7d0a5ecbf362a578f53392
}
