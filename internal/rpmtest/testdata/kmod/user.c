// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

int modsign_user_calls(void);

static int __init modsign_user_init(void)
{
	pr_info("modsign_user: %d\n", modsign_user_calls());
	return 0;
}

static void __exit modsign_user_exit(void)
{
}

module_init(modsign_user_init);
module_exit(modsign_user_exit);
MODULE_DESCRIPTION("uses the function of another module");
MODULE_LICENSE("GPL");
