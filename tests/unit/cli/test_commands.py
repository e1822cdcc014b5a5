"""Every command over the in-memory double: what it prints, what it returns, what it changes."""

from pathlib import Path

import numpy as np
import orjson
import pytest

from vecdb.cli.output import Output
from vecdb.client.database import Database


def test_create_list_describe_count_drop(cli, backend) -> None:
    made = cli("collection", "create", "a", "--dim", "8", "--metric", "dot", "--index", "hnsw", "--m", "24", "--json")
    assert made.code == 0
    assert made.json["schema"]["index"]["m"] == 24
    assert cli("collection", "create", "b", "-d", "4").code == 0
    listed = cli("collection", "list", "--json").json["collections"]
    assert [(one["name"], one["dim"], one["metric"]) for one in listed] == [("a", 8, "dot"), ("b", 4, "cosine")]
    assert cli("collection", "list", "--count", "--json").json["collections"][0]["records"] == 0
    assert "cosine" in cli("collection", "list").out
    described = cli("collection", "describe", "a", "--json").json
    assert (described["records"], described["schema"]["dim"]) == (0, 8)
    assert "8 x float32, dot" in cli("collection", "describe", "a").out
    assert "hnsw, m=24" in cli("collection", "describe", "a").out
    assert cli("collection", "count", "a").out == "0\n"
    refused = cli("collection", "drop", "a")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert backend.list_collections() == ["a", "b"]
    assert cli("collection", "drop", "a", "--yes").code == 0
    assert backend.list_collections() == ["b"]



@pytest.mark.parametrize(("factor", "warned"), [(None, False), (2, True), (3, False)])
def test_two_replicas_are_made_with_a_word_of_what_they_do_not_stand(cli, backend, factor, warned) -> None:
    asked = () if factor is None else ("--replication-factor", str(factor))
    ran = cli("collection", "create", "a", "-d", "4", *asked)
    assert (ran.code, "loss of either node of a shard stops its writes" in ran.err) == (0, warned), ran.err


@pytest.mark.parametrize(("done", "said"), [(0, "copying: 0 of 8 shards in "), (8, "copying: 8 of 8 shards, ")])
def test_progress_tells_a_rate_only_where_there_is_one(capsys, done, said) -> None:
    with Output(False).progress("copying", unit="shards") as advance:
        advance(done, 8)
    err = capsys.readouterr().err
    assert said in err
    assert ("/s" in err) is bool(done)

def test_reading_opens_read_only_and_writing_does_not(cli, docs, opened) -> None:
    cli("collection", "count", "docs")
    cli("query", "-c", "docs", "--vector", "[0,0,0,0]")
    cli("collection", "optimize", "docs")
    assert [one.get("read_only", False) for one in opened] == [True, True, False]


