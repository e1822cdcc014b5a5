"""``vecdb query``: the nearest records to a vector, to the vectors of a file, or to a record."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import options as o
from vecdb.cli.exits import DATA_LOSS, NotFoundError
from vecdb.cli.output import Output, duration, shorten
from vecdb.cli.session import open_database, parse_id
from vecdb.cli.target import HERE, Target, with_target
from vecdb.core.errors import InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from vecdb.client.collection import Collection
    from vecdb.client.results import Hits


@with_target
def query(collection: o.Collection, target: Target = HERE,
          vector: Annotated[str | None, typer.Option("--vector", help="A JSON list of numbers; - reads it from "
                                                     "stdin.")] = None,
          vector_file: Annotated[Path | None, typer.Option("--vector-file", help=".npy, .fvecs, .jsonl ... of one or "
                                                           "many queries.")] = None,
          like: Annotated[str | None, typer.Option("--like", metavar="ID", help="Near this record (itself left "
                                                   "out).")] = None,
          k: Annotated[int, typer.Option("-k", "--k", help="Results a query.")] = 10,
          where: o.Filter = None,
          ef_search: Annotated[int | None, typer.Option("--ef-search", help="HNSW beam width.")] = None,
          nprobe: Annotated[int | None, typer.Option("--nprobe", help="IVF lists to look into.")] = None,
          within: Annotated[float | None, typer.Option("--within", help="Only so near or nearer.")] = None,
          exact: Annotated[bool, typer.Option("--exact", help="Compare with every record.")] = False,
          explain: Annotated[bool, typer.Option("--explain", help="Say how it was done.")] = False,
          vectors: Annotated[bool, typer.Option("--vectors", help="Include the vectors (--json).")] = False,
          as_json: o.Json = False) -> None:
    """Find the nearest records."""
    given = [name for name, value in (("--vector", vector), ("--vector-file", vector_file), ("--like", like))
             if value is not None]
    if len(given) != 1:
        raise InvalidArgument("vector", "give exactly one of --vector, --vector-file and --like",
                              got=", ".join(given) or "none", limit="one")
    import time

    settings: dict[str, Any] = {"filter": where, "ef_search": ef_search, "nprobe": nprobe, "within": within,
                                "exact": exact, "explain": explain,
                                "include": ("metadata", "vector") if vectors else ("metadata",)}
    out = Output(as_json)
    with open_database(target) as database:
        source = database.collection(collection)
        begin = time.perf_counter()
        if like is not None:
            answers = [_near(source, like, k, settings)]
        else:
            wanted = _parse(vector) if vector is not None else _read(vector_file or Path())
            found = source.query(wanted, k=k, **settings)
            answers = found if isinstance(found, list) else [found]
        spent = time.perf_counter() - begin
    _print(out, collection, k, answers, spent)
    if not any(len(hits) for hits in answers):
        out.hint_paths(where)
    missing = [name for hits in answers for name in hits.missing]
    if missing:
        out.warn(f"the answer is partial: {', '.join(dict.fromkeys(missing))} could not be searched")
        raise typer.Exit(DATA_LOSS)


def _parse(text: str) -> Any:
    import sys

    import orjson

    if text == "-":
        text = sys.stdin.read()
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument("vector", f"not JSON: {error}", got=text[:60], limit="a list of numbers") from None
    if not isinstance(value, list):
        raise InvalidArgument("vector", f"must be a list of numbers, not {type(value).__name__}",
                              got=type(value).__name__, limit="a list of numbers")
    return value


def _read(path: Path) -> Any:
    """The vectors of a file; a 1-D ``.npy`` is one query."""
    import numpy as np

    from vecdb.formats import open_source

    if path.suffix.lower() == ".npy" and path.is_file():
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InvalidArgument("vector_file", f"{path}: {error}", got=str(path), limit=".npy") from None
        if isinstance(array, np.ndarray) and array.ndim == 1:
            return array
    source = open_source(path)
    try:
        blocks = [batch.vectors for batch in source.batches()]
    finally:
        source.close()
    if not blocks:
        raise InvalidArgument("vector_file", f"{path} holds no vectors", got=0, limit="at least one")
    return np.concatenate(blocks)


def _near(target: "Collection", like: str, k: int, settings: dict[str, Any]) -> "Hits":
    """Query by a record's own vector; one more is asked for, and the record itself is taken out."""
    from vecdb.client.results import Hits
    from vecdb.core.limits import MAX_K
    from vecdb.core.query import Matches

    if not 1 <= k < MAX_K:
        raise LimitExceeded("k", f"{k} is outside 1..{MAX_K - 1}: with --like the record itself is asked for too, and "
                            "left out", got=k, limit=f"1..{MAX_K - 1}")
    for identity in parse_id(like):
        record = target.get(identity, include=("vector",))
        if record is not None:
            break
    else:
        raise NotFoundError(f"no record {like!r} in {target.name}", collection=target.name, id=like)
    hits: Hits = target.query(record.vector, k=k + 1, **settings)
    place = hits.ids.index(record.id) if record.id in hits.ids else k
    kept = [n for n in range(len(hits)) if n != place][:k]
    matches = Matches([hits.ids[n] for n in kept], hits.distances[kept],
                      None if hits.metadata is None else [hits.metadata[n] for n in kept],
                      None if hits.vectors is None else hits.vectors[kept])
    plan = hits.plan if hits.plan is None or "k" not in hits.plan else {**hits.plan, "k": k}
    return Hits(matches, target.metric, plan, hits.missing)


def _print(out: Output, collection: str, k: int, answers: "list[Hits]", spent: float) -> None:
    if out.as_json:
        results = [{"hits": [{"id": hit.id, "distance": hit.distance, "score": hit.score, "metadata": hit.metadata,
                              **({} if hit.vector is None else {"vector": hit.vector.tolist()})} for hit in hits],
                    "missing": list(hits.missing), **({} if hits.plan is None else {"plan": hits.plan})}
                   for hits in answers]
        out.emit({"collection": collection, "k": k, "results": results, "seconds": round(spent, 6)})
        return
    for number, hits in enumerate(answers):
        out.table(f"query {number}" if len(answers) > 1 else "", ["", "id", "distance", "score", "metadata"],
                  [[rank, hit.id, f"{hit.distance:.4f}", f"{hit.score:.4f}", _brief(hit.metadata)]
                   for rank, hit in enumerate(hits, 1)], left=(1, 4))
        if hits.plan is not None and (number == 0 or hits.plan != answers[number - 1].plan):
            import orjson

            out.say(orjson.dumps(hits.plan, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
                                 | orjson.OPT_SERIALIZE_NUMPY).decode())
    if not any(len(hits) for hits in answers):
        out.say("nothing found")
    out.note(f"{len(answers)} quer{'y' if len(answers) == 1 else 'ies'} in {duration(spent)}")


def _brief(metadata: dict[str, Any] | None, room: int = 160) -> str:
    if not metadata:
        return ""
    return shorten(", ".join(f"{name}={value}" for name, value in metadata.items()), room)
