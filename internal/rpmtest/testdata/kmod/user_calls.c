// SPDX-License-Identifier: GPL-2.0
#include <linux/kernel.h>

int modsign_base_sum(const int *values, int count);
int modsign_user_calls(void);

int modsign_user_calls(void)
{
	static const int values[] = { 1, 2, 3 };

	return modsign_base_sum(values, ARRAY_SIZE(values));
}
