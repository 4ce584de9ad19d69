package integrations

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/modsign/modsign/internal/testmod"
)

// action is what the runner reads of action.yml.
type action struct {
	Inputs map[string]struct {
		Description string
		Required    bool
		Default     string
	}
	Outputs map[string]struct{ Value string }
	Runs    struct {
		Using string
		Steps []struct {
			ID, Shell, Run string
			Env            map[string]string
		}
	}
}

var expression = regexp.MustCompile(`\$\{\{ *(.*?) *\}\}`)

// A runner runs the steps of the action as GitHub's does: inputs and outputs go into the expressions
// of env, and bash runs the script from a file.
type runner struct {
	action    action
	workspace string
	temp      string
}

func newRunner(t *testing.T) *runner {
	t.Helper()
	r := &runner{workspace: t.TempDir(), temp: t.TempDir()}
	if err := yaml.Unmarshal([]byte(read(t, "github/action.yml")), &r.action); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *runner) run(t *testing.T, inputs map[string]string) result {
	t.Helper()
	values := make(map[string]string)
	for name, input := range r.action.Inputs {
		values["inputs."+name] = input.Default
	}
	for name, value := range inputs {
		if _, known := r.action.Inputs[name]; !known {
			t.Fatalf("the action has no input %s", name)
		}
		values["inputs."+name] = value
	}
	outputs := filepath.Join(t.TempDir(), "outputs")
	var all result
	for _, step := range r.action.Runs.Steps {
		env := []string{"GITHUB_OUTPUT=" + outputs, "RUNNER_TEMP=" + r.temp, "GITHUB_WORKSPACE=" + r.workspace,
			"GITHUB_ACTION_PATH=" + filepath.Join(here, "github")}
		for name, text := range step.Env {
			env = append(env, name+"="+expression.ReplaceAllStringFunc(text, func(e string) string {
				name := expression.FindStringSubmatch(e)[1]
				value, known := values[name]
				if !known {
					t.Errorf("unknown expression %s", e)
				}
				return value
			}))
		}
		write(t, outputs, "", 0o600)
		script := filepath.Join(t.TempDir(), "script.sh")
		write(t, script, step.Run, 0o600)
		one := run(t, r.workspace, env, "bash", "--noprofile", "--norc", "-e", "-o", "pipefail", script)
		all = result{one.code, all.output + one.output}
		if one.code != 0 {
			break
		}
		for line := range strings.Lines(read(t, outputs)) {
			if name, value, found := strings.Cut(strings.TrimSpace(line), "="); found {
				values["steps."+step.ID+".outputs."+name] = value
			}
		}
	}
	if left, err := filepath.Glob(filepath.Join(r.temp, "modsign-key*")); err != nil || len(left) != 0 {
		t.Errorf("the key is left in %q (%v)", left, err)
	}
	return all
}

