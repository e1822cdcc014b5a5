"""Every command over the in-memory double: what it prints, what it returns, what it changes."""

from pathlib import Path

import numpy as np
import orjson
import pytest

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
    monkeypatch.setattr(backend, "describe", lambda name: Description(
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
    monkeypatch.setattr(backend, "query", lambda name, request: dataclasses.replace(
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
