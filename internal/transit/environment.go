package transit

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/modsign/modsign/internal/keyfile"
)

// Environment looks up a variable of the environment.
type Environment func(name string) (string, bool)

// get returns the value of BAO_NAME, or else of VAULT_NAME, as OpenBao's own client does.
func (e Environment) get(name string) string {
	return e.either("BAO_"+name, "VAULT_"+name)
}

// either returns the value of the first variable that is not empty.
func (e Environment) either(names ...string) string {
	for _, name := range names {
		if value, _ := e(name); value != "" {
			return value
		}
	}
	return ""
}

var errForm = errors.New("want vault:MOUNT/KEY, such as vault:transit/modules, or vault:MOUNT/KEY?key_version=N")

// isKeyName reports whether the engine takes a name of a key.
func isKeyName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool { return !isWord(r) && r != '.' && r != '-' }) &&
		isWord(rune(name[0])) && isWord(rune(name[len(name)-1]))
}

func isWord(r rune) bool {
	return r == '_' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z'
}

// ParseURI parses "vault:MOUNT/KEY?key_version=N". The version is 0 if it is not there.
func ParseURI(uri string) (mount, name string, version int, err error) {
	_, rest, _ := strings.Cut(uri, ":")
	path, query, hasQuery := strings.Cut(rest, "?")
	if hasQuery {
		number, ok := strings.CutPrefix(query, "key_version=")
		version, err = strconv.Atoi(number)
		if !ok || err != nil || version < 1 {
			return "", "", 0, errForm
		}
	}
	slash := strings.LastIndexByte(path, '/')
	if slash < 1 {
		return "", "", 0, errForm
	}
	mount, name = path[:slash], path[slash+1:]
	for part := range strings.SplitSeq(mount, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, isBlank) {
			return "", "", 0, errForm
		}
	}
	if !isKeyName(name) {
		return "", "", 0, errForm
	}
	return mount, name, version, nil
}

func isBlank(r rune) bool { return r <= ' ' || r == 0x7f }

// FromEnvironment returns a Config without key, as the variables VAULT_* of Vault's own client
// say, and BAO_* of OpenBao's, which go before.
func FromEnvironment(env Environment, note func(string)) (Config, error) {
	c := Config{Namespace: env.get("NAMESPACE"), Note: note}
	var err error
	if len(c.Namespace) > 1000 || strings.ContainsFunc(c.Namespace, isBlank) {
		return c, errors.New("VAULT_NAMESPACE: want a path without blanks")
	}
	if c.Address, err = address(env, note); err != nil {
		return c, err
	}
	if c.Token, err = token(env, note); err != nil {
		return c, err
	}
	config, err := tlsConfig(env, note)
	if err != nil {
		return c, err
	}
	proxy, err := proxyFor(env, c.Address)
	if err != nil {
		return c, err
	}
	c.Transport = &http.Transport{
		Proxy:                 http.ProxyURL(proxy),
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConnsPerHost:   maxRequests,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true,
		ResponseHeaderTimeout: callTimeout,
	}
	return c, nil
}

// address returns the URL of the server. Errors do not quote it: it may hold a password.
func address(env Environment, note func(string)) (*url.URL, error) {
	text := env.get("ADDR")
	if text == "" {
		text = "https://127.0.0.1:8200" // as Vault's client has it
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("VAULT_ADDR: want https://HOST:PORT, without user and password")
	}
	if u.Scheme == "http" && !isLoopback(u.Hostname()) {
		note("warning: VAULT_ADDR: the token goes to " + u.Host + " unencrypted: anybody on the way can take it and sign")
	}
	return u, nil
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// token returns the token, or "" if there is none.
func token(env Environment, note func(string)) (string, error) {
	if text := strings.TrimSpace(env.get("TOKEN")); text != "" {
		return checkToken("VAULT_TOKEN", text)
	}
	path := env.get("TOKEN_PATH")
	if path == "" {
		home, _ := env("HOME")
		if home == "" {
			return "", nil
		}
		path = filepath.Join(home, ".vault-token")
	}
	data, err := keyfile.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, pathless(err))
	}
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		note("warning: " + path + ": others than its owner can get at the token: chmod 600 " + path)
	}
	return checkToken(path, strings.TrimSpace(string(data)))
}

// pathless returns an error without the path that it would name once more.
func pathless(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// checkToken refuses what cannot be a token. The error does not quote it.
func checkToken(where, text string) (string, error) {
	const longest = 16 << 10
	if len(text) > longest || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s holds no token: want one word", where)
	}
	return text, nil
}

