"""A client process of a cluster: the commands of :mod:`bench.server.drive`, and those of :mod:`bench.cluster.load`."""

from bench.cluster import load
from bench.server import drive

DO = {**drive.DO, "ingest": load.ingest, "begin": load.begin, "end": load.end}

if __name__ == "__main__":
    drive.main(DO)
