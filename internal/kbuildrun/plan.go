package kbuildrun

import (
	"slices"
	"strings"
)

// Work is what a goal of the kernel's Makefile does to keys and modules.
type Work uint8

const (
	Other   Work = iota // nothing
	Build               // may link a kernel, which needs the certificate
	Package             // builds, and installs with a make of its own
	Install             // modules_install
	Sign                // modules_sign
	Clean               // clean
	Purge               // mrproper and distclean, which leave the source alone
)

// A Step is a part of a call of make: goals that one make can reach together.
type Step struct {
	Work  Work
	Goals []string // empty for the default goal
}

// Plan splits the goals of a call of make into steps, to be taken in this order. So
// modules are signed before the next goal sees them, and a configuration is complete
// before modsign reads it. Other goals stay together, for make to reach in parallel. As in
// Kbuild, modules_install includes modules_sign.
func Plan(goals []string) []Step {
	if len(goals) == 0 {
		return []Step{{Work: Build}}
	}
	var steps []Step
	installs := slices.Contains(goals, "modules_install")
	for _, goal := range goals {
		work := workOf(goal)
		if work == Sign && installs {
			continue
		}
		if n := len(steps); n > 0 && steps[n-1].Work == work && (work == Build || work == Other) {
			steps[n-1].Goals = append(steps[n-1].Goals, goal)
			continue
		}
		steps = append(steps, Step{Work: work, Goals: []string{goal}})
	}
	return steps
}

func workOf(goal string) Work {
	switch goal {
	case "modules_install":
		return Install
	case "modules_sign":
		return Sign
	case "clean":
		return Clean
	case "mrproper", "distclean":
		return Purge
	}
	if strings.HasPrefix(goal, "certs/") {
		return Build
	}
	if strings.HasSuffix(goal, "pkg") && !strings.HasSuffix(goal, "src-pkg") {
		return Package
	}
	matches := func(pattern string) bool { return match(pattern, goal) }
	if slices.ContainsFunc(others, matches) || strings.HasSuffix(goal, "clean") || strings.HasSuffix(goal, "install") {
		return Other
	}
	return Build
}

// others are patterns of make for goals that neither link a kernel nor install modules nor
// clean. The hook leaves them to Makefile.
var others = []string{
	"help%", "%help", "kernelrelease", "kernelversion", "image_name", "outputmakefile", "%config",
	"cscope", "gtags", "tags", "TAGS", "%docs", "check%", "coccicheck", "includecheck", "versioncheck", "export_report",
	"headers", "headers_%", "archheaders", "archscripts", "%asm-generic", "dt_binding_check", "dtbs", "dtbs_%",
	"rust%", "%src-pkg", "scripts", "scripts_%", "prepare%", "archprepare", "modules_prepare",
	"compile_commands.json", "clang-%", "nsdeps", "kselftest%", "tools/%", "run-command",
	"%.a", "%.dtb", "%.dtbo", "%.i", "%.ko", "%.lds", "%.ll", "%.lst", "%.mod", "%.o", "%.rsi", "%.s", "%.symtypes", "%/",
}

// match reports whether a goal matches a pattern of make, in which % stands for any text
// but an empty one.
func match(pattern, goal string) bool {
	before, after, ok := strings.Cut(pattern, "%")
	if !ok {
		return goal == pattern
	}
	return len(goal) > len(before)+len(after) && strings.HasPrefix(goal, before) && strings.HasSuffix(goal, after)
}
