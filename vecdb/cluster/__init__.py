"""What a cluster decides, as pure functions: which collections there are, which group each is, which nodes hold it.

Nothing here knows a clock, chance, a thread or a disk.  The control group (group 0) carries the commands of
:mod:`~vecdb.cluster.control` to every node, each applies them to the same :class:`~vecdb.cluster.control.ControlState`,
and makes what it holds follow that.

**Decisions are in the command, not in ``apply``.**  Who proposes a collection has chosen its replicas
(:mod:`~vecdb.cluster.placement`) from what it knows of the nodes, which others may not know or see otherwise; the
machine only checks that they make sense.  So placement may change from version to version, while ``apply`` may not.

**Group numbers are given by the machine and never twice.**  A node that was away therefore can tell a collection that
was dropped and made again from the one it holds, and knows a group that is gone for good from one it has not heard of
yet: the number is below ``next_group``, or it is not.

**Numbers of replicas** (``n2/3141``): a node names itself, in a new group, by the number its replica of the control
group has.  That number changes whenever the node's logs were lost, so what stands in a command is a promise only of the
disk that was there when it was made.

**Nodes** found a cluster together (:mod:`~vecdb.cluster.founding`) or join one that is there
(:mod:`~vecdb.cluster.joining`).  A node is one of it by its entry in the control state, which makes others believe its
certificate; its replica of the control group, which votes or observes, only follows from that.

**Two releases at a time**, one minor apart, so that nodes are upgraded one after the other.  A node announces
its release and the latest version of control commands that it reads (:class:`~vecdb.cluster.joining.Release`).

- The cluster's version is the lowest that a node has announced (:attr:`~vecdb.cluster.control.ControlState.commands`).
  Whoever leads the control group proposes nothing later than that, by whichever way it comes (calls, jobs, what a
  governor begins by itself, what other nodes hand on): ``Unsupported`` names the nodes that are in the way.  A kind of
  job whose steps need a later version says so, and is not begun.  So what an older node could not read never comes into
  its log, where it would apply it as nothing and differ from then on.  Members that were heard and have announced
  nothing count as the oldest; those that are away do not count, and are refused when they come back too old.
- Reads and writes of records go on as they are.
- A node more than one minor away from another is not let in.  One that is a member and was started as such a release is
  told so at its next word: it is not ready, says why, and its entry stays as it was.  A node that is down for good has
  to be removed, or it is in the way of the release after next.
- Once all nodes read a version it may be used, and no node can go back to a release that does not read it: such a one
  does not open its control state (``FormatMismatch``), and is refused by the others.
"""
