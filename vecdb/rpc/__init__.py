"""The network faces of a node: gRPC servicers and the HTTP face, over a :class:`~vecdb.ports.node.Node`."""
