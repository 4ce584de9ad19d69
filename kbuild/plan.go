package kbuild

import (
	"slices"
	"strings"
)

// Work is what a goal of the kernel's Makefile means for keys and modules.
type Work uint8

const (
	Other   Work = iota // nothing
	Build               // may link a kernel, which needs the certificate
	Package             // builds, and installs by a make of its own
	Install             // modules_install
	Sign                // modules_sign
	Clean               // clean
	Purge               // mrproper and distclean, which leave the source alone
)

// Step is a part of a call of make: goals that one make can have.
type Step struct {
	Work  Work
	Goals []string // none stands for the default goal
}

// Plan splits the goals of a call of make into steps, to be taken in this order:
// modules are signed before the next goal sees them, and a configuration is
// there before it is read. Goals that have no need of it stay together, for make
// to do side by side. modules_sign beside modules_install is the same as
// modules_install alone, as in Kbuild.
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

// others are goals that neither link a kernel nor install modules nor clean up,
// as make's patterns. The hook has them too, and leaves them to Makefile.
var others = []string{
	"help%", "%help", "kernelrelease", "kernelversion", "image_name", "outputmakefile", "%config",
	"cscope", "gtags", "tags", "TAGS", "%docs", "check%", "coccicheck", "includecheck", "versioncheck", "export_report",
	"headers", "headers_%", "archheaders", "archscripts", "%asm-generic", "dt_binding_check", "dtbs", "dtbs_%",
	"rust%", "%src-pkg", "scripts", "scripts_%", "prepare%", "archprepare", "modules_prepare",
	"compile_commands.json", "clang-%", "nsdeps", "kselftest%", "tools/%", "run-command",
	"%.a", "%.dtb", "%.dtbo", "%.i", "%.ko", "%.lds", "%.ll", "%.lst", "%.mod", "%.o", "%.rsi", "%.s", "%.symtypes", "%/",
}

// match reports whether a goal fits a pattern of make, in which one % stands for
// any text but none.
func match(pattern, goal string) bool {
	before, after, ok := strings.Cut(pattern, "%")
	if !ok {
		return goal == pattern
	}
	return len(goal) > len(before)+len(after) && strings.HasPrefix(goal, before) && strings.HasSuffix(goal, after)
}
