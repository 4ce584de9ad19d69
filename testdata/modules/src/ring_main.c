// SPDX-License-Identifier: GPL-2.0-only
/* A module of several files: fills a ring and empties it again. */
#include <linux/module.h>
#include <linux/printk.h>
#include "ring.h"

static struct ring ring;

static int __init ring_init(void)
{
	unsigned int put = 0, taken = 0;
	unsigned char b;

	while (ring_put(&ring, put) == 0)
		put++;
	while (ring_take(&ring, &b) == 0)
		taken++;
	pr_info("%u bytes in, %u bytes out\n", put, taken);
	return 0;
}
module_init(ring_init);

static void __exit ring_exit(void)
{
}
module_exit(ring_exit);

MODULE_DESCRIPTION("Fills a ring of bytes and empties it");
MODULE_AUTHOR("The modsign authors");
MODULE_VERSION("1.0");
MODULE_LICENSE("GPL");
