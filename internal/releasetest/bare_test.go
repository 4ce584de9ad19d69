package releasetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// onBareSystem installs a package on a Debian that knows nothing of modsign, has DKMS build and
// sign a module, verifies that, and removes the package: nothing may be left. The argument
// says how the package is installed and removed.
const onBareSystem = `
	install() { case $package in *.deb) dpkg --install "$1" ;; *) rpm --dbpath /rpmdb --nodeps --install "$1" ;; esac }
	remove() {
		case $package in *.deb) dpkg --purge modsign ;; *) rpm --dbpath /rpmdb --erase modsign && rm -rf /rpmdb ;; esac
	}
	# All names but those of logs, of dpkg's and depmod's own files, of what is gone at the next boot,
	# and of a directory that every RPM distribution has.
	list() {
		find / \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run -o -path /var/log -o \
			-path /var/lib/dpkg -o -path /var/cache -o -path /usr/share/licenses \) -prune -o ! -path '*/lib/modules/*/modules.*' -print | sort
	}
	mkdir -p /usr/src/made-1.0
	cat >/usr/src/made-1.0/made.c <<-END
		#include <linux/module.h>
		static int __init made_init(void) { return 0; }
		static void __exit made_exit(void) { }
		module_init(made_init);
		module_exit(made_exit);
		MODULE_LICENSE("GPL");
		MODULE_DESCRIPTION("a module of the tests of modsign");
	END
	echo 'obj-m := made.o' >/usr/src/made-1.0/Makefile
	cat >/usr/src/made-1.0/dkms.conf <<-END
		PACKAGE_NAME="made"
		PACKAGE_VERSION="1.0"
		BUILT_MODULE_NAME[0]="made"
		DEST_MODULE_LOCATION[0]="/updates/dkms"
	END
	mkdir -p /etc/dkms/framework.conf.d
	printf '%s\n' mok_signing_key=/release/key.pem mok_certificate=/release/cert.x509 >/etc/dkms/framework.conf.d/site.conf
	list >/tmp/before

	install "/release/$package"
	modsign version
	kver=$(ls /lib/modules)
	dkms add made/1.0
	dkms install made/1.0 -k "$kver"
	module=$(find "/lib/modules/$kver/updates/dkms" -name 'made.ko*')
	modsign verify --cert /release/cert.x509 "$module"
	echo "modinfo: $(modinfo -F sig_id "$module")"
	dkms remove made/1.0 --all
	remove
	list >/tmp/after
	diff /tmp/before /tmp/after
	echo 'nothing is left'
`

// testBare tries the packages for this machine's architecture on Debian 12 and 13.
func testBare(t *testing.T, deb, rpm string) {
	arch := strings.TrimSpace(run(t, "", nil, "dpkg", "--print-architecture"))
	if !strings.HasSuffix(deb, "_"+arch+".deb") {
		t.Skipf("this machine is %s, and the packages are not", arch)
	}
	for _, test := range []struct{ suite, path string }{{"bookworm", deb}, {"trixie", deb}, {"trixie", rpm}} {
		t.Run(test.suite+filepath.Ext(test.path), func(t *testing.T) {
			t.Parallel()
			system := testmod.NewChroot(t, test.suite)
			key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
			share := t.TempDir()
			for from, to := range map[string]string{key: "key.pem", cert: "cert.x509", test.path: filepath.Base(test.path)} {
				run(t, "", nil, "cp", from, filepath.Join(share, to))
			}
			if err := os.Chmod(filepath.Join(share, "key.pem"), 0o600); err != nil {
				t.Fatal(err)
			}
			system.Bind(share, "release")
			cmd := system.Command("sh", "-euc", onBareSystem)
			cmd.Env = append(cmd.Env, "package="+filepath.Base(test.path))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v:\n%s", err, out)
			}
			for _, want := range []string{"Sign command: /usr/lib/modsign/sign-file", ": all trusted", "modinfo: PKCS#7",
				"nothing is left"} {
				if !strings.Contains(string(out), want) {
					t.Errorf("%q is missing:\n%s", want, out)
				}
			}
		})
	}
}
