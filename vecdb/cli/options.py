"""Options that several commands share, declared once, and the collection settings they make."""

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from vecdb.cli.completing import collections
from vecdb.core.errors import InvalidArgument
from vecdb.core.schema import IndexKind, Metric, Quantization, VectorType

_CLUSTER = "Cluster"
_INDEX = "Index"
_ABOUT = "Collection"

Data: TypeAlias = Annotated[Path | None, typer.Option(
    "--data", help="The database's directory.  [default: VECDB_DATA_DIR, or ./data]", show_default=False)]
Config: TypeAlias = Annotated[Path | None, typer.Option(
    "--config", help="TOML file of settings.  [default: VECDB_CONFIG, or vecdb.toml]", show_default=False)]
Set: TypeAlias = Annotated[list[str] | None, typer.Option(
    "--set", metavar="SECTION.KEY=VALUE", help="Any other setting (repeat it).")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, for programs.")]
Collection: TypeAlias = Annotated[str, typer.Option(
    "--collection", "-c", help="The collection's name.", autocompletion=collections)]
Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="The collection's name.",
                                                    autocompletion=collections)]
Filter: TypeAlias = Annotated[str | None, typer.Option(
    "--filter", "-f", help="Only records that match, as in \"year >= 2020 and lang in ['en', 'de']\".")]

OptMetric: TypeAlias = Annotated[Metric | None, typer.Option(
    "--metric", help="How near two vectors are.  [default: what a file says, else cosine]", show_default=False,
    rich_help_panel=_ABOUT, case_sensitive=False)]
OptVectorType: TypeAlias = Annotated[VectorType | None, typer.Option(
    "--vector-type", help="How a component is stored.", rich_help_panel=_ABOUT, case_sensitive=False)]
IndexedField: TypeAlias = Annotated[list[str] | None, typer.Option(
    "--indexed-field", help="Index only these metadata paths (repeat it); all scalar ones otherwise.",
    rich_help_panel=_ABOUT)]

OptIndex: TypeAlias = Annotated[IndexKind, typer.Option(
    "--index", help="auto is exact for few records and HNSW for many.", rich_help_panel=_INDEX, case_sensitive=False)]
OptQuantization: TypeAlias = Annotated[Quantization, typer.Option(
    "--quantization", help="Codes to search on; the best are reranked exactly.", rich_help_panel=_INDEX,
    case_sensitive=False)]
M: TypeAlias = Annotated[int, typer.Option("--m", help="HNSW: links of a vertex.", rich_help_panel=_INDEX)]
EfConstruction: TypeAlias = Annotated[int, typer.Option(
    "--ef-construction", help="HNSW: width of the search that finds links.", rich_help_panel=_INDEX)]
EfSearchDefault: TypeAlias = Annotated[int, typer.Option(
    "--ef-search", help="HNSW: beam width of queries that name none; 0: chosen.", rich_help_panel=_INDEX)]
Shards: TypeAlias = Annotated[int | None, typer.Option(
    "--shards", help="Of a cluster: in how many parts; else by the expected records.", rich_help_panel=_CLUSTER)]
ReplicationFactor: TypeAlias = Annotated[int | None, typer.Option(
    "--replication-factor", help="Of a cluster: on how many nodes each shard is.", rich_help_panel=_CLUSTER)]
ShardKey: TypeAlias = Annotated[str | None, typer.Option(
    "--shard-key", metavar="FIELD",
    help="Of a cluster: records of one value of this metadata field are on one shard; ids are distinct in all of it.",
    rich_help_panel=_CLUSTER)]
ExpectedRecords: TypeAlias = Annotated[int | None, typer.Option(
    "--expected-records", help="Of a cluster: how many there will be, by which shards are chosen.",
    rich_help_panel=_CLUSTER)]
Nlist: TypeAlias = Annotated[int, typer.Option("--nlist", help="IVF: lists; 0: by size.", rich_help_panel=_INDEX)]
Nprobe: TypeAlias = Annotated[int, typer.Option(
    "--nprobe", help="IVF: lists a query looks into; 0: chosen.", rich_help_panel=_INDEX)]
Subspaces: TypeAlias = Annotated[int, typer.Option(
    "--subspaces", help="PQ: bytes of a code; 0: dim / 4.", rich_help_panel=_INDEX)]
Bits: TypeAlias = Annotated[int, typer.Option("--bits", help="RaBitQ: bits a dimension.", rich_help_panel=_INDEX)]
Oversample: TypeAlias = Annotated[float, typer.Option(
    "--oversample", help="Candidates reranked per result; 0: chosen.", rich_help_panel=_INDEX)]
OnDisk: TypeAlias = Annotated[bool, typer.Option(
    "--vectors-on-disk", help="Leave full vectors in mapped files; codes stay in memory.", rich_help_panel=_INDEX)]


def settings_of(given: list[str] | None) -> dict[str, tuple[str, str]]:
    """The flags that ``--set`` gives, as :func:`vecdb.config.load` takes them."""
    flags: dict[str, tuple[str, str]] = {}
    for one in given or ():
        name, sign, value = one.partition("=")
        if not sign:
            raise InvalidArgument("set", f"{one[:60]!r} is no setting; write --set limits.rate=100", got=one[:60],
                                  limit="SECTION.KEY=VALUE")
        flags[name.strip()] = (value, f"--set {name.strip()}")
    return flags


def index_settings(scope: dict[str, Any]) -> dict[str, Any]:
    """Pick the index's settings out of a command's arguments (its ``locals()``)."""
    names = ("m", "ef_construction", "ef_search", "nlist", "nprobe", "subspaces", "bits", "oversample",
             "vectors_on_disk")
    return {"kind": scope["index"].value, "quantization": scope["quantization"].value,
            **{name: scope[name] for name in names}}
