package keygen

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

func TestParseDefaultConfig(t *testing.T) {
	t.Parallel()
	got, a, err := ParseConfig(strings.NewReader(defaultGenkey))
	if err != nil {
		t.Fatal(err)
	}
	if want := DefaultTemplate(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if a != RSA4096 {
		t.Errorf("algorithm %v", a)
	}
}

// genkey puts sections into the usual surroundings.
func genkey(req, dn, exts string) string {
	if !strings.Contains(req, "prompt") {
		req += "prompt = no\n"
	}
	if dn == "" {
		dn = "CN = A name that makes the certificate long enough\n"
	}
	if exts == "" {
		exts = "subjectKeyIdentifier = hash\n"
	}
	return fmt.Sprintf("[req]\ndistinguished_name = dn\nx509_extensions = exts\n%s[dn]\n%s[exts]\n%s", req, dn, exts)
}

// configs are files that ParseConfig and openssl understand alike.
func configs() map[string]string {
	return map[string]string{
		"kernel default": defaultGenkey,
		"distribution": `company = An Organization
[ req ]
default_bits = 3072
distinguished_name = req_distinguished_name
prompt = no
string_mask = utf8only
x509_extensions = myexts
req_extensions = requests
encrypt_key = no
default_keyfile = key.pem
utf8 = yes

[ req_distinguished_name ]
C = DE
ST = Some State
L = Some City
O = $company, Inc.
OU = Kernel Team
CN = An Organization kernel signing key
emailAddress = kernel@example.org

[ myexts ]
basicConstraints=critical,CA:FALSE
keyUsage=digitalSignature
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
extendedKeyUsage=codeSigning,1.3.6.1.4.1.2312.16.1.2

[ requests ]
subjectAltName = DNS:example.org

[ unused ]
anything = goes
`,
		"prefixes": genkey("", "0.organizationName=A\n1.organizationName=B\nx,OU=C\n0.CN=D\na.commonName=E\n", ""),
		"long names": genkey(
			"",
			"countryName=DE\nstateOrProvinceName=s\nlocalityName=l\norganizationName=o\norganizationalUnitName=u\ncommonName=c\nsurname=s\ngivenName=g\nuserId=u\ndomainComponent=d\nstreetAddress=s\n",
			"",
		),
		"short names": genkey(
			"",
			"DC=org\nDC=example\nUID=u\nSN=s\nGN=g\ntitle=t\nstreet=s\ndescription=d\nserialNumber=1 (2)\n",
			"",
		),
		"dotted type":     genkey("", "CN=c\n0.1.2.3.4=v\n1.2.5.4.6=DE\n", ""),
		"again":           genkey("", "O=first\nCN=c\nO=second\n", ""),
		"UTF-8":           genkey("", "O=Müller & Söhne\nCN=カーネル 🐧\n", ""),
		"longest":         genkey("", "CN="+strings.Repeat("ä", 64)+"\nST="+strings.Repeat("s", 128)+"\n", ""),
		"quotes":          genkey("", "O='a # b' # comment\nOU=\"c 'd' e\"f\nCN=`g`h\n", ""),
		"escapes":         genkey("", "O=a\\#b\nOU=\\\"c\\\\d\\'\nCN=a\\tb\\nc\\rd\\be\\x\n", ""),
		"escapes in '":    genkey("", "O='it\\'s' and \"\\\\\\\"\"\nCN='\\n'\n", ""),
		"spaces":          genkey("", "   CN  =   a  b  \t\r\n\tO=x\r\n", ""),
		"other spaces":    genkey("", "CN=\fa\v\nO=\u00a0x\u0085\u2003\n", "keyUsage = \v digitalSignature\f ,cRLSign\n"),
		"continuation":    genkey("", "CN=a\\\nb\\\n  c\nO=x\\\\\nOU=y\n", ""),
		"comment goes on": genkey("", "CN=a\n# comment \\\nO=lost\nOU=kept\n", ""),
		"variables": "name = The\n" + genkey("",
			"O=$name Company\nOU=${name}x$(name)y$O\nCN=${req::prompt} $dn::OU '$name' \\$name\n", ""),
		"other section":  genkey("", "CN=c\nexts::keyUsage = digitalSignature\n", ""),
		"sections twice": genkey("", "CN=c\n", "") + "[dn]\nO=later\n[ exts ]\nkeyUsage = cRLSign\n",
		"default section": "prompt = no\nx509_extensions = e\nstring_mask = utf8only\ndefault_bits = 2048\n[req]\ndistinguished_name = d\n[d]\nCN=" +
			strings.Repeat(
				"c",
				60,
			) + "\n[e]\nsubjectKeyIdentifier=hash\n",
		"BOM":          "\xef\xbb\xbf" + genkey("", "", ""),
		"no newline":   strings.TrimSuffix(genkey("", "", ""), "\n"),
		"hash in file": genkey("default_md = SHA256\n", "", ""),
		"hash default": genkey("default_md = default\n", "", ""),
		"CA": genkey("", "",
			"basicConstraints = critical, CA:TRUE, pathlen:0\nkeyUsage = critical, keyCertSign , digitalSignature\n"),
		"CA without critical":  genkey("", "", "basicConstraints = CA:yes\n"),
		"no key id":            genkey("", "", "keyUsage = nonRepudiation, decipherOnly\n"),
		"keyid always":         genkey("", "", "authorityKeyIdentifier = keyid:always\nsubjectKeyIdentifier = hash\n"),
		"keyid always, no key": genkey("", "", "authorityKeyIdentifier = keyid : always\n"),
		"all usages": genkey(
			"",
			"",
			"keyUsage = digitalSignature,nonRepudiation,keyEncipherment,dataEncipherment,keyAgreement,keyCertSign,cRLSign,encipherOnly,decipherOnly\nextendedKeyUsage = critical,serverAuth,clientAuth,codeSigning,emailProtection,timeStamping,msCodeInd,msCodeCom,2.25.3\n",
		),
	}
}

// TestConfigAsOpenSSL compares the certificates that openssl and this package
// make of one file.
func TestConfigAsOpenSSL(t *testing.T) {
	t.Parallel()
	pair := generated(t, ECDSAP384)
	for name, config := range configs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			template, _, err := ParseConfig(strings.NewReader(config))
			if err != nil {
				t.Fatal(err)
			}
			if name == "hash in file" {
				if template.Hash != crypto.SHA256 {
					t.Errorf("hash is %v", template.Hash)
				}
				compareCertificates(t, pair, config, "sha256", template)
				return
			}
			compareCertificates(t, pair, config, "sha512", template)
		})
	}
}

