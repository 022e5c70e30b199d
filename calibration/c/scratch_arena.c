/*
 * scratch_arena.c: region allocation for a parser that runs per request.
 *
 * Memory is handed out by bumping a pointer through a chain of chunks and is
 * never freed piecemeal. Instead the caller takes a mark, does some work, and
 * rewinds to the mark. Chunks emptied by a rewind stay on a spare list, hence
 * a steady workload soon stops calling malloc altogether.
 *
 * When ARENA_PARANOID is defined, rewound bytes are overwritten so dangling
 * pointers show up as 0xDD rather than as plausible stale data.
 */
#include <assert.h>
#include <stdarg.h>
#include <stdalign.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_MIN ((size_t)1 << 14)

struct chunk {
	struct chunk *older;
	size_t cap;
	size_t used;
	alignas(max_align_t) unsigned char bytes[];
};

struct arena {
	struct chunk *top;
	struct chunk *spare;
	size_t budget;          /* total bytes we may ask of malloc; 0 = no limit */
	size_t held;
	void (*on_exhausted)(struct arena *, size_t wanted);
};

struct arena_mark {
	struct chunk *top;
	size_t used;
};

static struct chunk *take_spare(struct arena *a, size_t need)
{
	/* First fit. The list rarely has more than three members. */
	for (struct chunk **link = &a->spare; *link; link = &(*link)->older) {
		struct chunk *c = *link;
		if (c->cap >= need) {
			*link = c->older;
			return c;
		}
	}
	return NULL;
}

static struct chunk *grow(struct arena *a, size_t need)
{
	struct chunk *c = take_spare(a, need);

	if (!c) {
		/* Double each time so that n bytes cost O(log n) mallocs. */
		size_t cap = a->top ? a->top->cap * 2 : CHUNK_MIN;
		if (cap < need)
			cap = need;
		if (a->budget && a->held + cap > a->budget) {
			cap = need;                 /* retry with a snug fit */
			if (cap > a->budget - a->held)
				return NULL;
		}
		if (cap > SIZE_MAX - sizeof *c)
			return NULL;
		c = malloc(sizeof *c + cap);
		if (!c)
			return NULL;
		c->cap = cap;
		a->held += cap;
	}
	c->used = 0;
	c->older = a->top;
	return a->top = c;
}

/* align has to be a power of two, no larger than a page. */
void *arena_alloc(struct arena *a, size_t size, size_t align)
{
	assert(align && (align & (align - 1)) == 0);

	for (struct chunk *c = a->top; c; ) {
		uintptr_t at = (uintptr_t)c->bytes + c->used;
		size_t pad = (size_t)(-at & (align - 1));
		if (pad <= c->cap - c->used && size <= c->cap - c->used - pad) {
			void *p = c->bytes + c->used + pad;
			c->used += pad + size;
			return p;
		}
		break;  /* only the newest chunk is ever considered */
	}
	if (size > SIZE_MAX - align || !grow(a, size + align)) {
		if (a->on_exhausted)
			a->on_exhausted(a, size);
		return NULL;
	}
	return arena_alloc(a, size, align);
}

#define ARENA_NEW(a, type, n) \
	((type *)arena_calloc((a), (n), sizeof(type), alignof(type)))

void *arena_calloc(struct arena *a, size_t n, size_t each, size_t align)
{
	if (each && n > SIZE_MAX / each)
		return NULL;
	void *p = arena_alloc(a, n * each, align);
	return p ? memset(p, 0, n * each) : NULL;
}

/*
 * Resize the most recent allocation in place where possible. Parsers building
 * token lists benefit hugely: nothing else is allocated between two pushes, so
 * the copy at the bottom almost never happens.
 */
void *arena_extend(struct arena *a, void *old, size_t was, size_t now, size_t align)
{
	struct chunk *c = a->top;

	if (old && c && (unsigned char *)old + was == c->bytes + c->used) {
		size_t start = (size_t)((unsigned char *)old - c->bytes);
		if (now <= c->cap - start) {
			c->used = start + now;
			return old;
		}
	} else if (old && now <= was) {
		return old;
	}
	void *fresh = arena_alloc(a, now, align);
	if (fresh && old)
		memcpy(fresh, old, was < now ? was : now);
	return fresh;
}

struct arena_mark arena_tell(const struct arena *a)
{
	return (struct arena_mark){ a->top, a->top ? a->top->used : 0 };
}

void arena_rewind(struct arena *a, struct arena_mark m)
{
	while (a->top != m.top) {
		struct chunk *gone = a->top;
		assert(gone && "mark belongs to another arena, or was already passed");
		a->top = gone->older;
#ifdef ARENA_PARANOID
		memset(gone->bytes, 0xDD, gone->used);
#endif
		gone->older = a->spare;
		a->spare = gone;
	}
	if (a->top) {
#ifdef ARENA_PARANOID
		memset(a->top->bytes + m.used, 0xDD, a->top->used - m.used);
#endif
		a->top->used = m.used;
	}
}

static void drop_list(struct chunk *c)
{
	while (c) {
		struct chunk *next = c->older;
		free(c);
		c = next;
	}
}

void arena_destroy(struct arena *a)
{
	drop_list(a->top);
	drop_list(a->spare);
	memset(a, 0, sizeof *a);
}

/* printf into the region; the string lives until somebody rewinds past it */
char *arena_printf(struct arena *a, const char *fmt, ...)
{
	va_list probe, real;

	va_start(probe, fmt);
	va_copy(real, probe);
	int len = vsnprintf(NULL, 0, fmt, probe);
	va_end(probe);

	char *s = len < 0 ? NULL : arena_alloc(a, (size_t)len + 1, 1);
	if (s)
		vsnprintf(s, (size_t)len + 1, fmt, real);
	va_end(real);
	return s;
}

#ifdef ARENA_DEMO
int main(void)
{
	struct arena scratch = { .budget = 1 << 20 };
	char *greeting = arena_printf(&scratch, "%s, %d oysters", "hello", 12);
	struct arena_mark before = arena_tell(&scratch);

	for (int round = 0; round < 1000; round++) {
		double *grid = ARENA_NEW(&scratch, double, 4000);
		assert(grid && (uintptr_t)grid % alignof(double) == 0 && grid[3999] == 0.0);
		grid[3999] = round;
		arena_rewind(&scratch, before);
	}
	printf("%s; %zu bytes from the system\n", greeting, scratch.held);
	arena_destroy(&scratch);
	return 0;
}
#endif