def test_the_directory_is_the_option_then_the_variable_then_data(cli, docs, opened, monkeypatch, tmp_path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    cli("collection", "list")
    monkeypatch.setenv("VECDB_DATA_DIR", str(tmp_path / "x"))
    cli("collection", "list")
    cli("collection", "list", "--data", tmp_path / "y")
    assert [one["path"].name for one in opened] == ["data", "x", "y"]


def test_query_prints_the_nearest(cli, docs) -> None:
    ran = cli("query", "-c", "docs", "--vector", "[10.2, 0, 0, 0]", "-k", "3", "--json")
    (result,) = ran.json["results"]
    assert [hit["id"] for hit in result["hits"]] == [10, 11, 9]
    assert result["hits"][0]["metadata"]["text"] == "record 10"
    assert result["hits"][0]["distance"] == pytest.approx(0.2, abs=1e-5)
    table = cli("query", "-c", "docs", "--vector", "[10.2, 0, 0, 0]", "-k", "3")
    assert "text=record 10" in table.out
    assert "\x1b" not in table.out + table.err
    filtered = cli("query", "-c", "docs", "--vector", "[10,0,0,0]", "-k", "2", "--filter", "n > 20", "--json").json
    assert [hit["id"] for hit in filtered["results"][0]["hits"]] == [21, 22]
    near = cli("query", "-c", "docs", "--vector", "[10,0,0,0]", "--within", "1.5", "--json").json
    assert sorted(hit["id"] for hit in near["results"][0]["hits"]) == [9, 10, 11]
    assert "nothing found" in cli("query", "-c", "docs", "--vector", "[0,0,0,0]", "--filter", "n > 99").out


def test_query_like_leaves_the_record_itself_out(cli, docs) -> None:
    hits = cli("query", "-c", "docs", "--like", "20", "-k", "2", "--json").json["results"][0]["hits"]
    assert sorted(hit["id"] for hit in hits) == [19, 21]
    hits = cli("query", "-c", "docs", "--like", "last", "-k", "1", "--json").json["results"][0]["hits"]
    assert [hit["id"] for hit in hits] == [48]
    missing = cli("query", "-c", "docs", "--like", "nobody")
    assert missing.code == 3
    assert "nobody" in missing.err


def test_query_like_bounds_k_and_explains_what_was_asked(cli, docs) -> None:
    for k in ("0", "-1", "10000", "10001"):
        ran = cli("query", "-c", "docs", "--like", "20", "-k", k)
        assert ran.code == 2
        assert f"{k} is outside 1..9999" in ran.err
    assert len(cli("query", "-c", "docs", "--like", "20", "-k", "9999", "--json").json["results"][0]["hits"]) == 49


def test_a_filter_that_matches_nothing_says_how_keys_with_dots_are_written(cli, docs) -> None:
    docs.upsert(ids=[1], vectors=[[1, 0, 0, 0]], metadata=[{"a.b": 7}])
    nothing = cli("collection", "count", "docs", "--filter", "a.b == 7")
    assert nothing.out == "0\n"
    assert "`a.b`" in nothing.err
    assert "`a.b`" in cli("query", "-c", "docs", "--like", "1", "--filter", "a.b == 7").err
    found = cli("collection", "count", "docs", "--filter", "`a.b` == 7")
    assert (found.out, found.err) == ("1\n", "")
    assert cli("collection", "count", "docs", "--filter", "x == 7").err == ""


def test_query_with_a_file_of_vectors(cli, docs, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.array([5, 0, 0, 0], np.float32))
    np.save(tmp_path / "two.npy", np.array([[5, 0, 0, 0], [7, 0, 0, 0]], np.float32))
    one = cli("query", "-c", "docs", "--vector-file", "one.npy", "-k", "1", "--vectors", "--json").json
    assert one["results"][0]["hits"][0]["vector"] == [5, 0, 0, 0]
    two = cli("query", "-c", "docs", "--vector-file", "two.npy", "-k", "1", "--json").json
    assert [result["hits"][0]["id"] for result in two["results"]] == [5, 7]
    assert "query 1" in cli("query", "-c", "docs", "--vector-file", "two.npy", "-k", "1").out


@pytest.mark.parametrize("argv", [
    ["query", "-c", "docs"],
    ["query", "-c", "docs", "--vector", "[1,2", "--json"],
    ["query", "-c", "docs", "--vector", "7"],
    ["query", "-c", "docs", "--vector", "[1,2]"],
    ["query", "-c", "docs", "--vector", "[1,2,3,4]", "--like", "1"],
    ["query", "-c", "docs", "--vector", "[1,2,3,4]", "-k", "0"],
    ["query", "-c", "docs", "--vector", "[1,2,3,4]", "--filter", "n >"],
    ["query", "-c", "docs", "--vector-file", "none.npy"],
    ["export", "-c", "docs", "out.csv"],
    ["import", "none.npy", "-c", "docs"],
    ["collection", "create", "bad name", "-d", "4"],
    ["collection", "create", "new", "-d", "0"],
    ["collection", "create", "new", "-d", "4", "--m", "1"],
    ["collection", "create", "new"],
    ["plan", "--records", "many", "--dim", "4"],
    ["plan"],
    ["nonsense"],
    ["query", "--nonsense"],
])
def test_what_is_refused_exits_with_2_and_changes_nothing(cli, docs, backend, argv) -> None:
    before = backend.state()
    ran = cli(*argv)
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err
    assert "Traceback" not in ran.err
    assert backend.state() == before


def test_exits_3_and_4(cli, docs) -> None:
    assert cli("query", "-c", "none", "--vector", "[1]").code == 3
    assert cli("collection", "count", "docs", "--data", "elsewhere").code == 3
    assert cli("import", "none.npy", "-c", "docs", "--no-create", "--data", "elsewhere").code == 2
    exists = cli("collection", "create", "docs", "-d", "4", "--json")
    assert exists.code == 4
    assert exists.error["code"] == "ALREADY_EXISTS"
    assert exists.error["exit_code"] == 4
    assert exists.out == ""


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".npy", ".hdf5", ".fvecs"])
def test_export_and_import_give_the_same_collection(cli, docs, backend, suffix: str, tmp_path: Path) -> None:
    where = "n < 40" if suffix in (".parquet", ".hdf5") else "n >= 0"  # a column has ids of one kind
    out = cli("export", f"out{suffix}", "-c", "docs", "--filter", where, "--batch-size", "7", "--json")
    assert out.code == 0, out
    count = out.json["records"]
    assert count == docs.count(filter=where)
    beside = ["--metadata", "out.jsonl"] if suffix in (".npy", ".fvecs") else []
    for again in (False, True):
        ran = cli("import", f"out{suffix}", "-c", "copy", "--metric", "l2", "--batch-size", "11", *beside, "--json")
        assert ran.code == 0, ran
        assert (ran.json["inserted"], ran.json["updated"]) == ((0, count) if again else (count, 0))
        assert ran.json["records"] == count
    copy = Database(backend).collection("copy")
    for old, new in zip(docs.scan(where, include=("metadata", "vector")), copy.scan(include=("metadata", "vector")),
                        strict=True):
        assert (old.id, old.metadata, old.vector.tolist()) == (new.id, new.metadata, new.vector.tolist())