func TestConfigAlgorithm(t *testing.T) {
	t.Parallel()
	for req, want := range map[string]Algorithm{
		"": 0, "default_bits = 2048\n": RSA2048, "default_bits=3072\n": RSA3072, "default_bits = 4096 # bits\n": RSA4096,
	} {
		if _, got, err := ParseConfig(strings.NewReader(genkey(req, "", ""))); got != want || err != nil {
			t.Errorf("%q: %v, %v", req, got, err)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	t.Parallel()
	// Of what genkey writes, the first line of req is 4; of dn with prompt, 6.
	tests := map[string]struct{ config, want string }{
		"empty":            {"", "no section [req]"},
		"binary":           {"\x7fELF\x00", "line 1: NUL byte"},
		"too big":          {strings.Repeat("#\n", 40000), "more than"},
		"no equals":        {"[req]\nprompt\n", `line 2: not of the form name = value`},
		"two words":        {"[req]\na b = c\n", "line 2:"},
		"no name":          {"[req]\n= c\n", "line 2:"},
		"open section":     {"[req\n", "line 1:"},
		"empty section":    {"[ ]\n", "line 1:"},
		"text after":       {"[req] x\n", "line 1:"},
		"quote in section": {"['req']\n", "line 1:"},
		"open quote":       {genkey("", "CN = Bob's key\n", ""), "line 6: quote ' has no end"},
		"include":          {".include other\n", "line 1: .include"},
		"pragma":           {".pragma dollarid:on\n", "line 1: .pragma"},
		"environment":      {genkey("", "CN=$ENV::HOME\n", ""), "line 6: $ENV: the environment"},
		"no variable":      {genkey("", "CN=$no\n", ""), "line 6:"},
		"dollar":           {genkey("", "CN=10$\n", ""), "line 6:"},
		"open variable":    {genkey("", "x=y\nCN=${x\n", ""), "line 7:"},
		"continued":        {genkey("", "O=a\\\nb\nCN=$no\n", ""), "line 8:"},
		"no prompt":        {strings.Replace(genkey("", "", ""), "prompt = no\n", "", 1), "prompt = no"},
		"prompt yes":       {genkey("prompt = yes\n", "", ""), "line 4: prompt is not supported"},
		"mask":             {genkey("string_mask = nombstr\n", "", ""), "line 4: string_mask is not supported"},
		"bits":             {genkey("default_bits = 1024\n", "", ""), "line 4: default_bits: an RSA key"},
		"md5":              {genkey("default_md = md5\n", "", ""), "line 4: default_md is not a hash"},
		"unknown in req":   {genkey("x = y\n", "", ""), "line 4: a name in [req]"},
		"oid_section":      {"oid_section = o\n" + genkey("", "", ""), "line 1: oid_section"},
		"openssl_conf":     {"openssl_conf = o\n" + genkey("", "", ""), "line 1: openssl_conf"},
		"no dn":            {"[req]\nprompt = no\n", "names no section for distinguished_name"},
		"dn elsewhere": {"[req]\nprompt = no\ndistinguished_name = x\n",
			"line 3: distinguished_name: there is no section"},
		"dn empty": {genkey("", "#\n", ""), "empty"},
		"no extensions": {strings.Replace(genkey("", "", ""), "x509_extensions = exts\n", "", 1),
			"names no section for x509_extensions"},
		"extensions empty":  {genkey("", "", "#\n"), "empty"},
		"only keyid":        {genkey("", "", "authorityKeyIdentifier = keyid\n"), "empty"},
		"unknown type":      {genkey("", "cn = x\n", ""), `line 6: unknown type of attribute`},
		"empty value":       {genkey("", "CN =\n", ""), "line 6: CN"},
		"long value":        {genkey("", "CN ="+strings.Repeat("x", 65)+"\n", ""), "line 6: CN has 65"},
		"long country":      {genkey("", "C = DEU\n", ""), "line 6: C"},
		"country":           {genkey("", "C = D_\n", ""), "line 6: C"},
		"email":             {genkey("", "emailAddress = ä@b\n", ""), "line 6: emailAddress"},
		"not UTF-8":         {genkey("", "CN = \xe4\n", ""), "line 6: CN"},
		"two in one RDN":    {genkey("", "CN = x\n+O = y\n", ""), "line 7: a second attribute"},
		"prefix at an end":  {genkey("", "CN. = x\n", ""), "line 6:"},
		"unknown extension": {genkey("", "", "nsComment = hello\n"), "line 8: extension is not supported"},
		"subjectAltName":    {genkey("", "", "subjectAltName = DNS:x\n"), "line 8: extension is not supported"},
		"empty extension":   {genkey("", "", "keyUsage =\n"), "line 8: keyUsage"},
		"empty part":        {genkey("", "", "keyUsage = digitalSignature,\n"), "line 8: keyUsage"},
		"only critical":     {genkey("", "", "keyUsage = critical\n"), "line 8: keyUsage"},
		"DER":               {genkey("", "", "keyUsage = DER:03020780\n"), "line 8: keyUsage"},
		"@section":          {genkey("", "", "extendedKeyUsage = @dn\n"), "line 8: extendedKeyUsage"},
		"usage value":       {genkey("", "", "extendedKeyUsage = codeSigning:x\n"), "line 8: extendedKeyUsage"},
		"bad OID":           {genkey("", "", "extendedKeyUsage = 3.1\n"), "line 8: extendedKeyUsage"},
		"huge OID":          {genkey("", "", "extendedKeyUsage = 1.2.99999999999999999999\n"), "line 8: extendedKeyUsage"},
		"CA maybe":          {genkey("", "", "basicConstraints = CA:maybe\n"), "line 8: basicConstraints"},
		"pathlen":           {genkey("", "", "basicConstraints = CA:TRUE,pathlen:-1\n"), "line 8: basicConstraints"},
		"pathlen, no CA":    {genkey("", "", "basicConstraints = CA:FALSE,pathlen:1\n"), "line 8: basicConstraints"},
		"no constraint":     {genkey("", "", "basicConstraints = x\n"), "line 8: basicConstraints"},
		"key id in hex":     {genkey("", "", "subjectKeyIdentifier = 01:02\n"), "line 8: subjectKeyIdentifier"},
		"critical key id":   {genkey("", "", "subjectKeyIdentifier = critical, hash\n"), "line 8: subjectKeyIdentifier"},
		"critical issuer": {genkey("", "", "authorityKeyIdentifier = critical, keyid:always\n"),
			"line 8: authorityKeyIdentifier"},
		"no key id": {genkey("", "", "subjectKeyIdentifier = none\n"), "line 8: subjectKeyIdentifier"},
		"issuer":    {genkey("", "", "authorityKeyIdentifier = keyid,issuer\n"), "line 8: authorityKeyIdentifier"},
		"expansion": {"a=" + strings.Repeat("x", 1000) + "\n" + strings.Repeat("a=$a$a\n", 40),
			"more than 1048576 bytes"},
		"expansion of many": {"a=" + strings.Repeat("x", 20000) + "\n" + strings.Repeat("a=$a\n", 2000),
			"more than 1048576 bytes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, _, err := ParseConfig(strings.NewReader(test.config)); err == nil ||
				!strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one with %q", err, test.want)
			}
		})
	}
}

// FuzzParseConfig checks that what is understood can be made a certificate of.
func FuzzParseConfig(f *testing.F) {
	for _, config := range configs() {
		f.Add(config)
	}
	key := testmod.NewKey(f, "ecdsa:p256")
	f.Fuzz(func(t *testing.T, config string) {
		template, _, err := ParseConfig(strings.NewReader(config))
		if err != nil {
			return
		}
		der, err := template.selfSigned(key.Private)
		if err != nil {
			if strings.Contains(err.Error(), "built-in list") {
				return
			}
			t.Fatalf("accepted, but: %v", err)
		}
		if _, err := x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	})
}
