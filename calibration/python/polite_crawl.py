"""
polite_crawl -- a bounded asynchronous frontier

Fetching a thousand pages at once is easy; not annoying whoever runs the servers
is the problem. You supply a coroutine that downloads one address and returns
(body, links); this module decides *when* each call happens.

Rules observed:

  * no host sees two requests closer together than its own delay;
  * slow hosts are contacted less often (delay = 4 x latency), failing ones
	after ever longer rests, until we give up on them altogether;
  * every address is visited once, after normalisation.

Nothing here parses robots.txt; supply a `permit` predicate for that.
"""
import asyncio
import heapq
import logging
import posixpath
import time
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

log = logging.getLogger(__name__)

TRACKING = {"fbclid", "gclid", "ref"}
DEFAULT_PORT = {"http": 80, "https": 443}


def canonical(url, base=None):
	"""
	Make trivially different spellings of an address coincide.

	>>> canonical("HTTP://Example.ORG:80/a/./b/../c?z=1&utm_source=x&b=2#frag")
	'http://example.org/a/c?b=2&z=1'
	"""
	parts = urlsplit(urljoin(base, url) if base else url)
	scheme = parts.scheme.lower()
	if scheme not in DEFAULT_PORT or not parts.hostname:
		return None
	netloc = parts.hostname.rstrip(".")
	if parts.port and parts.port != DEFAULT_PORT[scheme]:
		netloc += ":%d" % parts.port
	path = posixpath.normpath(parts.path or "/")
	path = "/" + path.lstrip("/")  # normpath keeps a leading "//"
	if parts.path.endswith("/") and path != "/":
		path += "/"
	kept = sorted(
		(k, v)
		for k, v in parse_qsl(parts.query, keep_blank_values=True)
		if k not in TRACKING and not k.startswith("utm_")
	)
	return urlunsplit((scheme, netloc, path, urlencode(kept), ""))


class Host:
	"""Pacing state for a single server."""

	floor, ceiling, patience = 0.5, 60.0, 6

	def __init__(self):
		self.backlog = []  # heap of (depth, arrival, url, tries)
		self.delay = self.floor
		self.strikes = 0
		self.scheduled = self.busy = False

	def succeeded(self, latency):
		self.strikes = 0
		target = min(max(4 * latency, self.floor), self.ceiling)
		# Drift, don't jump: one cache hit proves little about the machine.
		self.delay += 0.3 * (target - self.delay)

	def failed(self):
		self.strikes += 1
		self.delay = min(self.ceiling, self.delay * 2)

	@property
	def hopeless(self):
		return self.strikes >= self.patience


class Frontier:
	clock = staticmethod(time.monotonic)

	def __init__(self, fetch, *, workers=8, max_depth=3, limit=5000,
				 permit=lambda url: True):
		self.fetch, self.permit = fetch, permit
		self.workers, self.max_depth, self.limit = workers, max_depth, limit
		self.hosts = {}
		self.known = set()
		self.outstanding = 0
		self._ready = []  # heap of (when, tiebreak, Host)
		self._ticket = 0
		self._wake = asyncio.Condition()

	def _next_ticket(self):
		self._ticket += 1
		return self._ticket

	def _park(self, host, when):
		# Holding one slot in the heap is what serialises requests to a host.
		if host.backlog and not host.scheduled and not host.hopeless:
			host.scheduled = True
			heapq.heappush(self._ready, (when, self._next_ticket(), host))

	def _offer(self, url, depth, base=None):
		clean = canonical(url, base)
		if (clean is None or clean in self.known or depth > self.max_depth
				or len(self.known) >= self.limit or not self.permit(clean)):
			return
		self.known.add(clean)
		name = urlsplit(clean).netloc
		host = self.hosts.setdefault(name, Host())
		if host.hopeless:
			return
		heapq.heappush(host.backlog, (depth, self._next_ticket(), clean, 0))
		self.outstanding += 1
		if not host.busy:
			self._park(host, self.clock())

	async def _claim(self):
		# None means the crawl has drained.
		async with self._wake:
			while True:
				if self.outstanding == 0:
					self._wake.notify_all()
					return None
				pause = None
				if self._ready:
					pause = self._ready[0][0] - self.clock()
					if pause <= 0:
						host = heapq.heappop(self._ready)[2]
						host.scheduled, host.busy = False, True
						return host, heapq.heappop(host.backlog)
				try:
					await asyncio.wait_for(self._wake.wait(), pause)
				except asyncio.TimeoutError:
					pass

	async def _settle(self, host, job, links, error, latency):
		depth, _, url, tries = job
		async with self._wake:
			self.outstanding -= 1
			if error is None:
				host.succeeded(latency)
				for link in links:
					self._offer(link, depth + 1, base=url)
			else:
				host.failed()
				log.warning("%s: %s (strike %d)", url, error, host.strikes)
				if tries < 2:
					heapq.heappush(host.backlog, (depth, self._next_ticket(), url, tries + 1))
					self.outstanding += 1
			host.busy = False
			if host.hopeless:
				self.outstanding -= len(host.backlog)
				host.backlog.clear()
			self._park(host, self.clock() + host.delay)
			self._wake.notify_all()

	async def _labour(self, sink):
		while (claimed := await self._claim()) is not None:
			host, job = claimed
			began = self.clock()
			links, error = (), None
			try:
				body, links = await self.fetch(job[2])
				await sink.put((job[2], body))
			except Exception as exc:  # network code raises nearly anything
				error = exc
			await self._settle(host, job, links, error, self.clock() - began)

	async def crawl(self, *seeds):
		sink = asyncio.Queue(maxsize=2 * self.workers)
		for seed in seeds:
			self._offer(seed, 0)
		crew = asyncio.gather(*(self._labour(sink) for _ in range(self.workers)))
		crew.add_done_callback(lambda _: asyncio.ensure_future(sink.put(None)))
		try:
			while (item := await sink.get()) is not None:
				yield item
		finally:
			crew.cancel()