def test_export_refuses_to_replace_and_leaves_no_part(cli, docs, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    assert cli("export", "out.jsonl", "-c", "docs").code == 2
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    assert cli("export", "out.jsonl", "-c", "docs", "--force").code == 0
    mixed = cli("export", "out.parquet", "-c", "docs")
    assert mixed.code == 2
    assert "one kind" in mixed.err
    assert not list(tmp_path.glob("out.parquet*"))


def test_import_names_the_file_and_the_row_and_says_where_to_go_on(cli, docs, backend, tmp_path: Path) -> None:
    good = [orjson.dumps({"id": n, "vector": [n, 0, 0, 0]}).decode() for n in range(100, 110)]
    (tmp_path / "in.jsonl").write_text("\n".join([*good, '{"id": 3, "vector": [1, 2]}']))
    ran = cli("import", "in.jsonl", "-c", "docs", "--batch-size", "4")
    assert ran.code == 2
    assert "in.jsonl, line 11: the vector has 2 components" in ran.err
    assert "--start-row 8" in ran.err
    (tmp_path / "in.jsonl").write_text("\n".join([*good, '{"id": 3, "vector": [1, 2, 3, 4]}']))
    ran = cli("import", "in.jsonl", "-c", "docs", "--batch-size", "4", "--start-row", "6", "--json")
    assert (ran.json["rows"], ran.json["inserted"], ran.json["updated"]) == (5, 2, 3)
    (tmp_path / "big.jsonl").write_text(orjson.dumps({"vector": [1, 2, 3, 4], "text": "x" * 70_000}).decode())
    ran = cli("import", "big.jsonl", "-c", "docs", "--json")
    assert ran.code == 2
    assert "big.jsonl, rows 0..0" in ran.error["message"]


def test_import_checks_the_collection_it_finds(cli, docs, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((3, 5), np.float32))
    wrong = cli("import", "v.npy", "-c", "docs")
    assert wrong.code == 2
    assert "5 dimensions, collection docs has 4" in wrong.err
    np.save(tmp_path / "v.npy", np.ones((3, 4), np.float32))
    assert cli("import", "v.npy", "-c", "docs", "--metric", "dot").code == 2
    assert cli("import", "v.npy", "-c", "new", "--no-create").code == 3
    limited = cli("import", "v.npy", "-c", "docs", "--limit", "2", "--json")
    assert limited.json["rows"] == 2


def test_a_failed_import_leaves_no_empty_collection(cli, docs, backend, tmp_path: Path) -> None:
    good = [orjson.dumps({"id": n, "vector": [n, 1]}).decode() for n in range(5)]
    (tmp_path / "in.jsonl").write_text("\n".join([*good, '{"id": 3, "vector": [1]}']))
    ran = cli("import", "in.jsonl", "-c", "new")
    assert ran.code == 2
    assert "dropped collection new" in ran.err
    assert backend.list_collections() == ["docs"]
    assert cli("import", "in.jsonl", "-c", "new", "--batch-size", "2").code == 2
    assert backend.count("new") == 4  # what was stored stays, and --start-row goes on from it
    made = cli("collection", "create", "mine", "-d", "2")
    assert (made.code, cli("import", "in.jsonl", "-c", "mine").code) == (0, 2)
    assert "mine" in backend.list_collections()


def test_the_figures_of_an_import_add_up(cli, tmp_path: Path) -> None:
    ids = [1, 2, 2, 3, 1, 4, 4, 4]
    (tmp_path / "in.jsonl").write_text("\n".join(orjson.dumps({"id": i, "vector": [i, 1]}).decode() for i in ids))
    told = cli("import", "in.jsonl", "-c", "a", "--batch-size", "4", "--json").json
    assert (told["rows"], told["inserted"], told["updated"], told["duplicates"]) == (8, 4, 1, 3)
    assert "1 updated, 3 replaced by a later row of their batch" in cli(
        "import", "in.jsonl", "-c", "b", "--batch-size", "4").out


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".npy", ".hdf5", ".fvecs"])
def test_metric_and_type_survive_export_and_import(cli, backend, suffix: str) -> None:
    for name, shape in (("a", {"metric": "l2"}), ("b", {"metric": "dot", "vector_type": "float16"}),
                        ("c", {"metric": "hamming", "vector_type": "binary"})):
        made = Database(backend).create_collection(name, dim=16, **shape)
        made.upsert(ids=[0, 1], vectors=np.arange(2 * made.schema.row_items).reshape(2, -1).astype(np.uint8))
        assert cli("export", f"{name}{suffix}", "-c", name).code == 0
        ran = cli("import", f"{name}{suffix}", "-c", f"{name}2")
        assert (ran.code, "warning" in ran.err) == (0, False), ran
        copy = Database(backend).collection(f"{name}2")
        assert (copy.metric, copy.dim, copy.schema.vector_type) == (made.metric, 16, made.schema.vector_type)
        for record in made.scan(include=["vector"]):
            assert copy.get(record.id).vector.tolist() == record.vector.tolist()


