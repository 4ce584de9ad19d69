// SPDX-License-Identifier: GPL-2.0-only
/* A module with a parameter and an exported symbol. */
#include <linux/module.h>
#include <linux/printk.h>
#include "hello.h"

static char *whom = "world";
module_param(whom, charp, 0444);
MODULE_PARM_DESC(whom, "who is greeted");

static unsigned int greetings;

unsigned int hello_greet(void)
{
	pr_info("hello, %s\n", whom);
	return ++greetings;
}
EXPORT_SYMBOL_GPL(hello_greet);

static int __init hello_init(void)
{
	hello_greet();
	return 0;
}
module_init(hello_init);

static void __exit hello_exit(void)
{
	pr_info("goodbye after %u greetings\n", greetings);
}
module_exit(hello_exit);

MODULE_DESCRIPTION("Greets, and lets other modules greet");
MODULE_AUTHOR("The modsign authors");
MODULE_LICENSE("GPL");
