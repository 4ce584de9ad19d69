package transit

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/internal/vaulttest"
)

func environment(variables map[string]string) Environment {
	return func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	}
}

func TestParseURI(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]struct {
		mount, name string
		version     int
	}{
		"vault:transit/modules":                 {"transit", "modules", 0},
		"vault:team/a/transit/key.1-b_c":        {"team/a/transit", "key.1-b_c", 0},
		"VAULT:transit/modules?key_version=3":   {"transit", "modules", 3},
		"vault:transit/modules?key_version=0":   {},
		"vault:transit/modules?version=1":       {},
		"vault:transit/modules?key_version=1&x": {},
		"vault:transit":                         {},
		"vault:/transit/modules":                {},
		"vault://host/transit/modules":          {},
		"vault:transit//modules":                {},
		"vault:transit/../sys/modules":          {},
		"vault:transit/":                        {},
		"vault:transit/a b":                     {},
		"vault:tran sit/a":                      {},
		"vault:transit/..":                      {},
		"vault:":                                {},
	} {
		mount, name, version, err := ParseURI(uri)
		if mount != want.mount || name != want.name || version != want.version || (err == nil) != (want.name != "") {
			t.Errorf("%s: %q, %q, %d, %v", uri, mount, name, version, err)
		}
	}
}

// TestFromEnvironment has the variables that are right, and the remarks about them.
func TestFromEnvironment(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	tokenFile := filepath.Join(home, ".vault-token")
	if err := os.WriteFile(tokenFile, []byte("hvs.home\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := testmod.WriteFile(t, "token", []byte("hvs.open\n"))
	for name, c := range map[string]struct {
		variables            map[string]string
		address, token, note string
		err                  string
	}{
		"nothing":    {nil, "https://127.0.0.1:8200", "", "", ""},
		"token file": {map[string]string{"HOME": home}, "https://127.0.0.1:8200", "hvs.home", "", ""},
		"vault": {map[string]string{"HOME": home, "VAULT_ADDR": "https://v:1", "VAULT_TOKEN": "hvs.a"},
			"https://v:1", "hvs.a", "", ""},
		"bao": {map[string]string{
			"VAULT_ADDR": "https://v:1", "BAO_ADDR": "https://b:1", "VAULT_TOKEN": "hvs.a", "BAO_TOKEN": "s.b",
		}, "https://b:1", "s.b", "", ""},
		"bao's token file": {map[string]string{"BAO_TOKEN_PATH": tokenFile},
			"https://127.0.0.1:8200", "hvs.home", "", ""},
		"open token file": {map[string]string{"VAULT_TOKEN_PATH": open}, "https://127.0.0.1:8200", "hvs.open",
			"chmod 600 " + open, ""},
		"no token there": {map[string]string{"HOME": "/nonexistent"}, "https://127.0.0.1:8200", "", "", ""},
		"agent": {map[string]string{"VAULT_ADDR": "http://127.0.0.1:8100"},
			"http://127.0.0.1:8100", "", "", ""},
		"plain": {map[string]string{"VAULT_ADDR": "http://v.example:8200", "VAULT_TOKEN": "hvs.a"},
			"http://v.example:8200", "hvs.a", "the token goes to v.example:8200 unencrypted", ""},
		"skip": {map[string]string{"VAULT_SKIP_VERIFY": "1"}, "https://127.0.0.1:8200", "",
			"VAULT_SKIP_VERIFY: the server is not verified", ""},

		"password": {map[string]string{"VAULT_ADDR": "https://u:s3cret@v"},
			"", "", "", "VAULT_ADDR: want https://HOST:PORT"},
		"no URL": {map[string]string{"VAULT_ADDR": "v.example:8200"},
			"", "", "", "VAULT_ADDR: want https://HOST:PORT"},
		"damaged":   {map[string]string{"VAULT_ADDR": "https://s3cret%zz"}, "", "", "", "VAULT_ADDR: want"},
		"two lines": {map[string]string{"VAULT_TOKEN": "s3cret\nX: y"}, "", "", "", "VAULT_TOKEN holds no token"},
		"directory": {map[string]string{"BAO_TOKEN_PATH": home}, "", "", "", home + ": is a directory"},
		"no CA": {map[string]string{"VAULT_CACERT": "/nonexistent"},
			"", "", "", "VAULT_CACERT: /nonexistent: no such file"},
		"CA no PEM": {map[string]string{"VAULT_CACERT": tokenFile},
			"", "", "", "VAULT_CACERT: " + tokenFile + ": no certificate in PEM"},
		"CAs no PEM": {map[string]string{"VAULT_CAPATH": home},
			"", "", "", "VAULT_CAPATH: " + home + ": no certificate"},
		"half pair": {map[string]string{"VAULT_CLIENT_CERT": tokenFile}, "", "", "", "want both"},
		"pair": {map[string]string{"VAULT_CLIENT_CERT": tokenFile, "VAULT_CLIENT_KEY": tokenFile}, "", "", "",
			"is not the unencrypted PEM key of"},
		"skip what": {map[string]string{"VAULT_SKIP_VERIFY": "s3cret"},
			"", "", "", "VAULT_SKIP_VERIFY: want true or false"},
		"proxy": {map[string]string{"VAULT_PROXY_ADDR": "http://u:s3cret%zz"},
			"", "", "", "VAULT_PROXY_ADDR: want"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var notes notes
			got, err := FromEnvironment(environment(c.variables), notes.add)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "s3cret") ||
					strings.Contains(err.Error(), "hvs.") {
					t.Errorf("%v, want %q", err, c.err)
				}
				return
			}
			if err != nil || got.Address.String() != c.address || got.Token != c.token {
				t.Errorf("%v, %q, %v", got.Address, got.Token, err)
			}
			if (notes.String() == "") != (c.note == "") || !strings.Contains(notes.String(), c.note) {
				t.Errorf("notes %q, want %q", notes.String(), c.note)
			}
		})
	}
}

