package kbuild_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/modsign/modsign/kbuild"
)

// An object tree says how its modules are signed and where they go.
func Example() {
	objtree, err := smallTree()
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(objtree)

	// With os.LookupEnv for LookupEnv, the tree sees the environment too, as make does.
	tree, err := kbuild.OpenTree(objtree, "", kbuild.Vars{Line: map[string]string{"INSTALL_MOD_PATH": "/tmp/root"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("release:", tree.Release)
	fmt.Println("signed:", tree.Config.SigAll(), tree.Config.SigHash(), tree.Config.SigKey())
	fmt.Println("compressed:", tree.Config.Compression())

	destination, err := tree.Destination()
	if err != nil {
		log.Fatal(err)
	}
	modules, err := tree.Modules()
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range modules {
		fmt.Println(filepath.Join(destination, name))
	}
	// Output:
	// release: 6.12.1
	// signed: true sha512 certs/signing_key.pem
	// compressed: xz
	// /tmp/root/lib/modules/6.12.1/kernel/drivers/net/dummy.ko
	// /tmp/root/lib/modules/6.12.1/kernel/fs/ext4/ext4.ko
}

// smallTree writes what kbuild reads of a kernel that is built in its source tree.
func smallTree() (objtree string, err error) {
	if objtree, err = os.MkdirTemp("", "kbuild-example-"); err != nil {
		return "", err
	}
	for name, text := range map[string]string{
		"Makefile":                 "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\n",
		"Kconfig":                  "",
		"scripts/Makefile.modinst": "",
		"include/config/auto.conf": "CONFIG_MODULES=y\nCONFIG_MODULE_SIG_ALL=y\nCONFIG_MODULE_SIG_HASH=\"sha512\"\n" +
			"CONFIG_MODULE_SIG_KEY=\"certs/signing_key.pem\"\nCONFIG_MODULE_COMPRESS_XZ=y\n",
		"include/config/kernel.release": "6.12.1\n",
		"modules.order":                 "drivers/net/dummy.o\nfs/ext4/ext4.o\n",
	} {
		path := filepath.Join(objtree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	return objtree, nil
}
