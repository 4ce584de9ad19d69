package transit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/modsign/modsign/internal/keyfile"
)

// A call that fails for a reason that may pass is repeated after a pause, which doubles.
// Signing twice does no harm.
const (
	maxTries     = 7
	openTries    = 3 // nothing is begun yet
	firstPause   = 250 * time.Millisecond
	longestPause = 8 * time.Second
	callTimeout  = 100 * time.Second // of one try; Vault itself ends a request after 90 seconds
	giveUp       = 2 * time.Minute   // no try begins later
	maxRedirects = 2
)

// answerError is an answer of the server that says no.
type answerError struct {
	status  int
	message string
	after   time.Duration // to wait before the next try, at least
}

func (e *answerError) Error() string {
	what := fmt.Sprintf("server answers %d", e.status)
	if text := http.StatusText(e.status); text != "" {
		what += " " + text
	}
	if e.message != "" {
		what += ": " + e.message
	}
	return what
}

// call makes a request, repeats it where that may help, so many times in all, and returns the
// answer.
func (k *Key) call(tries int, method, operation string, body []byte) ([]byte, error) {
	start, next := time.Now(), firstPause
	for try := 1; ; try++ {
		answer, err := k.try(method, operation, body)
		if err == nil {
			return answer, nil
		}
		if k.ctx.Err() != nil {
			return nil, context.Cause(k.ctx)
		}
		e, answered := err.(*answerError)
		if !passes(err) {
			return nil, err
		}
		wait := next/2 + rand.N(next/2) // others were refused at the same time
		if answered {
			wait = max(wait, e.after)
		}
		if try == tries || time.Since(start)+wait > giveUp {
			return nil, fmt.Errorf("%w (given up after %d tries)", err, try)
		}
		k.noted.Do(func() { k.c.Note(fmt.Sprintf("%s: %v: trying again", k.c.Address.Host, err)) })
		if err := k.pause(k.ctx, wait); err != nil {
			return nil, err
		}
		next = min(2*next, longestPause)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// passes reports whether an error may not come again.
func passes(err error) bool {
	if e, ok := err.(*answerError); ok {
		switch e.status {
		case http.StatusTooManyRequests,
			http.StatusPreconditionFailed: // this server has not caught up with the others
			return true
		case http.StatusNotImplemented: // it is not initialized
			return false
		}
		return e.status >= 500
	}
	connection, ok := err.(*connectionError)
	return ok && !connection.final
}

// connectionError is an error of the connection. It names no URL.
type connectionError struct {
	host  string
	err   error
	final bool // it is of no use to try again
}

func (e *connectionError) Error() string { return fmt.Sprintf("no answer from %s: %v", e.host, e.err) }
func (e *connectionError) Unwrap() error { return e.err }

// try makes a request once. It follows redirects.
func (k *Key) try(method, operation string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(k.ctx, callTimeout)
	defer cancel()
	target := k.c.Address.JoinPath(k.path(operation))
	for range maxRedirects + 1 {
		answer, location, err := k.roundTrip(ctx, method, target, body)
		if err != nil || location == "" {
			return answer, err
		}
		if target, err = redirected(target, location); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("server redirects more than %d times", maxRedirects)
}

// redirected returns where a redirect leads, if the token may go there. Over plain HTTP
// anybody may have written the redirect.
func redirected(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	if err != nil || to.Host == "" || to.User != nil {
		return nil, errors.New("server redirects to what is no address")
	}
	same := to.Scheme == from.Scheme && to.Host == from.Host
	if !same && (from.Scheme != "https" || to.Scheme != "https") {
		return nil, &keyfile.HintError{
			Err: fmt.Errorf("server redirects from %s://%s to %.100q: the token does not follow there",
				from.Scheme, from.Host, to.Scheme+"://"+to.Host),
			Hint: "set VAULT_ADDR to the https address of the active server",
		}
	}
	return to, nil
}

// roundTrip returns the body of an answer of success, or where it leads.
func (k *Key) roundTrip(ctx context.Context, method string, target *url.URL, body []byte) ([]byte, string, error) {
	request, err := k.newRequest(ctx, method, target, body)
	if err != nil {
		return nil, "", errors.New("the token, namespace or name of the key cannot be part of a request")
	}
	response, err := k.c.Transport.RoundTrip(request)
	if err != nil {
		return nil, "", k.noAnswer(target.Host, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, "", k.noAnswer(target.Host, err)
	case len(data) > maxAnswer:
		return nil, "", fmt.Errorf("answer of the server has more than %d bytes", maxAnswer)
	case response.StatusCode == http.StatusOK:
		return data, "", nil
	case response.StatusCode == http.StatusTemporaryRedirect, response.StatusCode == http.StatusPermanentRedirect:
		return nil, response.Header.Get("Location"), k.noLocation(response)
	}
	return nil, "", &answerError{
		status:  response.StatusCode,
		message: k.clean(decodeErrors(data)),
		after:   retryAfter(response.Header.Get("Retry-After"), time.Now()),
	}
}

func (k *Key) noLocation(r *http.Response) error {
	if r.Header.Get("Location") == "" {
		return &answerError{status: r.StatusCode}
	}
	return nil
}

// noAnswer is the error of a connection, with what to do about it.
func (k *Key) noAnswer(host string, err error) error {
	e := &connectionError{host: host, err: err}
	hint := ""
	var plain tls.RecordHeaderError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var verification *tls.CertificateVerificationError
	var dns *net.DNSError
	switch {
	case errors.As(err, &unknown):
		hint = "set VAULT_CACERT to the certificate of the server's CA"
	case errors.As(err, &name):
		hint = "set VAULT_TLS_SERVER_NAME to a name in the server's certificate"
	case errors.As(err, &verification):
	case errors.As(err, &plain), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		hint = "the server speaks plain HTTP: VAULT_ADDR=http://... if it is on this machine"
	case errors.As(err, &dns) && dns.IsNotFound:
	default:
		return e
	}
	e.final = true
	return withHint(e, hint)
}

// withHint adds a hint to an error, if there is one.
func withHint(err error, hint string) error {
	if hint == "" {
		return err
	}
	return &keyfile.HintError{Err: err, Hint: hint}
}

// retryAfter reads the header of that name: seconds, or a time.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(text); err == nil && seconds >= 0 {
		return time.Duration(min(seconds, 3600)) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// decodeErrors returns what an answer says about errors. What is no JSON, as from a proxy,
// says nothing.
func decodeErrors(data []byte) string {
	var answer struct {
		Errors []string `json:"errors"`
		Data   struct {
			Error string `json:"error"`
		} `json:"data"`
	}
	if json.Unmarshal(data, &answer) != nil {
		return ""
	}
	if len(answer.Errors) == 0 {
		return answer.Data.Error
	}
	return strings.Join(answer.Errors[:min(len(answer.Errors), 10)], "; ")
}
