/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SHIM_LINUX_PRINTK_H
#define SHIM_LINUX_PRINTK_H

int _printk(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define pr_info(format, ...) _printk("\0016" format, ##__VA_ARGS__)

#endif
