"""The command line over the engine: what a person or a script would run, to the byte on the disk."""

import contextlib
import io
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pytest

import vecdb
from vecdb.cli import main

DIM = 32
COUNT = 3_000


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a data set in HDF5 and JSONL, and a database it was imported into."""
    h5py = pytest.importorskip("h5py")
    home = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(11)
    train = rng.normal(size=(COUNT, DIM)).astype(np.float32)
    with h5py.File(home / "set.hdf5", "w") as file:
        file["train"] = train
        file["train_year"] = np.arange(COUNT) % 50 + 1975
        file["train_lang"] = np.array([("en", "de", "fr")[n % 3] for n in range(COUNT)], dtype=object)
        file.attrs["distance"] = "angular"
    np.save(home / "train.npy", train)
    ran = vec("import", "set.hdf5", "-c", "docs", "--index", "hnsw", "--json", cwd=home)
    assert ran.returncode == 0, ran.stderr
    told = orjson.loads(ran.stdout)
    assert (told["inserted"], told["records"]) == (COUNT, COUNT)
    return home


@dataclass
class Ran:
    returncode: int
    stdout: str
    stderr: str


def vec(*argv: object, cwd: Path) -> Ran:
    """One command in this process: starting one for each would cost a second of imports a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(one) for one in argv])
    return Ran(code, out.getvalue(), err.getvalue())


def process(*argv: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "vecdb.cli", *map(str, argv)], capture_output=True, text=True,
                          timeout=240, cwd=cwd, check=False)


