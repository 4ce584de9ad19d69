package kbuild

import "strings"

// Vars holds the variables of a call of make. The zero value has none.
type Vars struct {
	// Line has the variables of the command line, with references such as $(X) left in.
	Line map[string]string
	// LookupEnv looks up the environment, as the function of package os does; nil stands
	// for an empty one.
	LookupEnv func(string) (string, bool)
}

// Command looks up a variable on the command line alone, as for MODLIB, KERNELRELEASE and
// CONFIG_*, which Kbuild's makefiles assign themselves.
func (v Vars) Command(name string) (value string, ok bool) {
	value, ok = v.Line[name]
	// Make also exports the command line to the environment, with references resolved.
	if ok && strings.Contains(value, "$") {
		if resolved, exported := v.env(name); exported {
			return resolved, true
		}
	}
	return value, ok
}

// Lookup looks up a variable on the command line and then in the environment, as for
// INSTALL_MOD_PATH, INSTALL_MOD_DIR, INSTALL_MOD_STRIP, KCONFIG_CONFIG and DEPMOD.
func (v Vars) Lookup(name string) (value string, ok bool) {
	if value, ok = v.Command(name); ok {
		return value, true
	}
	return v.env(name)
}

func (v Vars) env(name string) (string, bool) {
	if v.LookupEnv == nil {
		return "", false
	}
	return v.LookupEnv(name)
}
