// SPDX-License-Identifier: GPL-2.0-only
#include "ring.h"

int ring_put(struct ring *r, unsigned char b)
{
	if (r->head - r->tail == sizeof(r->bytes))
		return -1;
	r->bytes[r->head++ % sizeof(r->bytes)] = b;
	return 0;
}

int ring_take(struct ring *r, unsigned char *b)
{
	if (r->head == r->tail)
		return -1;
	*b = r->bytes[r->tail++ % sizeof(r->bytes)];
	return 0;
}
