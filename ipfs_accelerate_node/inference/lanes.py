"""What waits for a model's worker: whole requests taken or refused at once, and which of them the worker is given.

The worker is given more than it computes at a time, so that it can put like with like, but no more than a window of it:
what it has is lost with it. There are two lanes, each with a window of its own, so that a few large requests do not
stand before the small ones.
"""

from __future__ import annotations

import time
from collections import deque

from ipfs_accelerate_node.errors import Overloaded
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.jobs import Job
from ipfs_accelerate_node.inference.model import Generated

MAX_QUEUED = 512  # requests
MAX_QUEUED_SIZE = 64 << 20  # characters, token ids or bytes, of all requests together
MAX_QUEUED_TOKENS = 8 << 20
WINDOW_TOKENS = 32 << 10  # of one lane, in the worker; one request may have more
LARGE_TOKENS = WINDOW_TOKENS // 8
# However slow the model is, so many requests may wait for it.
ALWAYS_QUEUED = 32
USUAL_WAIT_S = 2.0
SHORTEST_RETRY_S, LONGEST_RETRY_S, UNKNOWN_RETRY_S = 0.1, 60.0, 1.0


class Pace:
    """How fast a model has been lately, in the tokens by which requests are judged before they are tokenized."""

    _KEPT = 0.9  # of what was known before, with every new figure
    _MOST_GAINED = 8.0

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._largest = 0.0  # tokens that lately went through together
        self.pass_tokens = 0  # that can
        self._judged = self._real = 0.0

    def passed(self, tokens: int, seconds: float) -> None:
        """So many real ones took so long."""
        self._tokens = self._tokens * self._KEPT + tokens
        self._seconds = self._seconds * self._KEPT + seconds
        self._largest = max(self._largest * self._KEPT, tokens)

    def was(self, judged: int, real: int) -> None:
        self._judged = self._judged * self._KEPT + judged
        self._real = self._real * self._KEPT + real

    @property
    def tokens_per_s(self) -> float:
        """Real ones; 0 while unknown."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def seconds_for(self, judged: int) -> float | None:
        """How long so many take; None while unknown. A few tokens at a time say little of how fast many go together: a
        crowd that comes after single requests is judged by less than those took."""
        if not self._tokens:
            return None
        real = judged * self._real / self._judged if self._judged else judged
        gained = max(1.0, min(self._MOST_GAINED, min(real, self.pass_tokens) / self._largest))
        return real * self._seconds / self._tokens / gained


class _Lane:
    def __init__(self) -> None:
        self.queue: deque[Job] = deque()
        self.tokens = 0  # of those that wait or fly
        self.flying = 0  # tokens


class Lanes:
    """wait_s: a request that would wait for longer is refused; None: however long."""

    def __init__(self, *, wait_s: float | None) -> None:
        self._wait_s = wait_s
        self._small, self._large = _Lane(), _Lane()
        self._size = 0
        self.flying: dict[int, Job] = {}
        self.pace = Pace()
        self.at_once = 0  # requests that wait for nobody: texts that are written together

    @property
    def queued(self) -> int:
        return len(self._small.queue) + len(self._large.queue)

    @property
    def tokens(self) -> int:
        """Of all that wait or fly."""
        return self._small.tokens + self._large.tokens

    def put(self, job: Job) -> None:
        """Raises Overloaded: there is no room for it, or it would wait for too long."""
        count = self.queued + len(self.flying)
        wait_s = self.wait_s(job)
        if count >= MAX_QUEUED or (count and self._size + job.size > MAX_QUEUED_SIZE):
            raise self._overloaded(f"{count} requests are waiting", wait_s)
        if count and self.tokens + job.tokens > MAX_QUEUED_TOKENS:
            raise self._overloaded(f"about {self.tokens} tokens are waiting", wait_s)
        if wait_s is not None:
            if self._wait_s is not None and count >= self._always(self._wait_s) and wait_s > self._wait_s:
                raise self._overloaded(f"{count} requests are waiting, for about {wait_s:.1f} s", wait_s)
            if job.expires is not None and time.monotonic() + wait_s > job.expires:
                raise self._overloaded(f"it would wait for about {wait_s:.1f} s, longer than its deadline", wait_s)
        lane = self._lane(job)
        lane.queue.append(job)
        lane.tokens += job.tokens
        self._size += job.size

    def _always(self, wait_s: float) -> int:
        """So many may wait however slow the model is; fewer where less waiting is allowed than usual."""
        return max(1, 2 * self.at_once, round(ALWAYS_QUEUED * min(1.0, wait_s / USUAL_WAIT_S)))

    def wait_s(self, job: Job) -> float | None:
        """How long it would wait. Small ones go by turns with large ones, if there are any."""
        if self.queued + len(self.flying) < self.at_once:
            return 0.0
        small = self._small.tokens + min(self._small.tokens, self._large.tokens)
        return self.pace.seconds_for(self.tokens if self._lane(job) is self._large else small)

    @staticmethod
    def _overloaded(why: str, wait_s: float | None) -> Overloaded:
        after_s = UNKNOWN_RETRY_S if wait_s is None else min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, wait_s))
        return Overloaded(why, retry_after_s=round(after_s, 2))

    def _lane(self, job: Job) -> _Lane:
        return self._large if job.tokens > LARGE_TOKENS else self._small

    def next(self) -> Job | None:
        """What the worker is to be given now; it counts as flying from here on."""
        for lane in (self._small, self._large):
            if lane.queue and (not lane.flying or lane.flying + lane.queue[0].tokens <= WINDOW_TOKENS):
                job = lane.queue.popleft()
                lane.flying += job.tokens
                self.flying[job.number] = job
                return job
        return None

    def landed(self, number: int) -> Job | None:
        """The worker has it no more; None if it had no such job."""
        job = self.flying.pop(number, None)
        if job is not None:
            self._lane(job).flying -= job.tokens
            self._gone(job)
        return job

    def remove(self, job: Job) -> bool:
        """Whether it waited; it does no more."""
        queue = self._lane(job).queue
        if job not in queue:
            return False
        queue.remove(job)
        self._gone(job)
        return True

    def again(self, job: Job) -> None:
        """One that was flying waits again, before all others."""
        del self.flying[job.number]
        lane = self._lane(job)
        lane.flying -= job.tokens
        lane.queue.appendleft(job)

    def drain(self) -> list[Job]:
        """All that wait; they are out."""
        jobs = [*self._small.queue, *self._large.queue]
        for job in jobs:
            self.remove(job)
        return jobs

    def _gone(self, job: Job) -> None:
        self._lane(job).tokens -= job.tokens
        self._size -= job.size


def real_tokens(reply: wire.Outputs) -> int:
    """That went through the model."""
    written = sum(len(head.ids) for head in reply.heads if isinstance(head, Generated))
    return written + sum(head.tokens_in for head in reply.heads)
