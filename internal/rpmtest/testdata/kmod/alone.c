// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <linux/moduleparam.h>

static int level = 1;
module_param(level, int, 0444);
MODULE_PARM_DESC(level, "any number");

static int __init modsign_alone_init(void)
{
	pr_info("modsign_alone: level %d\n", level);
	return 0;
}

static void __exit modsign_alone_exit(void)
{
}

module_init(modsign_alone_init);
module_exit(modsign_alone_exit);
MODULE_DESCRIPTION("stands alone");
MODULE_LICENSE("GPL");
