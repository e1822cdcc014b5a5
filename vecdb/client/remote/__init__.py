"""The SDK over the network: the engine's Backend, and a server's Node, at the other end of gRPC.

Decided here: every procedure (retries, chunks, streams that are resumed) is a generator over the few ops of
:mod:`~vecdb.client.remote.io`, so the sync client (a gRPC channel, no event loop and no thread of ours) and the async
one (grpc.aio) run the same lines.  Methods are called by path with bytes in and out; messages are made and read in
:mod:`vecdb.wire` alone.  gRPC and protobuf are imported by this package and by nothing else of the SDK, and this
package only when a network target is opened.

Retries are ours and not gRPC's: only this side knows which calls may be repeated, one budget bounds them all, and a
write keeps its idempotency key over every attempt.

**Several addresses** are nodes of one cluster, any of which answers any call.  Each has a channel, and calls take turns
on those that are up (:class:`~vecdb.client.remote.io.Wire`).  Writes of a collection go
to the address that carried out the last one itself, which is who leads (replies say what was handed on), until one
fails there; and they say that there are others, so that a node which reaches no majority sends them away at once
instead of waiting for one (:mod:`vecdb.services.leaders`).  One that cannot be reached, breaks off or says that it
serves nobody is left alone for two seconds (one that is gone for longer each time, at most for thirty); its calls are
made again at another, a stream's unanswered batches on a new stream there.  A node that is frozen or cut off is found
by pings, within three seconds while calls wait for it; a read is made again elsewhere with a third of its time left, at
most three seconds, and a shorter ``timeout`` lets the next call go elsewhere at once.  A node that clients reach and
its peers do not says so, to who knows of others, instead of waiting for a leader: it is left alone for longer each time
that it does, and then for all but one call.
That a shard has no leader for a moment is the cluster's own affair: the node asked waits for one as long as the call
may take.
"""
