package kernelimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/modsign/modsign/internal/childenv"
)

// A compressor is a program that compresses its input to its output.
type compressor struct {
	pkg     string // of Debian
	command []string
}

// compressors are the programs for a kernel in an x86 boot image: first Kbuild's with its
// options (scripts/Makefile.lib, scripts/xz_wrap.sh), then those that make smaller streams
// of the same format, in the order of the time that they take. These are the formats that
// vmlinux.Repack supports.
var compressors = map[string][]compressor{
	"gzip": {
		{"gzip", []string{"gzip", "-n", "-9", "-c"}},
		{"libdeflate-tools", []string{"libdeflate-gzip", "-12", "-c"}},
		{"pigz", []string{"pigz", "-n", "-11", "-c"}},
	},
	"xz": {
		{"xz-utils", xzWith("")},
		{"xz-utils", xzWith(",nice=96")},
		{"xz-utils", xzWith(",nice=128")},
		{"xz-utils", xzWith(",nice=273,depth=1000")},
	},
}

// xzWith is xz with Kbuild's options and others for LZMA2.
func xzWith(lzma2 string) []string {
	return []string{"xz", "--check=crc32", "--threads=1", "--x86", "--lzma2=dict=128MiB" + lzma2, "-c"}
}

// compressKernel compresses with more effort each time; nil if there is no program that
// does. A program that is not installed is passed over, but the first.
func compressKernel(ctx context.Context, method string, effort int, kernel []byte) ([]byte, error) {
	programs := compressors[method]
	if effort >= len(programs) {
		var missing []string
		for _, c := range programs {
			if _, err := exec.LookPath(c.command[0]); err != nil {
				missing = append(missing, c.command[0]+" (package "+c.pkg+")")
			}
		}
		if len(missing) > 0 {
			return nil, fmt.Errorf("%w: a program that compresses better is not installed: %s", ErrNoRoom,
				strings.Join(missing, ", "))
		}
		return nil, nil
	}
	c := programs[effort]
	program, err := exec.LookPath(c.command[0])
	if err != nil {
		if effort > 0 {
			return compressKernel(ctx, method, effort+1, kernel)
		}
		return nil, fmt.Errorf("the image is compressed with %s, and the program %s is missing (package %s)", method,
			c.command[0], c.pkg)
	}
	cmd := exec.CommandContext(ctx, program, c.command[1:]...)
	cmd.Env = childenv.WithoutSecrets(cmd.Environ())
	var out, words bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(kernel), &out, &words
	// A process group also ends the children if the program is a wrapper, and modsign
	// handles an interrupt from the terminal itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, errors.Join(fmt.Errorf("%s: %w", program, err), said(words.String()))
	}
	return out.Bytes(), nil
}

// said is the first line that a program wrote about its failure.
func said(words string) error {
	line, _, _ := strings.Cut(strings.TrimSpace(words), "\n")
	if line == "" {
		return nil
	}
	return errors.New(line)
}
