/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef HELLO_H
#define HELLO_H

/* hello_greet greets once more and returns how often that was done. */
unsigned int hello_greet(void);

#endif