def answer(*argv: object, cwd: Path) -> dict:
    ran = vec(*argv, "--json", cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    return orjson.loads(ran.stdout)


def test_list_describe_count(home: Path) -> None:
    (one,) = answer("collection", "list", "--count", cwd=home)["collections"]
    assert (one["name"], one["records"], one["dim"], one["metric"]) == ("docs", COUNT, DIM, "cosine")
    told = answer("collection", "describe", "docs", cwd=home)
    assert told["records"] == COUNT
    assert told["memory_bytes"]["vectors"] == COUNT * DIM * 4
    assert vec("collection", "describe", "docs", cwd=home).returncode == 0
    assert answer("collection", "count", "docs", "--filter", "lang == 'de' and year < 1980", cwd=home)["count"] == sum(
        n % 3 == 1 and n % 50 < 5 for n in range(COUNT))


def test_query_finds_what_exact_search_finds(home: Path) -> None:
    train = np.load(home / "train.npy")
    where = ["--filter", "year >= 2000"]
    near = answer("query", "-c", "docs", "--like", "7", "-k", "5", *where, "--explain", cwd=home)["results"][0]
    exact = answer("query", "-c", "docs", "--like", "7", "-k", "5", *where, "--exact", cwd=home)["results"][0]
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    truth = [int(n) for n in np.argsort(-(unit @ unit[7])) if n != 7 and n % 50 + 1975 >= 2000][:5]
    assert [hit["id"] for hit in exact["hits"]] == truth
    assert len({hit["id"] for hit in near["hits"]} & set(truth)) >= 4
    assert near["plan"]["segments"]


def test_export_and_import_again(home: Path) -> None:
    for suffix in (".parquet", ".jsonl"):
        out = answer("export", f"out{suffix}", "-c", "docs", "--force", "--filter", "year == 1980", cwd=home)
        assert out["records"] == COUNT // 50
        told = answer("import", f"out{suffix}", "-c", "copy", "--data", f"other{suffix}", cwd=home)
        assert told["inserted"] == COUNT // 50
        again = answer("import", f"out{suffix}", "-c", "copy", "--data", f"other{suffix}", cwd=home)
        assert (again["inserted"], again["updated"], again["records"]) == (0, COUNT // 50, COUNT // 50)


def test_the_plan_is_within_a_tenth_of_what_is_used(home: Path) -> None:
    told = answer("plan", "--check", "-c", "docs", cwd=home)
    exact = [one for one in told["components"] if not one["estimate"]]
    assert {"vectors", "graph", "ids"} <= {one["component"] for one in exact}
    for one in exact:
        assert one["ratio"] == pytest.approx(1.0, abs=0.1), one
    assert told["ratio"] == pytest.approx(1.0, abs=0.1)


def test_readers_share_a_directory_and_a_writer_does_not(home: Path) -> None:
    with vecdb.connect(home / "data", read_only=True, background=False):
        assert answer("collection", "count", "docs", cwd=home)["count"] == COUNT
        assert process("collection", "optimize", "docs", cwd=home).returncode == 4
    with vecdb.connect(home / "data"):
        ran = process("query", "-c", "docs", "--like", "7", cwd=home)
    assert ran.returncode == 4
    assert "in use by" in ran.stderr


def test_doctor_finds_a_flipped_byte(home: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(home / "data", tmp_path / "data")
    with vecdb.connect(tmp_path / "data", background=False) as database:  # they are in another segment
        database.collection("docs").upsert(ids=range(90_000, 90_005), vectors=np.ones((5, DIM)))
    assert vec("doctor", "--data", tmp_path / "data", cwd=home).returncode == 0
    (file,) = (tmp_path / "data").rglob("vectors.vdb")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x40
    file.chmod(0o644)
    file.write_bytes(raw)
    ran = vec("doctor", "--data", tmp_path / "data", cwd=home)
    assert ran.returncode == 6, ran.stdout + ran.stderr
    assert "damaged" in ran.stdout
    out = ("export", tmp_path / "out.parquet", "-c", "docs", "--data", tmp_path / "data")
    assert vec(*out, cwd=home).returncode == 6
    assert not list(tmp_path.glob("out*"))
    ran = vec(*out, "--skip-damaged", "--json", cwd=home)
    assert ran.returncode == 6, ran.stderr
    told = orjson.loads(ran.stdout)
    assert 0 < told["damaged"] == len(told["damaged_ids"]) <= COUNT
    assert told["records"] == COUNT + 5 - told["damaged"]
    again = answer("import", tmp_path / "out.parquet", "-c", "saved", "--data", tmp_path / "new", cwd=home)
    assert again["inserted"] == told["records"]


def test_true_deletes_every_record(tmp_path: Path) -> None:
    with vecdb.connect(tmp_path / "data") as database:
        made = database.create_collection("c", 4, metric="l2")
        made.upsert(ids=range(100), vectors=np.ones((100, 4)))
        assert made.delete(filter="true").deleted == 100
        assert made.count() == 0


def test_an_update_of_many_wide_records_is_cut(tmp_path: Path) -> None:
    dim, rows = 32_768, 600  # 75 MiB of vectors, which one batch may not hold
    with vecdb.connect(tmp_path / "data", background=False) as database:
        made = database.create_collection("c", dim, metric="l2", index="flat")
        made.upsert(ids=range(rows), vectors=np.ones((rows, dim), np.float32))
        assert made.update_metadata(filter="true", metadata={"seen": 1}).updated == rows
        assert made.count("seen == 1") == rows


def test_drop(home: Path, tmp_path: Path) -> None:
    made = vec("collection", "create", "gone", "--dim", "4", "--data", tmp_path, cwd=home)
    assert made.returncode == 0, made.stderr
    assert vec("collection", "drop", "gone", "--data", tmp_path, cwd=home).returncode == 2
    assert vec("collection", "drop", "gone", "--yes", "--data", tmp_path, cwd=home).returncode == 0
    assert answer("collection", "list", "--data", tmp_path, cwd=home)["collections"] == []


def test_ctrl_c_leaves_what_was_acknowledged(home: Path, tmp_path: Path) -> None:
    """Interrupted between two batches, an import says where to go on, and going on completes it."""
    lines = b"".join(orjson.dumps({"vector": [float(n), 1.0]}) + b"\n" for n in range(2_000))
    fifo = tmp_path / "in.jsonl"
    os.mkfifo(fifo)
    importer = subprocess.Popen([sys.executable, "-m", "vecdb.cli", "import", "in.jsonl", "-c", "a", "--metric", "l2",
                                "--batch-size", "500"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env={**os.environ, "PYTHONFAULTHANDLER": "1"},
                               # Who was started in the background of a script ignores it, and so would its children.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    with fifo.open("wb") as head:  # the reader's first look: what came later, while it lasts, would break the pipe
        head.write(lines[:lines.index(b"\n") + 1])
        head.flush()
        over = select.poll()
        over.register(head, 0)
        assert over.poll(120_000) == [(head.fileno(), select.POLLERR)]
    with fifo.open("wb") as rest:
        rest.write(lines[:len(lines) * 3 // 4])
        rest.flush()
        deadline = time.monotonic() + 60
        while importer.poll() is None and time.monotonic() < deadline and not list(tmp_path.glob("data/collections/*")):
            time.sleep(0.05)
        time.sleep(1.0)
        importer.send_signal(signal.SIGINT)
        try:
            _, err = importer.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            importer.send_signal(signal.SIGABRT)  # which tells where it stands
            _, err = importer.communicate()
    assert importer.returncode == 130, err
    assert "Traceback" not in err
    fifo.unlink()
    fifo.write_bytes(lines)
    assert answer("import", "in.jsonl", "-c", "a", cwd=tmp_path)["records"] == 2_000


def test_quickstart_reaches_its_recall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from vecdb import datasets

    whole = datasets.load_wordnet()
    part = dataclasses.replace(whole, ids=whole.ids[::8], vectors=whole.vectors[::8], metadata=whole.metadata[::8])
    monkeypatch.setattr(datasets, "load_wordnet", lambda: part)
    told = answer("quickstart", "--queries", "40", "--data", tmp_path / "data", cwd=tmp_path)
    assert told["records"] == 2_500
    for one in told["queries"]:
        assert one["recall"] >= 0.95, one
    assert told["memory_bytes"]["graph"] > 0
    assert told["resident_bytes"] > told["memory_bytes"]["vectors"] == 2_500 * 384 * 4
    assert answer("collection", "count", "wordnet", "--data", tmp_path / "data", cwd=tmp_path)["count"] == 2_500


@pytest.mark.parametrize(("shape", "index"), [
    ({"metric": "cosine"}, {"index": "hnsw"}),
    ({"metric": "l2"}, {"index": "hnsw", "quantization": "none", "m": 8}),
    ({"metric": "l2"}, {"index": "hnsw", "quantization": "sq4"}),
    ({"metric": "dot"}, {"index": "hnsw", "quantization": "pq", "subspaces": 10}),
    ({"metric": "cosine"}, {"index": "hnsw", "quantization": "rabitq", "bits": 4, "vectors_on_disk": True}),
    ({"metric": "cosine", "vector_type": "uint8"}, {"index": "flat"}),
    ({"metric": "l2", "vector_type": "float16"}, {"index": "ivf_flat"}),
    ({"metric": "l2"}, {"index": "ivf_pq", "nlist": 20}),
], ids=str)
def test_every_layout_takes_what_was_planned(tmp_path: Path, shape: dict, index: dict) -> None:
    from vecdb.core import sizing

    rng = np.random.default_rng(3)
    with vecdb.connect(tmp_path / "data") as database:
        made = database.create_collection("c", 40, **shape, **index)
        vectors = rng.integers(0, 255, (2_000, 40)) if "vector_type" in shape else rng.normal(size=(2_000, 40))
        made.upsert(ids=np.arange(2_000), vectors=vectors)
        used = made.optimize().details["memory_bytes"]
        planned = sizing.size(sizing.Workload(2_000, made.schema))
    by_name = {one.name: one for one in planned.components}
    for name in ("vectors", "graph", "codes", "lists", "ids", "live"):
        expected = by_name[name].memory_bytes if name in by_name else 0
        assert used.get(name, 0) == pytest.approx(expected, rel=0.1), name
    assert used["total"] == pytest.approx(planned.memory_bytes, rel=0.1)
