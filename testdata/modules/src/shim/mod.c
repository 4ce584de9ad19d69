// SPDX-License-Identifier: GPL-2.0-only
/*
 * Linked to every module, as the kernel's build links a generated file to it;
 * KBUILD_MODNAME, DEPENDS and VERMAGIC are set on the command line.
 */
#include <linux/module.h>

MODULE_INFO(depends, DEPENDS);
MODULE_INFO(name, KBUILD_MODNAME);
MODULE_INFO(vermagic, VERMAGIC);

struct module __this_module __attribute__((section(".gnu.linkonce.this_module"), used)) = {
	.name = KBUILD_MODNAME,
	.init = init_module,
	.exit = cleanup_module,
};