// example reads the first block of YAML in a document.
func example(t *testing.T, path string, into any) {
	t.Helper()
	_, text, found := strings.Cut(read(t, path), "```yaml\n")
	text, _, ended := strings.Cut(text, "\n```\n")
	if !found || !ended {
		t.Fatalf("%s has no block of YAML", path)
	}
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// TestGitHubForm reads the action without running it.
func TestGitHubForm(t *testing.T) {
	t.Parallel()
	a := newRunner(t).action
	used := make(map[string]bool)
	if a.Runs.Using != "composite" || len(a.Runs.Steps) == 0 {
		t.Fatalf("using %q, %d steps", a.Runs.Using, len(a.Runs.Steps))
	}
	for _, step := range a.Runs.Steps {
		if step.Shell != "bash" {
			t.Errorf("the shell of a step is %q", step.Shell)
		}
		// What an expression inserts into a script is run as code.
		if found := expression.FindString(step.Run); found != "" {
			t.Errorf("a script has the expression %s", found)
		}
		shellcheck(t, "bash", step.Run)
		for _, text := range step.Env {
			for _, found := range expression.FindAllStringSubmatch(text, -1) {
				used[found[1]] = true
			}
		}
	}
	for name, input := range a.Inputs {
		if !used["inputs."+name] || input.Description == "" {
			t.Errorf("the input %s is unused or not described", name)
		}
	}
	var shown workflow
	example(t, "github/README.md", &shown)
	var commands []string
	for name, job := range shown.Jobs {
		for _, step := range job.Steps {
			if !strings.Contains(step.Uses, "/integrations/github@") {
				continue
			}
			commands = append(commands, step.With["command"])
			for input := range step.With {
				if _, known := a.Inputs[input]; !known {
					t.Errorf("the job %s of README.md has the input %s", name, input)
				}
			}
		}
	}
	slices.Sort(commands)
	want := []string{"attach", "compare", "digest", "list", "scan", "sign-digests"}
	if !slices.Equal(commands, want) {
		t.Errorf("the workflow of README.md uses %q, want %q", commands, want)
	}
}

// TestGitHubWorkflow runs the commands of the action one after the other, as a workflow does whose
// job with the key has no modules.
func TestGitHubWorkflow(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	_, cert := key.Files(t)
	r := newRunner(t)
	tree := filepath.Join(r.workspace, "root/lib/modules", kver)
	install(t, tree, "xz")
	write(t, filepath.Join(r.workspace, "-cert.pem"), read(t, cert), 0o644)
	step := func(command string, inputs map[string]string) result {
		t.Helper()
		all := map[string]string{"command": command, "program": program, "tree": "root/lib/modules/" + kver,
			"cert": "./-cert.pem"}
		for name, value := range inputs {
			all[name] = value
		}
		return r.run(t, all)
	}
	step("list", map[string]string{"list": "first"}).refuses(t, 0, "")
	step("digest", nil).refuses(t, 0, "took the sha512 digests of 3 modules")
	step("sign-digests", map[string]string{"key": string(key.KeyPEM), "tree": ""}).refuses(t, 0, "signed 3 digests")
	step("attach", nil).refuses(t, 0, "verified 3 modules against 1 certificate")
	signedBy(t, tree, cert)
	step("verify", nil).refuses(t, 0, "all trusted")
	step("scan", map[string]string{"paths": "root\n\n"}).refuses(t, 0, "")

	// The reproducibility gate does not see signatures, and sees all else.
	step("list", map[string]string{"list": "second"}).refuses(t, 0, "")
	step("compare", map[string]string{"paths": "first\nsecond\n"}).refuses(t, 0, "")
	if err := os.Remove(filepath.Join(tree, "kernel/ring.ko.xz")); err != nil {
		t.Fatal(err)
	}
	order := filepath.Join(tree, "modules.order")
	write(t, order, strings.ReplaceAll(read(t, order), "kernel/ring.ko\n", ""), 0o644)
	step("list", map[string]string{"list": "third"}).refuses(t, 0, "")
	step("compare", map[string]string{"paths": "first\nthird\n"}).refuses(t, 4, "ring.ko")

	// What must fail.
	write(t, filepath.Join(r.workspace, "root/usr/src/signing_key.pem"), string(key.KeyPEM), 0o600)
	step("scan", map[string]string{"paths": "root"}).refuses(t, 4, "signing_key.pem")
	step("attach", nil).refuses(t, 1, "ring.ko")
	step("sign-digests", nil).refuses(t, 2, "the input key is empty")
	step("sign", map[string]string{"key": "-----BEGIN PRIVATE KEY-----\n"}).refuses(t, 1, "key")
	step("verify", map[string]string{"cert": ""}).refuses(t, 2, "the input cert is empty, and verify needs it")
	step("compare", map[string]string{"paths": "first"}).refuses(t, 2, "names 1 lists")
	step("$(touch injected)", nil).refuses(t, 2, "unknown command")
	step("verify", map[string]string{"tree": "$(touch injected)`touch injected`"}).refuses(t, 1, "no such file")
	if _, err := os.Stat(filepath.Join(r.workspace, "injected")); err == nil {
		t.Error("an input was run as code")
	}
}

// TestGitHubSign signs where the key is, with a passphrase.
func TestGitHubSign(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	private, cert := key.Files(t)
	locked := testmod.Run(t, testmod.Program(t, "openssl", "openssl"), "pkcs8", "-topk8", "-in", private,
		"-passout", "pass:open sesame", "-v2", "aes-256-cbc")
	r := newRunner(t)
	install(t, filepath.Join(r.workspace, "modules"), "plain")
	inputs := map[string]string{"command": "sign", "program": program, "tree": "modules", "cert": cert,
		"key": string(locked), "passphrase": "open barley"}
	bad := r.run(t, inputs)
	bad.refuses(t, 1, "passphrase")
	if strings.Contains(bad.output, "barley") {
		t.Errorf("it shows the passphrase:\n%s", bad.output)
	}
	unsigned(t, r.workspace)
	inputs["passphrase"] = "open sesame"
	r.run(t, inputs).refuses(t, 0, "all trusted")
	signedBy(t, r.workspace, cert)
}

// workflow is what the runner reads of a workflow.
type workflow struct {
	Jobs map[string]struct {
		Steps []struct {
			Uses, Run string
			With      map[string]string
		}
	}
}

// TestGitHubBuild runs the steps of the job in check.yml, in which the action builds modsign from its own
// source.
func TestGitHubBuild(t *testing.T) {
	testmod.Slow(t, "it builds modsign")
	t.Parallel()
	testmod.Program(t, "modinfo", "kmod")
	var check workflow
	if err := yaml.Unmarshal([]byte(read(t, "../.github/workflows/check.yml")), &check); err != nil {
		t.Fatal(err)
	}
	r := newRunner(t)
	install(t, filepath.Join(r.workspace, "testdata/modules/amd64-6.12"), "xz")
	if err := os.Rename(filepath.Join(r.workspace, "testdata/modules/amd64-6.12/kernel"),
		filepath.Join(r.workspace, "testdata/modules/amd64-6.12/xz")); err != nil {
		t.Fatal(err)
	}
	used := 0
	for _, step := range check.Jobs["action"].Steps {
		switch {
		case step.Uses == "./integrations/github":
			used++
			r.run(t, step.With).refuses(t, 0, "modsign: ")
		case step.Run != "":
			ok(t, r.workspace, nil, "bash", "-e", "-c", step.Run)
		case !strings.HasPrefix(step.Uses, "actions/"): // of GitHub: they bring source and Go
			t.Errorf("unknown step %+v", step)
		}
	}
	if used != 4 {
		t.Errorf("the action was used %d times", used)
	}
	signedBy(t, filepath.Join(r.workspace, "modules"), filepath.Join(r.workspace, "cert.pem"))
	if _, err := os.Stat(filepath.Join(r.temp, "modsign/modsign")); err != nil {
		t.Error(err)
	}
}

// job is what GitLab reads of a job.
type job struct {
	Extends      string
	Image        string
	Variables    map[string]string
	BeforeScript []string `yaml:"before_script"`
	Script       []string
	Artifacts    struct{ Paths []string }
}

// TestGitLab runs the scripts of the template as GitLab's runner does: the lines of before_script
// and script in one bash, with the variables in the environment.
func TestGitLab(t *testing.T) {
	t.Parallel()
	jobs := make(map[string]job)
	if err := yaml.Unmarshal([]byte(read(t, "gitlab/modsign.gitlab-ci.yml")), &jobs); err != nil {
		t.Fatal(err)
	}
	key := testmod.NewKey(t, "rsa:2048")
	_, cert := key.Files(t)
	dir := t.TempDir()
	ran := map[string]bool{".modsign": true}
	play := func(name string, variables ...string) result {
		t.Helper()
		j, base := jobs[name], jobs[jobs[name].Extends]
		if j.Extends != ".modsign" || len(j.Script) == 0 {
			t.Fatalf("%s extends %q and has %d lines", name, j.Extends, len(j.Script))
		}
		ran[name] = true
		env := []string{"TMPDIR=" + t.TempDir()}
		for name, value := range base.Variables {
			env = append(env, name+"="+value)
		}
		script := "set -eo pipefail\n" + strings.Join(slices.Concat(base.BeforeScript, j.Script), "\n") + "\n"
		shellcheck(t, "bash", script)
		r := run(t, dir, append(env, variables...), "bash", "-c", script)
		for _, path := range j.Artifacts.Paths {
			name, isVariable := strings.CutPrefix(path, "$")
			if _, err := os.Stat(filepath.Join(dir, base.Variables[name])); r.code == 0 && (!isVariable || err != nil) {
				t.Errorf("the artifact %s of %s: %v", path, name, err)
			}
		}
		return r
	}
	install(t, filepath.Join(dir, "root/lib/modules", kver), "zst")
	write(t, filepath.Join(dir, "cert.pem"), read(t, cert), 0o644)
	secret := filepath.Join(t.TempDir(), "variable") // as GitLab writes a variable of the type File
	write(t, secret, string(key.KeyPEM), 0o666)
	if err := os.Chmod(secret, 0o666); err != nil {
		t.Fatal(err)
	}
	tree, public := "MODSIGN_TREE=root/lib/modules/"+kver, "MODSIGN_CERT=cert.pem"

	play(".modsign-list", tree).refuses(t, 0, "")
	play(".modsign-digest", tree, public).refuses(t, 0, "took the sha512 digests of 3 modules")
	play(".modsign-sign-digests", public, "MODSIGN_KEY="+secret).refuses(t, 0, "signed 3 digests")
	play(".modsign-sign-digests", public, "MODSIGN_KEY=/nonexistent").refuses(t, 1, "nonexistent")
	play(".modsign-attach", tree, public).refuses(t, 0, "all trusted")
	signedBy(t, filepath.Join(dir, "root"), cert)
	play(".modsign-scan").refuses(t, 0, "scanned")

	play(".modsign-list", tree, "MODSIGN_LIST=other").refuses(t, 0, "")
	play(".modsign-compare", "MODSIGN_OTHER_LIST=other").refuses(t, 0, "")
	if err := os.Rename(filepath.Join(dir, "root/lib/modules", kver, "kernel/ring.ko.zst"), secret+".ko.zst"); err != nil {
		t.Fatal(err)
	}
	order := filepath.Join(dir, "root/lib/modules", kver, "modules.order")
	write(t, order, strings.ReplaceAll(read(t, order), "kernel/ring.ko\n", ""), 0o644)
	play(".modsign-list", tree, "MODSIGN_LIST=other").refuses(t, 0, "")
	play(".modsign-compare", "MODSIGN_OTHER_LIST=other").refuses(t, 4, "ring.ko")
	write(t, filepath.Join(dir, "root/key.pem"), string(key.KeyPEM), 0o600)
	play(".modsign-scan", "MODSIGN_SCAN=root").refuses(t, 4, "key.pem")

	for name := range jobs {
		if !ran[name] {
			t.Errorf("%s was not run", name)
		}
	}

	var pipeline map[string]yaml.Node
	example(t, "gitlab/README.md", &pipeline)
	extended := 0
	for name, node := range pipeline {
		var j job
		if name == "include" || node.Decode(&j) != nil || j.Extends == "" {
			continue
		}
		extended++
		if _, known := jobs[j.Extends]; !known {
			t.Errorf("the job %s of README.md extends %s", name, j.Extends)
		}
	}
	if extended != len(jobs)-1 {
		t.Errorf("the pipeline of README.md extends %d jobs, and there are %d", extended, len(jobs)-1)
	}
}
