package keystore

import (
	"context"
	"os"
	"strings"

	"github.com/modsign/modsign/internal/childenv"
	"github.com/modsign/modsign/internal/gpgagent"
	"github.com/modsign/modsign/keygen"
)

// openGPG opens a key of the user's gpg-agent. OpenPGP keys have no certificate.
func openGPG(ctx context.Context, uri string, o Options) (storedKey, error) {
	grip, err := gpgagent.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if o.Certificate == nil {
		return nil, keygen.ErrNoCertificate
	}
	socket, err := gpgagent.Find(ctx, childenv.WithoutSecrets(o.Environ)) // the agent may keep it for days
	if err != nil {
		return nil, err
	}
	key, err := gpgagent.Open(ctx, gpgagent.Config{
		Socket: socket, Keygrip: grip, Options: pinentryOptions(o.LookupEnv, terminal()),
	})
	if err != nil {
		return nil, err
	}
	return key, nil
}

// terminal returns the name of the terminal that this process has, or "".
func terminal() string {
	for _, fd := range []string{"0", "1", "2"} {
		name, err := os.Readlink("/proc/self/fd/" + fd)
		if err == nil && (strings.HasPrefix(name, "/dev/pts/") || strings.HasPrefix(name, "/dev/tty")) {
			return name
		}
	}
	return ""
}

// pinentryOptions tells the agent where to ask for a PIN, as gpg does.
func pinentryOptions(lookup func(string) (string, bool), terminal string) []string {
	var options []string
	if tty, _ := lookup("GPG_TTY"); tty == "" && terminal != "" {
		options = append(options, "ttyname="+terminal)
	}
	for _, o := range [][2]string{
		{"GPG_TTY", "ttyname="}, {"TERM", "ttytype="}, {"DISPLAY", "display="}, {"XAUTHORITY", "xauthority="},
		{"WAYLAND_DISPLAY", "putenv=WAYLAND_DISPLAY="}, {"XDG_SESSION_TYPE", "putenv=XDG_SESSION_TYPE="},
		{"DBUS_SESSION_BUS_ADDRESS", "putenv=DBUS_SESSION_BUS_ADDRESS="}, {"LC_CTYPE", "lc-ctype="},
		{"LC_MESSAGES", "lc-messages="},
	} {
		value, _ := lookup(o[0])
		if value != "" && len(value) < 900 && !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' }) {
			options = append(options, o[1]+value)
		}
	}
	return options
}