def test_a_metric_taken_by_default_is_told(cli, backend, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((3, 4), np.float32))
    assert "does not say its metric: took cosine" in cli("import", "v.npy", "-c", "a", "--json").err
    assert cli("import", "v.npy", "-c", "a", "--json").err == ""
    assert cli("import", "v.npy", "-c", "b", "--metric", "l2", "--json").err == ""
    assert backend.schema("b").metric == "l2"


def test_export_around_damage(cli, docs, backend, monkeypatch, tmp_path: Path) -> None:
    from vecdb.core.errors import DataCorrupted
    lost = (3, 4, 30)
    scan, fetch = backend.scan, backend.fetch

    def broken(name, request, call=None):
        page = scan(name, request)
        found = tuple(one for one in page.ids if one in lost)
        if request.include_vectors and found:
            raise DataCorrupted(f"the vectors of {len(found)} records are damaged on disk", path="x", ids=found)
        return page

    monkeypatch.setattr(backend, "scan", broken)
    refused = cli("export", "out.jsonl", "-c", "docs")
    assert refused.code == 6
    assert "--skip-damaged" in refused.err
    assert not list(tmp_path.glob("out*"))
    ran = cli("export", "out.jsonl", "-c", "docs", "--skip-damaged", "--batch-size", "10", "--json")
    assert (ran.code, ran.json["records"], ran.json["damaged"], ran.json["damaged_ids"]) == (6, 47, 3, list(lost))
    assert "3 records were left out, their vectors are damaged: 3, 4, 30" in ran.err
    written = [orjson.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [one for one in [*range(49), "last"] if one not in lost]
    assert fetch("docs", [3])


def test_a_limit_of_memory_that_cannot_be_kept_is_told(cli, docs, backend, monkeypatch) -> None:
    few = ["plan", "-n", "1e6", "-d", "384", "--json"]
    small = cli(*few, "--memory", "1MB")
    assert (small.code, small.json["fits"]) == (0, False)
    assert "even the smallest layout takes" in small.err
    assert (cli(*few, "--memory", "10GB").json["fits"], cli(*few).json["fits"]) == (True, None)
    from vecdb.core.query import Description
    monkeypatch.setattr(backend, "describe", lambda name, call=None: Description(
        name, 50, {"memory_bytes": {"vectors": 3_000, "graph": 2_000, "ids": 900, "total": 5_900}}))
    monkeypatch.setenv("VECDB_ENGINE__MEMORY_BYTES", "4096")
    assert "take 4.9 KiB, more than memory_bytes=4096" in cli("collection", "describe", "docs").err
    monkeypatch.setenv("VECDB_ENGINE__MEMORY_BYTES", "5000")
    assert cli("collection", "describe", "docs", "--json").err == ""


def test_import_takes_shape_and_metric_from_the_file(cli, backend, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "in.hdf5", "w") as file:
        file["train"] = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
        file["train_label"] = np.arange(20)
        file.attrs["distance"] = "euclidean"
    assert cli("import", "in.hdf5", "-c", "new").code == 0
    schema = backend.schema("new")
    assert (schema.dim, schema.metric) == (6, "l2")
    assert backend.fetch("new", [7])[0].metadata == {"label": 7}
    np.save(tmp_path / "bits.npy", np.random.default_rng(1).integers(0, 256, (9, 4)).astype(np.uint8))
    assert cli("import", "bits.npy", "-c", "bits", "--vector-type", "binary").code == 0
    assert (backend.schema("bits").dim, backend.schema("bits").metric) == (32, "hamming")
    assert cli("import", "bits.npy", "-c", "bits").code == 0
    assert backend.count("bits") == 9


def test_version_help_and_doctor(cli) -> None:
    assert cli("version").out.strip() == cli("version", "--json").json["version"]
    assert cli("--version").out == cli("version").out
    assert "Commands" in cli("--help").out
    found = cli("doctor", "--json").json
    assert {"versions", "processor", "kernels", "disk", "database"} <= {check["name"] for check in found["checks"]}
    assert all(check["state"] in ("ok", "warn", "fail") for check in found["checks"])


def test_doctor_finds_damage(cli, docs, backend, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data" / "x").touch()
    assert cli("doctor", "--json").json["ok"]
    from vecdb.core.query import Description
    monkeypatch.setattr(backend, "describe", lambda name, call=None: Description(
        name, 3, {"damage": [{"segment": 2, "messages": ["7 vectors of vectors.vdb are damaged"], "lost_records": 2,
                              "lost_ids": [41, "b"]}]}))
    ran = cli("doctor", "--data", "data")
    assert ran.code == 6
    assert "7 vectors" in ran.out
    assert "41, b" in ran.out
    assert cli("doctor", "--data", "nowhere").code == 3


def test_a_partial_answer_says_so_and_exits_with_6(cli, docs, backend, monkeypatch) -> None:
    import dataclasses
    real = backend.query
    monkeypatch.setattr(backend, "query", lambda name, request, call=None: dataclasses.replace(
        real(name, request), missing=("segment 3 (sealed)",)))
    ran = cli("query", "-c", "docs", "--vector", "[1,0,0,0]", "-k", "1", "--json")
    assert ran.code == 6
    assert ran.json["results"][0]["hits"][0]["id"] == 1
    assert ran.json["results"][0]["missing"] == ["segment 3 (sealed)"]
    assert "partial" in ran.err


def test_quickstart_over_a_small_part_of_the_set(cli, opened, monkeypatch) -> None:
    import dataclasses

    from vecdb import datasets
    whole = datasets.load_wordnet()
    part = dataclasses.replace(whole, ids=whole.ids[:1500], vectors=whole.vectors[:1500],
                               metadata=whole.metadata[:1500])
    monkeypatch.setattr(datasets, "load_wordnet", lambda: part)
    ran = cli("quickstart", "--queries", "5", "--json")
    assert ran.code == 0, ran
    told = ran.json
    assert [one["recall"] for one in told["queries"]] == [1.0] * len(told["queries"])  # the double is exact
    assert told["queries"][0]["matching"] == 1500
    assert all(one["matching"] < 1500 for one in told["queries"][1:])
    assert not opened[0]["path"].exists()
    assert len(told["examples"][0]["hits"]) == 3


def test_quickstart_tables_and_next_steps(cli, monkeypatch) -> None:
    import dataclasses

    from vecdb import datasets
    whole = datasets.load_wordnet()
    part = dataclasses.replace(whole, ids=whole.ids[:1500], vectors=whole.vectors[:1500],
                               metadata=whole.metadata[:1500])
    monkeypatch.setattr(datasets, "load_wordnet", lambda: part)
    ran = cli("quickstart", "--queries", "3", "--data", "kept")
    assert ran.code == 0, ran
    for words in ("recall@10", "1.0000", "tag_count >= 5", "p99 ms", "RSS", "nearest", "Try next", "HNSW"):
        assert words in ran.out
    assert "\x1b" not in ran.out + ran.err
    again = cli("quickstart", "--queries", "3", "--data", "kept")
    assert again.code == 4
