"""A cluster measured: real nodes on loopback, three coordinators and one, two or three that hold shards.

The coordinators stay for the whole run and shard nodes join them by a token, so that a run grows as a cluster does; a
collection has as many shards as there are shard nodes.  Clients are processes of their own.  **All of it shares the
cores of one machine**, so more nodes are not more processors here: the table tells what the way through a coordinator,
fan-out and replication cost, and not how a cluster scales.  The columns of CPU time are what to plan with.

What a user would notice is what is counted.  A *gap* is the longest time in which nothing was acknowledged (or no query
answered) to somebody who asks without a pause, from the kill on.  A split or merge is *done* when calls go to the new
shards; that the old ones are kept for another thirty seconds is no work.  An error is an exception that the SDK raised
to its caller, with its retries as they are by default.
"""
