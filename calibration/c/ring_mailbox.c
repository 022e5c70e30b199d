/* A bounded mailbox shared by threads.
**
** Producers are microphone callbacks, consumers are encoders. Three policies for
** overflow exist because three teams asked for three different things:
**
**   WAIT     the sender sleeps until there is room (file transcoding)
**   REFUSE   the sender is told no at once         (control messages)
**   EVICT    the oldest entry is thrown away       (live audio, where late
**            data is worse than missing data)
**
** Closing is a first-class event. After mailbox_close() nobody can post any
** more, yet whatever is queued may still be collected; only when it runs dry do
** receivers learn about the closure.
*/
#define _POSIX_C_SOURCE 200809L
#include <time.h>
#include <errno.h>
#include <string.h>
#include <stdlib.h>
#include <stdio.h>
#include <pthread.h>

typedef enum { WAIT, REFUSE, EVICT } overflow_t;

typedef struct mailbox
{
	pthread_mutex_t lock;
	pthread_cond_t  not_empty;
	pthread_cond_t  not_full;
	unsigned char  *slots;
	size_t          width;      /* bytes per message       */
	size_t          mask;       /* slot count minus one    */
	size_t          head, tail; /* free-running, tail<=head */
	overflow_t      policy;
	int             closed;
	unsigned long   evicted;
} mailbox;

/* Right even when head overflows, since slot counts are powers of two. */
#define FILL(m)     ((m)->head - (m)->tail)
#define SLOT(m, i)  ((m)->slots + ((i) & (m)->mask) * (m)->width)

int mailbox_init(mailbox *m, size_t capacity, size_t width, overflow_t policy)
{
	size_t n = 1;
	pthread_condattr_t monotonic;

	if (capacity == 0 || width == 0)
		return EINVAL;
	while (n < capacity)
		n <<= 1;

	memset(m, 0, sizeof *m);
	m->slots = calloc(n, width);
	if (m->slots == NULL)
		return ENOMEM;
	m->mask   = n - 1;
	m->width  = width;
	m->policy = policy;

	/* Timeouts must survive somebody setting the wall clock. */
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->not_empty, &monotonic);
	pthread_cond_init(&m->not_full, &monotonic);
	pthread_condattr_destroy(&monotonic);
	return 0;
}

void mailbox_free(mailbox *m)
{
	pthread_cond_destroy(&m->not_full);
	pthread_cond_destroy(&m->not_empty);
	pthread_mutex_destroy(&m->lock);
	free(m->slots);
}

static struct timespec deadline_in(long ms)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec  += ms / 1000;
	t.tv_nsec += ms % 1000 * 1000000L;
	if (t.tv_nsec >= 1000000000L)
	{
		t.tv_nsec -= 1000000000L;
		t.tv_sec  += 1;
	}
	return t;
}

/* 0, EPIPE once closed, or EAGAIN under REFUSE. */
int mailbox_post(mailbox *m, const void *msg)
{
	int rc = 0;

	pthread_mutex_lock(&m->lock);
	while (!m->closed && FILL(m) > m->mask)
	{
		if (m->policy == REFUSE)
		{
			rc = EAGAIN;
			goto out;
		}
		if (m->policy == EVICT)
		{
			m->tail++;
			m->evicted++;
			break;
		}
		pthread_cond_wait(&m->not_full, &m->lock);
	}
	if (m->closed)
		rc = EPIPE;
	else
	{
		memcpy(SLOT(m, m->head), msg, m->width);
		m->head++;
		pthread_cond_signal(&m->not_empty);
	}
out:
	pthread_mutex_unlock(&m->lock);
	return rc;
}

/*
** Collect up to `most` messages, blocking for the first of them only.
** Grabbing a batch per lock beat every lock-free cleverness we tried.
**
** Returns the number copied. Zero means either timed out (*why = ETIMEDOUT) or
** closed and drained (*why = EPIPE). A negative ms waits indefinitely.
*/
size_t mailbox_take(mailbox *m, void *into, size_t most, long ms, int *why)
{
	size_t got = 0;
	int rc = 0;
	struct timespec until = deadline_in(ms < 0 ? 0 : ms);

	pthread_mutex_lock(&m->lock);
	while (FILL(m) == 0 && !m->closed && rc != ETIMEDOUT)
		rc = ms < 0 ? pthread_cond_wait(&m->not_empty, &m->lock)
					: pthread_cond_timedwait(&m->not_empty, &m->lock, &until);

	for (; got < most && FILL(m) > 0; got++, m->tail++)
		memcpy((char *)into + got * m->width, SLOT(m, m->tail), m->width);

	if (got == 0 && why)
		*why = m->closed ? EPIPE : ETIMEDOUT;
	if (got > 0)
		pthread_cond_broadcast(&m->not_full);
	pthread_mutex_unlock(&m->lock);
	return got;
}

void mailbox_close(mailbox *m)
{
	pthread_mutex_lock(&m->lock);
	m->closed = 1;
	pthread_cond_broadcast(&m->not_empty);
	pthread_cond_broadcast(&m->not_full);
	pthread_mutex_unlock(&m->lock);
}

/* Exercise: four talkers, two listeners; every number must arrive. */
enum { TALKERS = 4, LISTENERS = 2, EACH = 50000 };

static mailbox box;
static unsigned char arrivals[TALKERS * EACH];

static void *talk(void *arg)
{
	int base = *(int *)arg * EACH;
	for (int i = base; i < base + EACH; i++)
		if (mailbox_post(&box, &i) != 0)
			abort();
	return NULL;
}

static void *listen_in(void *arg)
{
	int batch[16], why = 0;
	size_t n, *total = arg;

	for (;;)
	{
		n = mailbox_take(&box, batch, 16, 250, &why);
		if (n == 0 && why == EPIPE)
			return NULL;
		for (size_t k = 0; k < n; k++)
			arrivals[batch[k]]++;   /* distinct indices, thus no data race */
		*total += n;
	}
}

int main(void)
{
	pthread_t talker[TALKERS], listener[LISTENERS];
	int id[TALKERS] = { 0, 1, 2, 3 };
	size_t tally[LISTENERS] = { 0 };

	if (mailbox_init(&box, 100, sizeof(int), WAIT) != 0)
		return EXIT_FAILURE;
	for (int i = 0; i < LISTENERS; i++)
		pthread_create(&listener[i], NULL, listen_in, &tally[i]);
	for (int i = 0; i < TALKERS; i++)
		pthread_create(&talker[i], NULL, talk, &id[i]);
	for (int i = 0; i < TALKERS; i++)
		pthread_join(talker[i], NULL);
	mailbox_close(&box);
	for (int i = 0; i < LISTENERS; i++)
		pthread_join(listener[i], NULL);

	if (memchr(arrivals, 0, sizeof arrivals) != NULL)
		return EXIT_FAILURE;
	printf("all accounted for, split %zu / %zu\n", tally[0], tally[1]);
	mailbox_free(&box);
	return EXIT_SUCCESS;
}