// tlsConfig returns how the server is verified.
func tlsConfig(env Environment, note func(string)) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: env.get("TLS_SERVER_NAME")}
	if file, dir := env.get("CACERT"), env.get("CAPATH"); file != "" {
		c.RootCAs = x509.NewCertPool()
		if err := addRoots(c.RootCAs, file); err != nil {
			return nil, fmt.Errorf("VAULT_CACERT: %w", err)
		}
	} else if dir != "" {
		c.RootCAs = x509.NewCertPool()
		if err := addDirectory(c.RootCAs, dir); err != nil {
			return nil, fmt.Errorf("VAULT_CAPATH: %w", err)
		}
	}
	if certFile, keyFile := env.get("CLIENT_CERT"), env.get("CLIENT_KEY"); certFile != "" || keyFile != "" {
		pair, err := clientPair(certFile, keyFile)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if text := env.get("SKIP_VERIFY"); text != "" {
		skip, err := strconv.ParseBool(text)
		if err != nil {
			return nil, errors.New("VAULT_SKIP_VERIFY: want true or false")
		}
		if c.InsecureSkipVerify = skip; skip {
			note("warning: VAULT_SKIP_VERIFY: the server is not verified: whoever answers gets the token and can sign")
		}
	}
	return c, nil
}

func addRoots(pool *x509.CertPool, file string) error {
	data, err := keyfile.Read(file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, pathless(err))
	}
	if !pool.AppendCertsFromPEM(data) {
		return fmt.Errorf("%s: no certificate in PEM", file)
	}
	return nil
}

// addDirectory adds the certificates of the files in a directory. Files of another kind are
// skipped.
func addDirectory(pool *x509.CertPool, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, pathless(err))
	}
	found := false
	for _, e := range entries {
		found = !e.IsDir() && addRoots(pool, filepath.Join(dir, e.Name())) == nil || found
	}
	if !found {
		return fmt.Errorf("%s: no certificate in PEM in any of its files", dir)
	}
	return nil
}

// clientPair reads the certificate by which this client proves itself.
func clientPair(certFile, keyFile string) (tls.Certificate, error) {
	if certFile == "" || keyFile == "" {
		return tls.Certificate{}, errors.New("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY: want both")
	}
	certPEM, err := keyfile.Read(certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("VAULT_CLIENT_CERT: %s: %w", certFile, pathless(err))
	}
	keyPEM, err := keyfile.Read(keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("VAULT_CLIENT_KEY: %s: %w", keyFile, pathless(err))
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil { // its text may quote the files
		return tls.Certificate{}, fmt.Errorf("VAULT_CLIENT_KEY: %s is not the unencrypted PEM key of %s", keyFile, certFile)
	}
	return pair, nil
}

// proxyFor returns the proxy for the server, or nil.
func proxyFor(env Environment, server *url.URL) (*url.URL, error) {
	name, text := "VAULT_PROXY_ADDR", env.get("PROXY_ADDR")
	if text == "" {
		name, text = "VAULT_HTTP_PROXY", env.get("HTTP_PROXY")
	}
	if text == "" && server.Scheme == "https" && !isLoopback(server.Hostname()) {
		name = "HTTPS_PROXY"
		if text = env.either("HTTPS_PROXY", "https_proxy"); bypasses(env.either("NO_PROXY", "no_proxy"), server) {
			return nil, nil
		}
	}
	if text == "" {
		return nil, nil
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%s: want http://HOST:PORT", name)
	}
	return u, nil
}

// bypasses reports whether NO_PROXY names a server: its host, a domain that it is in, its
// network, or "*".
func bypasses(noProxy string, server *url.URL) bool {
	host := strings.ToLower(server.Hostname())
	addr, notAddr := netip.ParseAddr(host)
	for entry := range strings.SplitSeq(strings.ToLower(noProxy), ",") {
		entry = strings.TrimSpace(entry)
		if network, err := netip.ParsePrefix(entry); err == nil && notAddr == nil && network.Contains(addr) {
			return true
		}
		if h, port, err := net.SplitHostPort(entry); err == nil && port == server.Port() {
			entry = h
		}
		entry = strings.TrimPrefix(strings.TrimPrefix(entry, "*."), ".")
		if entry == "*" || entry != "" && (host == entry || strings.HasSuffix(host, "."+entry)) {
			return true
		}
	}
	return false
}
