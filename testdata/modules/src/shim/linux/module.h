/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the modules here need of the kernel's headers, made up so that the
 * object files get the shape of a kernel module (sections, symbols,
 * relocations) on an architecture for which no kernel headers are at hand. The
 * layouts are not those of any kernel: no kernel loads the result.
 */
#ifndef SHIM_LINUX_MODULE_H
#define SHIM_LINUX_MODULE_H

#ifndef KBUILD_MODNAME
#define KBUILD_MODNAME "unnamed"
#endif

#define __init __attribute__((section(".init.text")))
#define __exit __attribute__((section(".exit.text"), used))

#define SHIM_CAT(a, b) a##b
#define SHIM_UNIQUE(name, line) SHIM_CAT(name, line)

/* A NUL-terminated "tag=value" of .modinfo. */
#define SHIM_INFO(name, text) \
	static const char name[] __attribute__((section(".modinfo"), used, aligned(1))) = text

#define MODULE_INFO(tag, value) SHIM_INFO(SHIM_UNIQUE(shim_info_, __LINE__), #tag "=" value)
#define MODULE_LICENSE(s) MODULE_INFO(license, s)
#define MODULE_AUTHOR(s) MODULE_INFO(author, s)
#define MODULE_DESCRIPTION(s) MODULE_INFO(description, s)
#define MODULE_VERSION(s) MODULE_INFO(version, s)
#define MODULE_PARM_DESC(name, s) SHIM_INFO(shim_parm_##name, "parm=" #name ":" s)

struct shim_param {
	const char *name;
	const char *type;
	void *where;
	unsigned int mode;
};

#define module_param(name, kind, permissions) \
	SHIM_INFO(shim_parmtype_##name, "parmtype=" #name ":" #kind); \
	static const struct shim_param shim_param_##name \
		__attribute__((section("__param"), used)) = { #name, #kind, &name, permissions }

struct shim_symbol {
	const void *where;
	const char *name;
};

#define EXPORT_SYMBOL_GPL(symbol) \
	static const char shim_name_##symbol[] \
		__attribute__((section("__ksymtab_strings"), used, aligned(1))) = #symbol; \
	static const struct shim_symbol shim_export_##symbol \
		__attribute__((section("___ksymtab_gpl+" #symbol), used)) = { &symbol, shim_name_##symbol }

#define module_init(function) int init_module(void) __attribute__((alias(#function)))
#define module_exit(function) void cleanup_module(void) __attribute__((alias(#function)))

int init_module(void);
void cleanup_module(void);

struct module {
	int state;
	char name[64 - sizeof(long)];
	int (*init)(void);
	void (*exit)(void);
	unsigned long reserved[32];
};

#endif
