"""A client process of a peer: commands as JSON a line on standard input, answers on standard output.

    ENVIRONMENT/bin/python -m bench.peers.client NAME TARGET

``load`` takes every row of a matrix (ids are row numbers) and builds the index; ``effort`` sets the width of the
search; ``answers`` writes the ids found; ``query`` asks for some seconds.  Vectors of ``cosine`` sets come normalised.
"""

import json
import sys
import threading
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from bench.server.pacing import in_threads

M, EF_CONSTRUCTION = 16, 200
NAME = "bench"


class Client(ABC):
    """One peer's client, as its documentation would have it written; safe for threads."""

    batch = 1_000

    def __init__(self, target: str, metric: str, dim: int) -> None:
        self.target, self.metric, self.dim = target, metric, dim
        self.ef = 64

    @abstractmethod
    def create(self) -> None:
        """An empty collection with the graph's parameters."""

    @abstractmethod
    def insert(self, low: int, rows: np.ndarray) -> None:
        """One batch."""

    def finish(self) -> None:
        """Build what is still to be built."""

    def set_effort(self, ef: int) -> None:
        self.ef = ef

    @abstractmethod
    def query(self, rows: np.ndarray, k: int) -> list[list[int]]:
        """Ids of the nearest of each row."""

    def load(self, rows: np.ndarray) -> None:
        self.create()
        for low in range(0, len(rows), self.batch):
            self.insert(low, rows[low : low + self.batch])
        self.finish()


class Vecdb(Client):
    batch = 5_000

    def __init__(self, target: str, metric: str, dim: int) -> None:
        super().__init__(target, metric, dim)
        import vecdb

        self.database = vecdb.connect(f"grpc://{target}")
        self.docs: Any = None

    def create(self) -> None:
        self.docs = self.database.create_collection(NAME, self.dim, self.metric, index="hnsw", m=M,
                                                    ef_construction=EF_CONSTRUCTION)  # fmt: skip

    def insert(self, low: int, rows: np.ndarray) -> None:
        self.docs.upsert(ids=np.arange(low, low + len(rows)), vectors=rows)

    def finish(self) -> None:
        self.docs.optimize()

    def query(self, rows: np.ndarray, k: int) -> list[list[int]]:
        docs = self.docs = self.docs or self.database.collection(NAME)
        if len(rows) == 1:
            return [docs.query(rows[0], k=k, ef_search=self.ef).ids]
        return [hits.ids for hits in docs.query(rows, k=k, ef_search=self.ef)]


class Chroma(Client):
    def __init__(self, target: str, metric: str, dim: int) -> None:
        super().__init__(target, metric, dim)
        import chromadb

        host, _, port = target.partition(":")
        self.client = chromadb.HttpClient(host=host, port=int(port))
        self.docs: Any = None

    def create(self) -> None:
        space = {"l2": "l2", "cosine": "cosine", "dot": "ip"}[self.metric]
        graph = {"space": space, "max_neighbors": M, "ef_construction": EF_CONSTRUCTION, "ef_search": 100}
        self.docs = self.client.create_collection(NAME, configuration={"hnsw": graph}, embedding_function=None)

    def collection(self) -> Any:
        self.docs = self.docs or self.client.get_collection(NAME, embedding_function=None)
        return self.docs

    def insert(self, low: int, rows: np.ndarray) -> None:
        self.docs.add(ids=[str(low + i) for i in range(len(rows))], embeddings=rows)

    def query(self, rows: np.ndarray, k: int) -> list[list[int]]:
        found = self.collection().query(query_embeddings=rows, n_results=k, include=[])
        return [[int(one) for one in ids] for ids in found["ids"]]


class MilvusLite(Client):
    def __init__(self, target: str, metric: str, dim: int) -> None:
        super().__init__(target, metric, dim)
        from pymilvus import DataType, MilvusClient

        self.types = DataType
        self.client = MilvusClient(target)
        self.kind = {"l2": "L2", "cosine": "COSINE", "dot": "IP"}[metric]

    def create(self) -> None:
        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", self.types.INT64, is_primary=True)
        schema.add_field("vector", self.types.FLOAT_VECTOR, dim=self.dim)
        index = self.client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type=self.kind,
                        params={"M": M, "efConstruction": EF_CONSTRUCTION})  # fmt: skip
        self.client.create_collection(NAME, schema=schema, index_params=index)

    def insert(self, low: int, rows: np.ndarray) -> None:
        self.client.insert(NAME, [{"id": low + i, "vector": row} for i, row in enumerate(rows)])

    def finish(self) -> None:
        self.client.flush(NAME)
        end = time.monotonic() + 300
        while self.client.describe_index(NAME, "vector").get("pending_index_rows") and time.monotonic() < end:
            time.sleep(0.2)

    def query(self, rows: np.ndarray, k: int) -> list[list[int]]:
        found = self.client.search(NAME, data=list(rows), limit=k, output_fields=["id"],
                                   search_params={"params": {"ef": self.ef}})  # fmt: skip
        return [[hit["id"] for hit in hits] for hits in found]


