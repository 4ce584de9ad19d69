// SPDX-License-Identifier: GPL-2.0-only
/* A module that needs a symbol of another one, hello. */
#include <linux/module.h>
#include <linux/printk.h>
#include "hello.h"

static int upto = 3;
module_param(upto, int, 0644);
MODULE_PARM_DESC(upto, "how often hello is to greet");

static int __init counter_init(void)
{
	unsigned int n = 0;
	int i;

	for (i = 0; i < upto; i++)
		n = hello_greet();
	pr_info("%u greetings by now\n", n);
	return 0;
}
module_init(counter_init);

static void __exit counter_exit(void)
{
}
module_exit(counter_exit);

MODULE_DESCRIPTION("Has hello greet several times");
MODULE_AUTHOR("The modsign authors");
MODULE_LICENSE("GPL");
