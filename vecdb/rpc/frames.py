"""Frames between nodes over gRPC: the :class:`~vecdb.ports.frames.Frames` of a node.

Two streams a pair of nodes and direction, on the channel that other calls use too: messages, and what is bulky.  What
waits goes together, up to a megabyte in one message of gRPC's, and what is larger goes in pieces of that.  One message
is under way at a time: gRPC says when the connection has room, so a receiver that is slow fills the sender's window and
nothing else.

**Windows.**  What waits for a stream is bounded in bytes; while it is above the window, further frames are dropped.
While a node cannot be reached the newest :data:`AWAY_BYTES` are kept for it, until the next attempt fails.

**Streams end** with their connection, and are made again: at once when the other node calls here, otherwise after 50 ms
to a second.  The receiver keeps one stream of a kind from each node: a newer one (of a later process, or of the same
with a higher number) takes the older one's place.

**Measured** (``python -m bench.frames``: grpcio 1.82 on uvloop, two processes over loopback, two cores of a shared
x86-64 server; CPU of both processes together).  On the machine to itself 51 KB frames went at 960 MB/s in plaintext and
900 with mutual TLS, 1 MB frames at 860 and 930, 66 MB frames at 180 to 280.  CPU, which hardly depends on who else
computes:

============  ===============  ===============  ==========================================
frame         plaintext        mutual TLS       what it is spent on
============  ===============  ===============  ==========================================
100 bytes     3 us             3 us             asyncio and Python, in messages of hundreds
51 KB         90 us            110 us           a gRPC message for twenty of them
1 MB          1.7 ms           2.2 ms           the kernel's sockets, TLS, gRPC's copies
66 MB         240 ms           250 ms           memory touched for the first time
============  ===============  ===============  ==========================================

Of a megabyte's two milliseconds our own framing takes 60 us (one copy; protobuf's own writing and reading take at least
twice that).  Larger HTTP/2 frames, write buffers, look-ahead and TLS records changed nothing that could be told from
noise.  Question and answer of 8 bytes take 0.3 ms, with 8 MB of bulk always waiting on the same connection 5 ms (8
with TLS), so bulk has a stream of its own and no connection.  64 idle groups, three nodes with everything but disks:
5 % of a core a node, 2 of them Raft's.  A silent connection is found after 1.3 to 2.3 s.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from random import SystemRandom
from typing import Any, Final

import grpc

from vecdb.ports.tell import Tell, tell_nobody
from vecdb.rpc.frames_codec import MAX_FRAME_BYTES, PIECE_BYTES, join
from vecdb.rpc.frames_server import ACCEPTED_KEY, BULK, MESSAGES, STREAM_KEY, FrameService, Received
from vecdb.rpc.peer_channels import PeerChannels
from vecdb.rpc.reasons import short
from vecdb.rpc.seldom import Seldom

WINDOW_BYTES: Final = 32 << 20
BULK_WINDOW_BYTES: Final = 16 << 20
AWAY_BYTES: Final = 1 << 20
PAUSE_S: Final = (0.05, 1.0)
PATIENCE_S: Final = 5.0
"""How long an attempt waits for a connection before the reason why there is none is asked for again."""
SETTLED_S: Final = 2.0
"""A stream that lived for so long was no failure."""


BROKEN_S: Final = 0.25
"""After which a connection that broke and is not there again counts as the end of the process at its other end.  One
that is refused says so at once."""


class GrpcFrames:
    """The frames of one node.  Make it, use it and close it in one event loop, which is also that of the peer server
    that :meth:`servicer` is registered on.
    """

    def __init__(self, channels: PeerChannels, node: str, cluster: str, tell: Tell = tell_nobody, *,
                 window_bytes: int = WINDOW_BYTES, bulk_window_bytes: int = BULK_WINDOW_BYTES) -> None:
        assert (node, cluster) == (channels.node, channels.cluster)
        self.node = node
        self.channels = channels
        self.counts: Counter[str] = Counter()
        self.seldom = Seldom(tell)
        self.tell = tell
        self._windows = {MESSAGES: window_bytes, BULK: bulk_window_bytes}
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._service = FrameService(self.counts, self.seldom, self._came)
        self._gone: Callable[[str], None] | None = None
        self._closed = False

    def send(self, node: str, frame: bytes, *, bulk: bool = False) -> None:
        """Queue a frame; never waits.  See :class:`~vecdb.ports.frames.Frames`."""
        lane = BULK if bulk else MESSAGES
        stream = self._streams.get((node, lane))
        if stream is None:
            if self._closed or node == self.node or node not in self.channels.addresses:
                self.counts["dropped_unknown_node"] += 1
                return
            stream = self._streams[node, lane] = _Stream(self, node, lane, self._windows[lane])
        stream.send(frame)

    def listen(self, received: Received, gone: Callable[[str], None] | None = None) -> None:
        self._service.received = received
        self._gone = gone

    def gone(self, node: str) -> None:
        """Its connection broke, and was not to be made again."""
        self.counts["gone"] += 1
        if self._gone is not None and not self._closed:
            self._gone(node)

    def servicer(self) -> FrameService:
        """What a :class:`~vecdb.rpc.peers_server.PeerServer` needs to take frames of other nodes."""
        return self._service

    @property
    def counters(self) -> dict[str, int]:
        """Since the start, by name: frames, bytes and messages sent and received; ``dropped_``, ``refused_`` and
        ``failed_`` by why; ``waiting_bytes`` of all streams as it is now.
        """
        return {**self.counts, "waiting_bytes": sum(stream.waiting for stream in self._streams.values())}

    def connected(self, node: str) -> bool:
        """Whether messages get through to a node, as far as is known."""
        stream = self._streams.get((node, MESSAGES))
        return stream is not None and stream.up

    def away(self) -> dict[str, str]:
        """Nodes that messages do not get through to, and why the last attempt failed, in few words."""
        return {node: short(stream.why) for (node, lane), stream in sorted(self._streams.items())
                if lane == MESSAGES and stream.why and not stream.up}

    def forget(self, node: str) -> None:
        """End the streams to and from a node that is none of the cluster any more; what waits is dropped."""
        self._service.forget(node)
        for lane in (MESSAGES, BULK):
            stream = self._streams.pop((node, lane), None)
            if stream is not None:
                stream.end()

    async def close(self) -> None:
        """End all streams; what waits is dropped.  The channels stay open."""
        self._closed = True
        self._service.drain()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.end()
        if streams:
            await asyncio.wait([stream.task for stream in streams.values()])

    def _came(self, node: str) -> None:
        """A node has opened a stream to us, so it can be reached."""
        waiting = [stream for (name, _), stream in self._streams.items() if name == node and not stream.up]
        if waiting:
            renewed = self.channels.hurry(node)
            for stream in waiting:
                stream.hurry(renewed)


class _Stream:
    """One kind of frames to one node, for as long as this node lives."""

    numbers: int = 0

    def __init__(self, frames: GrpcFrames, node: str, lane: str, window: int) -> None:
        self._frames = frames
        self._node, self._lane, self._window = node, lane, window
        self._queue: deque[bytes] = deque()
        self.waiting = 0
        """Bytes queued and under way."""
        self.up = False
        self.why = ""
        """Of the last attempt that failed."""
        self._hurry = asyncio.Event()
        self._attempt: Any = None
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] | None = None
        self._lived = False
        self._broken: asyncio.TimerHandle | None = None
        """Runs from a break of the connection until it is back, or the other process counts as gone."""
        self.task = self._loop.create_task(self._run())

    def send(self, frame: bytes) -> None:
        counts = self._frames.counts
        if len(frame) > MAX_FRAME_BYTES:
            counts["dropped_too_long"] += 1
            self._frames.seldom("error", "frame_dropped", "too_long", self._node, bytes=len(frame))
            return
        if self.waiting >= self._window:
            counts["dropped_window"] += 1
            self._frames.seldom("warning", "frame_dropped", f"window_{self._lane.lower()}", self._node,
                                waiting_bytes=self.waiting)
            return
        self._queue.append(frame)
        self.waiting += len(frame)
        if not self.up:
            self._trim(AWAY_BYTES)
        elif self._news is not None:
            self._wake()

    def hurry(self, anew: bool) -> None:
        """Try again at once; ``anew``: what is being tried has no prospects."""
        self._hurry.set()
        if anew and self._attempt is not None and not self.up:
            self._attempt.cancel()

    def _wake(self, _: Any = None) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _trim(self, most: int) -> None:
        """Drop the oldest, but for the newest."""
        while self.waiting > most and len(self._queue) > (most > 0):
            self.waiting -= len(self._queue.popleft())
            self._frames.counts["dropped_away"] += 1

    def end(self) -> None:
        self._found()
        self.task.cancel()

    def _found(self) -> None:
        if self._broken is not None:
            self._broken.cancel()
            self._broken = None

    def _gone(self) -> None:
        if self._broken is not None:
            self._found()
            self._frames.gone(self._node)

    # --- the life of streams ----------------------------------------------------------------------

    async def _run(self) -> None:
        pause, patient, told = PAUSE_S[0], False, False
        random = SystemRandom()
        while True:
            began = self._loop.time()
            why = await self._once(patient, told)
            told = told and not self._lived
            if self._loop.time() - began > SETTLED_S and self._lived:
                pause = PAUSE_S[0]
            if not self._lived:
                self._trim(0)
            patient = not patient if not self._lived else False
            if self._lived and self._lane == MESSAGES and self._broken is None:
                self._broken = self._loop.call_later(BROKEN_S, self._gone)
            elif "onnection refused" in why:
                self._gone()
            if why:
                self.why = why
                told = self._frames.seldom("warning", "peer_away", self._lane.lower(), self._node, why=why) or told
            try:
                await asyncio.wait_for(self._hurry.wait(), pause * random.uniform(0.5, 1.0))
            except TimeoutError:
                pause = min(2 * pause, PAUSE_S[1])
            self._hurry.clear()

    async def _once(self, patient: bool, told: bool) -> str:
        """One stream from its beginning to its end; returns why it ended, nothing if only patience did."""
        self._lived = False
        _Stream.numbers += 1
        path = f"/vecdb.internal.v1.Raft/{self._lane}"
        call: Any = None
        try:
            call = self._attempt = self._frames.channels.channel(self._node).stream_unary(path)(
                metadata=((STREAM_KEY, str(_Stream.numbers)),), wait_for_ready=patient)
            async with asyncio.timeout(PATIENCE_S):
                accepted = await call.initial_metadata()
                if ACCEPTED_KEY not in accepted:
                    await call.code()
                    return await _reason(call)
            self._lived = self.up = True
            self._found()
            self._frames.counts["connected"] += 1
            if told:
                self._frames.tell("info", "peer_back", peer=self._node, kind=self._lane.lower())
            call.add_done_callback(self._wake)
            await self._pump(call)
            return await _reason(call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return await _reason(call)
        except TimeoutError:
            return "" if patient else "no answer"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return ""  # it is the call that was cancelled, to be made anew
        except Exception as error:  # a stream must not end for good while the node lives
            return f"{type(error).__name__}: {error}"[:300]
        finally:
            self.up, self._attempt = False, None
            if call is not None:
                call.cancel()
            self.waiting = sum(map(len, self._queue))
            self._trim(AWAY_BYTES)

    async def _pump(self, call: Any) -> None:
        counts = self._frames.counts
        while not call.done():
            if not self._queue:
                self._news = self._loop.create_future()
                await self._news
                self._news = None
                continue
            frames, size = self._take()
            if size <= 2 * PIECE_BYTES:
                await call.write(join(frames))
            else:
                frame = memoryview(frames[0])
                for at in range(0, size, PIECE_BYTES):
                    await call.write(join([frame[at:at + PIECE_BYTES]], more=at + PIECE_BYTES < size))
            self.waiting -= size
            counts["sent_messages"] += 1
            counts["sent_frames"] += len(frames)
            counts["sent_bytes"] += size

    def _take(self) -> tuple[list[bytes], int]:
        """What goes together; a frame alone may be larger."""
        queue = self._queue
        frames = [queue.popleft()]
        size = len(frames[0])
        while queue and size + len(queue[0]) <= PIECE_BYTES:
            frames.append(queue.popleft())
            size += len(frames[-1])
        return frames, size


async def _reason(call: Any) -> str:
    """Why a call has ended, in gRPC's words or the other node's."""
    if not call.done():
        return "ended"
    code = await call.code()
    return f"{code.name.lower()}: {await call.details()}"[:300]