// TestTLS reaches a server that asks for a client's certificate, by files alone.
func TestTLS(t *testing.T) {
	t.Parallel()
	client := testmod.NewKey(t, "ecdsa:p256")
	keyFile, certFile := client.Files(t)
	handler := vaulttest.New(testToken)
	public, err := handler.Add("modules", "ecdsa-p256")
	if err != nil {
		t.Fatal(err)
	}
	server := quiet(httptest.NewUnstartedServer(handler))
	server.TLS = requiring(client.Certificate)
	server.StartTLS()
	t.Cleanup(server.Close)
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	ca := testmod.WriteFile(t, "ca.pem", pem.EncodeToMemory(block))
	for name, c := range map[string]struct {
		variables map[string]string
		want      string
	}{
		"file":      {map[string]string{"VAULT_CACERT": ca}, ""},
		"directory": {map[string]string{"VAULT_CAPATH": filepath.Dir(ca)}, ""},
		"name":      {map[string]string{"VAULT_CACERT": ca, "VAULT_TLS_SERVER_NAME": "example.com"}, ""},
		"skip":      {map[string]string{"VAULT_SKIP_VERIFY": "true"}, ""},
		"no CA":     {nil, "unknown authority"},
		"no name":   {map[string]string{"VAULT_CACERT": ca, "VAULT_TLS_SERVER_NAME": "vault.test"}, "vault.test"},
		"no client": {map[string]string{"VAULT_CACERT": ca, "VAULT_CLIENT_CERT": "", "VAULT_CLIENT_KEY": ""},
			"no answer from"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			variables := map[string]string{
				"VAULT_ADDR": server.URL, "VAULT_TOKEN": testToken, "VAULT_CLIENT_CERT": certFile, "VAULT_CLIENT_KEY": keyFile,
			}
			for name, value := range c.variables {
				variables[name] = value
			}
			var notes notes
			config, err := FromEnvironment(environment(variables), notes.add)
			if err != nil {
				t.Fatal(err)
			}
			p := peer{notes: &notes, config: config}
			p.config.Mount, p.config.Name, p.config.Public = "transit", "modules", public
			_, err = p.open(t)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		variables map[string]string
		want      string
	}{
		"none":    {nil, ""},
		"own":     {map[string]string{"VAULT_PROXY_ADDR": "http://p:1", "NO_PROXY": "*"}, "http://p:1"},
		"old":     {map[string]string{"VAULT_HTTP_PROXY": "p:1"}, "http://p:1"},
		"general": {map[string]string{"HTTPS_PROXY": "http://p:1"}, "http://p:1"},
		"lower":   {map[string]string{"https_proxy": "http://p:1"}, "http://p:1"},
		"all":     {map[string]string{"HTTPS_PROXY": "http://p:1", "no_proxy": "a, *"}, ""},
		"domain":  {map[string]string{"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".Example.com"}, ""},
		"host":    {map[string]string{"HTTPS_PROXY": "http://p:1", "NO_PROXY": "vault.example.com:8200"}, ""},
		"other port": {map[string]string{"HTTPS_PROXY": "http://p:1", "NO_PROXY": "vault.example.com:1"},
			"http://p:1"},
		"other": {map[string]string{"HTTPS_PROXY": "http://p:1", "NO_PROXY": "ault.example.com,10.0.0.0/8"},
			"http://p:1"},
		"network": {map[string]string{"VAULT_ADDR": "https://10.1.2.3", "HTTPS_PROXY": "p:1", "NO_PROXY": "10.0.0.0/8"},
			""},
		"own machine": {map[string]string{"VAULT_ADDR": "https://127.0.0.1", "HTTPS_PROXY": "http://p:1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.variables["VAULT_ADDR"] == "" {
				if c.variables == nil {
					c.variables = make(map[string]string)
				}
				c.variables["VAULT_ADDR"] = "https://vault.example.com:8200"
			}
			config, err := FromEnvironment(environment(c.variables), func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			got, err := config.Transport.(*http.Transport).Proxy(nil)
			text := ""
			if got != nil {
				text = got.String()
			}
			if err != nil || text != c.want {
				t.Errorf("%q, %v; want %q", text, err, c.want)
			}
		})
	}
}

// requiring asks clients for this certificate.
func requiring(cert *x509.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{ClientAuth: tls.RequireAnyClientCert, ClientCAs: pool}
}
