/* SPDX-License-Identifier: GPL-2.0-only */
/* A ring of bytes. */
#ifndef RING_H
#define RING_H

struct ring {
	unsigned int head;	/* bytes put so far */
	unsigned int tail;	/* bytes taken so far */
	unsigned char bytes[64];
};

/* ring_put and ring_take return 0, or -1 if the ring is full or empty. */
int ring_put(struct ring *r, unsigned char b);
int ring_take(struct ring *r, unsigned char *b);

#endif
