// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

int modsign_base_sum(const int *values, int count);

int modsign_base_sum(const int *values, int count)
{
	int sum = 0;

	while (count-- > 0)
		sum += *values++;
	return sum;
}
EXPORT_SYMBOL_GPL(modsign_base_sum);

MODULE_DESCRIPTION("exports a function");
MODULE_LICENSE("GPL");