class Pgvector(Client):
    """A connection a thread; vectors travel in pgvector's binary form; batches are pipelined."""

    def __init__(self, target: str, metric: str, dim: int) -> None:
        super().__init__(target, metric, dim)
        self.here = threading.local()
        operator = {"l2": "<->", "cosine": "<=>", "dot": "<#>"}[metric]
        self.ops = {"l2": "vector_l2_ops", "cosine": "vector_cosine_ops", "dot": "vector_ip_ops"}[metric]
        self.sql = f"SELECT id FROM bench ORDER BY v {operator} %b::vector LIMIT %s"

    def connection(self) -> Any:
        import pgvector.psycopg
        import psycopg

        if getattr(self.here, "ef", None) != self.ef:
            if not hasattr(self.here, "connection"):
                self.here.connection = psycopg.connect(self.target, autocommit=True)
                self.here.connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                pgvector.psycopg.register_vector(self.here.connection)
            self.here.connection.execute(f"SET hnsw.ef_search = {self.ef}")
            self.here.ef = self.ef
        return self.here.connection

    def create(self) -> None:
        self.connection().execute(f"CREATE TABLE bench (id bigint PRIMARY KEY, v vector({self.dim}))")
        self.connection().execute("ALTER TABLE bench ALTER COLUMN v SET STORAGE PLAIN" if self.dim < 2_000 else
                                  "SELECT 1")  # fmt: skip

    def insert(self, low: int, rows: np.ndarray) -> None:
        cursor = self.connection().cursor()
        with cursor.copy("COPY bench (id, v) FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "vector"])
            for i, row in enumerate(rows):
                copy.write_row((low + i, row))

    def finish(self) -> None:
        self.connection().execute(f"CREATE INDEX ON bench USING hnsw (v {self.ops}) WITH (m = {M}, "
                                  f"ef_construction = {EF_CONSTRUCTION})")  # fmt: skip
        self.connection().execute("ANALYZE bench")

    def query(self, rows: np.ndarray, k: int) -> list[list[int]]:
        connection = self.connection()
        if len(rows) == 1:
            return [[one[0] for one in connection.execute(self.sql, (rows[0], k), prepare=True, binary=True)]]
        with connection.pipeline():
            cursors = [connection.execute(self.sql, (row, k), prepare=True, binary=True) for row in rows]
            return [[one[0] for one in cursor] for cursor in cursors]



class Redis(Client):
    """VADD and VSIM; batches are pipelined."""

    def __init__(self, target: str, metric: str, dim: int) -> None:
        super().__init__(target, metric, dim)
        import redis

        host, _, port = target.partition(":")
        self.client = redis.Redis(host=host, port=int(port))

    def create(self) -> None:
        return

    def insert(self, low: int, rows: np.ndarray) -> None:
        pipe = self.client.pipeline(transaction=False)
        for i, row in enumerate(rows):
            pipe.execute_command("VADD", NAME, "FP32", row.tobytes(), str(low + i), "Q8", "EF", EF_CONSTRUCTION, "M", M)
        pipe.execute()

    def query(self, rows: np.ndarray, k: int) -> list[list[int]]:
        if len(rows) == 1:
            found = [self.client.execute_command("VSIM", NAME, "FP32", rows[0].tobytes(), "COUNT", k, "EF", self.ef)]
        else:
            pipe = self.client.pipeline(transaction=False)
            for row in rows:
                pipe.execute_command("VSIM", NAME, "FP32", row.tobytes(), "COUNT", k, "EF", self.ef)
            found = pipe.execute()
        return [[int(one) for one in ids] for ids in found]


CLIENTS: dict[str, type[Client]] = {
    "vecdb": Vecdb, "chroma": Chroma, "milvus-lite": MilvusLite, "pgvector": Pgvector, "redis": Redis,
}  # fmt: skip


class Session:
    """The commands."""

    def __init__(self, name: str, target: str) -> None:
        self.name, self.target = name, target
        self.client: Client | None = None

    def standing(self, command: dict[str, Any]) -> Client:
        if self.client is None:
            self.client = CLIENTS[self.name](self.target, command["metric"], command["dim"])
        return self.client

    def load(self, command: dict[str, Any]) -> dict[str, Any]:
        rows = np.load(command["rows"])
        client = self.standing(command)
        cpu, began = time.process_time(), time.perf_counter()
        client.load(rows)
        return {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}

    def effort(self, command: dict[str, Any]) -> dict[str, Any]:
        self.standing(command).set_effort(command["ef"])
        return {}

    def answers(self, command: dict[str, Any]) -> dict[str, Any]:
        client, queries, k = self.standing(command), np.load(command["queries"]), command["k"]
        found = np.full((len(queries), k), -1, np.int64)
        for row in range(len(queries)):
            ids = client.query(queries[row : row + 1], k)[0]
            found[row, : len(ids)] = ids
        np.save(command["out"], found)
        return {}

    def query(self, command: dict[str, Any]) -> dict[str, Any]:
        client, queries = self.standing(command), np.load(command["queries"])
        rows, k = command["size"], command["k"]
        places = max(1, len(queries) - rows + 1)

        def ask(i: int) -> None:
            low = i * rows % places
            client.query(queries[low : low + rows], k)

        cpu = time.process_time()
        done = in_threads(command["inflight"], command["seconds"], ask)
        return {"calls": len(done.calls_ms), "warm": done.warm, "seconds": done.seconds,
                "cpu_s": time.process_time() - cpu, "calls_ms": done.calls_ms[-20_000:]}  # fmt: skip


def main() -> None:
    session = Session(*sys.argv[1:3])
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(session, command["do"])(command)
        except Exception as error:
            answer = {"fault": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
