"""Torn, flipped and missing bytes in every kind of file: named, never served, rebuilt where that is possible."""

from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.faults import flip_byte, truncate, unreadable
from vecdb import errors

N, DIM = 3_000, 512


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one sealed HNSW segment and a few growing records."""
    rng = np.random.default_rng(5)
    with vecdb.connect(tmp_path / "db", background=False) as db:
        docs = db.create_collection("c", DIM, metric="l2", index="hnsw", m=8, ef_construction=40)
        docs.upsert(ids=np.arange(N), vectors=rng.standard_normal((N, DIM)), metadata=[{"n": i} for i in range(N)])
        docs.optimize()
        docs.upsert(ids=["late"], vectors=rng.standard_normal((1, DIM)), metadata=[{"n": -1}])
        other = db.create_collection("other", 4)
        other.upsert(ids=[1], vectors=[[1, 0, 0, 0]])
    return tmp_path / "db"


def _segment_file(path: Path, name: str) -> Path:
    return next(path.glob(f"collections/*/segments/*/{name}"))


def _truth(path: Path) -> tuple[np.ndarray, list]:
    with vecdb.connect(path, background=False) as db:
        query = np.random.default_rng(6).standard_normal((5, DIM))
        return query, [hits.ids for hits in db.collection("c").query(query, k=10, exact=True)]


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_index_file_is_rebuilt(path: Path, harm: str) -> None:
    query, want = _truth(path)
    file = _segment_file(path, "index.vdb")
    {"flip": lambda: flip_byte(file, file.stat().st_size // 2), "truncate": lambda: truncate(file, 5_000),
     "remove": file.unlink}[harm]()
    with vecdb.connect(path, background=False) as db:
        docs = db.collection("c")
        damage = docs.describe().details["damage"]
        assert "index.vdb" in damage[0]["messages"][0]
        assert damage[0]["lost_records"] == 0
        assert [hits.ids for hits in docs.query(query, k=10)] == want, "without its index the segment is scanned"
        docs.optimize()
        assert docs.describe().details["segments"][0]["index"]["kind"] == "hnsw"
    with vecdb.connect(path, background=False) as db:
        assert "damage" not in db.collection("c").describe().details


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_records_file_is_rebuilt_from_the_rows(path: Path, harm: str) -> None:
    query, want = _truth(path)
    file = _segment_file(path, "records.vdb")
    if harm == "flip":
        flip_byte(file, 4096 + 100)
    else:
        file.unlink()
    with vecdb.connect(path, background=False) as db:
        docs = db.collection("c")
        assert any("records.vdb" in message for message in docs.describe().details["damage"][0]["messages"])
        assert [hits.ids for hits in docs.query(query, k=10, exact=True)] == want
        assert docs.count(filter="n < 10 and n >= 0") == 10
        assert docs.query(query[0], k=3, filter="n == 77").ids == [77]


def test_flipped_vector_byte_names_its_records_and_the_rest_serves(path: Path) -> None:
    file = _segment_file(path, "vectors.vdb")
    flip_byte(file, file.stat().st_size // 2)
    with vecdb.connect(path, background=False) as db:
        docs = db.collection("c")
        damage = docs.describe().details["damage"][0]
        lost = damage["lost_ids"]
        assert 0 < len(lost) == damage["lost_records"]
        hits = docs.query(np.zeros(DIM), k=N)
        assert hits.partial
        assert not set(lost) & set(hits.ids)
        assert len(hits) == N + 1 - len(lost)
        with pytest.raises(errors.DataCorrupted) as caught:
            docs.fetch([lost[0]])
        assert lost[0] in caught.value.fields["ids"]
        assert docs.fetch([lost[0]], include=["metadata"])[0].metadata == {"n": lost[0]}
        # writing a lost record anew repairs it
        docs.upsert(ids=[lost[0]], vectors=np.ones((1, DIM)), metadata=[{"n": lost[0]}])
        assert docs.fetch([lost[0]])[0].vector.tolist() == [1.0] * DIM
        assert docs.describe().details["damage"][0]["lost_records"] == len(lost) - 1
        docs.optimize()
        assert docs.describe().details["damage"][0]["lost_records"] == len(lost) - 1, "optimize drops nothing"


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_unreadable_sector_loses_its_records_and_garbage_reaches_no_index(tmp_path: Path, on_disk: bool) -> None:
    rng = np.random.default_rng(5)
    with vecdb.connect(tmp_path / "db", background=False) as db:
        docs = db.create_collection("c", DIM, metric="l2", index="hnsw", m=8, ef_construction=40,
                                    vectors_on_disk=on_disk)
        docs.upsert(ids=np.arange(N), vectors=rng.standard_normal((N, DIM)))
        docs.optimize()
    _segment_file(tmp_path / "db", "index.vdb").unlink()
    file = _segment_file(tmp_path / "db", "vectors.vdb")
    with file.open("r+b") as bytes_of:
        bytes_of.seek(file.stat().st_size // 2)
        bytes_of.write(b"\xff" * 4096)  # NaN, if anybody looked
    with unreadable(file, file.stat().st_size // 2), vecdb.connect(tmp_path / "db", background=False) as db:
        docs = db.collection("c")
        lost = docs.describe().details["damage"][0]["lost_ids"]
        assert 0 < len(lost) < N
        docs.optimize()
        assert docs.describe().details["segments"][0]["index"]["kind"] == "hnsw"
        hits = docs.query(np.zeros(DIM), k=N)
        assert hits.partial
        assert sorted(hits.ids) == sorted(set(range(N)) - set(lost))
        with pytest.raises(errors.DataCorrupted):
            docs.fetch([lost[0]])


def test_a_segment_of_which_nothing_is_known_or_alive_opens(path: Path) -> None:
    with vecdb.connect(path, background=False) as db:
        db.collection("c").delete(ids=list(range(N)))
    for name in ("vectors.vdb", "records.vdb"):
        _segment_file(path, name).unlink()
    with vecdb.connect(path, background=False) as db:
        docs = db.collection("c")
        assert docs.query(np.zeros(DIM), k=5).ids == ["late"]
        docs.upsert(ids=[3], vectors=np.ones((1, DIM)))
        assert docs.count() == 2
        assert docs.get(3) is not None
        docs.optimize()
        assert sorted(docs.query(np.zeros(DIM), k=5).ids, key=str) == [3, "late"]


def test_missing_vector_file_loses_only_its_vectors(path: Path) -> None:
    _segment_file(path, "vectors.vdb").unlink()
    with vecdb.connect(path, background=False) as db:
        docs = db.collection("c")
        assert docs.describe().details["damage"][0]["lost_records"] == N
        assert docs.query(np.zeros(DIM), k=5).ids == ["late"]
        assert docs.count() == N + 1
        assert docs.count(filter="n >= 0") == N
        assert db.collection("other").query([1, 0, 0, 0], k=1).ids == [1]


def test_both_files_gone_still_names_every_record(path: Path) -> None:
    _segment_file(path, "vectors.vdb").unlink()
    _segment_file(path, "records.vdb").unlink()
    with vecdb.connect(path, background=False) as db:
        docs = db.collection("c")
        damage = docs.describe().details["damage"][0]
        assert damage["lost_records"] == N
        assert docs.fetch([5], include=["metadata"])[0].metadata == {"n": 5}
        assert docs.delete(ids=[5]).deleted == 1
        assert docs.count() == N


def test_damaged_rows_raise_and_other_collections_serve(path: Path) -> None:
    tables = sorted((path / "collections" / "000001" / "rows").glob("*.sst"))
    logs = sorted((path / "collections" / "000001" / "rows").glob("*.log"))
    for file in tables or logs:
        for offset in range(64, file.stat().st_size, 512):
            flip_byte(file, offset)
    with vecdb.connect(path, background=False) as db:
        with pytest.raises(errors.DataCorrupted):
            db.collection("c").fetch(list(range(0, N, 50)))
        assert db.collection("other").query([1, 0, 0, 0], k=1).ids == [1]
