# mypy: disable-error-code="no-untyped-call"
"""Product quantization, with or without a learned rotation: one byte a subspace.

Jegou, Douze, Schmid, TPAMI 2011.  Distances are asymmetric (the query is exact).  Cosine is half the squared distance
of normalised vectors, which stays exact where a code meets its own centroids; dot is the sum of products.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, Prepared, frozen
from vecdb.ann.quantize.base import Encoded, QuantizedCodes, Rows, State, encode_blocks, no_aux
from vecdb.ann.quantize.kmeans import Floats, Run, as_floats, kmeans, serial
from vecdb.ann.quantize.rotation import BLOCK_DIMS, learn, rotate
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, Quantization
from vecdb.kernels import pq as kernels
from vecdb.kernels.kmeans import dimension_major

_SAMPLE_ROWS = 16_384
"""64 points a centroid: more moved recall@10 by less than the seed does."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How ``dim`` components are cut: ``subspaces`` of ``width``, in ``blocks`` that one rotation each turns."""

    dim: int
    subspaces: int
    width: int
    blocks: int

    @property
    def padded(self) -> int:
        return self.subspaces * self.width


def layout(dim: int, subspaces: int, rotated: bool = False) -> Layout:
    """The cut of ``dim`` into ``subspaces`` (0: a quarter of the dimension), padded with zeros to equal widths."""
    wanted = min(subspaces or -(-dim // 4), dim)
    width = -(-dim // wanted)
    count = -(-dim // width) if not subspaces else wanted
    blocks = -(-count * width // BLOCK_DIMS) if rotated else 1
    return Layout(dim, -(-count // blocks) * blocks, width, blocks)


@dataclass(frozen=True, slots=True, eq=False)
class Codebooks:
    """Codebooks float32 (subspaces, 256, width) and the forms kernels read; works on float points of any origin."""

    cut: Layout
    centroids: Floats
    rotation: Floats | None = None
    centroids_t: Floats = field(init=False)
    half_norms: Floats = field(init=False)

    def __post_init__(self) -> None:
        forms = [dimension_major(codebook) for codebook in self.centroids]
        object.__setattr__(self, "centroids_t", frozen(np.stack([form[0] for form in forms])))
        object.__setattr__(self, "half_norms", frozen(np.stack([form[1] for form in forms])))

    @classmethod
    def train(cls, points: Floats, cut: Layout, *, rotated: bool, seed: int, run: Run = serial) -> Self:
        """Train on ``points`` float32 (n, dim), n >= 1, of which at most 16,384 are used."""
        if len(points) > _SAMPLE_ROWS:
            points = points[np.sort(np.random.default_rng(seed).permutation(len(points))[:_SAMPLE_ROWS])]
        turned = _pad(points, cut.padded)
        rotation = None
        if rotated:
            size, each = cut.padded // cut.blocks, cut.subspaces // cut.blocks
            rotation = frozen(np.stack([learn(np.ascontiguousarray(turned[:, b * size:(b + 1) * size]), each, seed, run)
                                        for b in range(cut.blocks)]))
            turned = rotate(turned, rotation, run)
        centroids = np.empty((cut.subspaces, kernels.CENTROIDS, cut.width), np.float32)

        def one(m: int) -> Callable[[], None]:
            def fit() -> None:
                part = np.ascontiguousarray(turned[:, m * cut.width:(m + 1) * cut.width])
                centroids[m] = kmeans(part, kernels.CENTROIDS, seed=seed + m)

            return fit

        run([one(m) for m in range(cut.subspaces)])
        return cls(cut, frozen(centroids), rotation)

    def turn(self, points: Floats) -> Floats:
        """Padded and rotated ``points``, read-only."""
        padded = _pad(points, self.cut.padded)
        return frozen(padded if self.rotation is None else rotate(padded, self.rotation))

    def encode(self, points: Floats) -> npt.NDArray[np.uint8]:
        """Codes uint8 (n, subspaces) of ``points`` float32 (n, dim)."""
        codes = np.zeros((len(points), self.cut.subspaces), np.uint8)
        kernels.encode(self.turn(points), self.centroids_t, self.half_norms, codes)
        return codes

    @property
    def table_items(self) -> int:
        """Items of one query's tables."""
        return self.cut.subspaces * kernels.CENTROIDS

    def fill_tables(self, queries: Floats, tables: Floats, *, squared: bool, scale: float) -> None:
        """Fill ``tables`` float32 (nq, table_items) with ``scale`` times squared distances, or times products."""
        kernels.fill_tables(self.turn(queries), self.centroids_t, squared, np.float32(scale), tables)

    def decode(self, codes: npt.NDArray[np.uint8]) -> Floats:
        """The points the codes stand for, float32 (n, dim), turned back."""
        places = np.arange(self.cut.subspaces)
        points = self.centroids[places, codes].reshape(len(codes), self.cut.padded)
        if self.rotation is not None:
            points = rotate(points, np.ascontiguousarray(self.rotation.transpose(0, 2, 1)))
        return np.ascontiguousarray(points[:, :self.cut.dim])

    def state(self) -> State:
        state: State = {"centroids": self.centroids}
        if self.rotation is not None:
            state["rotation"] = self.rotation
        return state

    @classmethod
    def from_state(cls, dim: int, state: Mapping[str, npt.NDArray[Any]]) -> Self:
        centroids = frozen(state["centroids"])
        rotation = frozen(state["rotation"]) if "rotation" in state else None
        cut = Layout(dim, centroids.shape[0], centroids.shape[2], 1 if rotation is None else len(rotation))
        return cls(cut, centroids, rotation)


@dataclass(frozen=True, slots=True, eq=False)
class ProductQuantizer:
    """PQ (or OPQ, when the codebooks carry a rotation) of a space's rows."""

    space: Space
    books: Codebooks

    @classmethod
    def train(cls, space: Space, sample: Rows, subspaces: int = 0, *, rotated: bool = False, seed: int = 0,
              run: Run = serial) -> Self:
        """Train codebooks on ``sample`` (n >= 1 stored rows); below 256 rows each is its own centroid."""
        cut = layout(space.dim, subspaces, rotated)
        return cls(space, Codebooks.train(as_floats(space, sample), cut, rotated=rotated, seed=seed, run=run))

    @property
    def kind(self) -> Quantization:
        return Quantization.PQ if self.books.rotation is None else Quantization.OPQ

    @property
    def code_bytes(self) -> int:
        return self.books.cut.subspaces

    def encode(self, stored: Rows, run: Run = serial) -> Encoded:
        codes = np.zeros((len(stored), self.code_bytes), np.uint8)

        def block(rows: Rows, out: npt.NDArray[np.uint8]) -> None:
            out[...] = self.books.encode(as_floats(self.space, rows))

        encode_blocks(stored, codes, block, run)
        return codes, no_aux(len(stored))

    def prepare(self, queries: Rows) -> Prepared:
        """Tables float32 (nq, subspaces * 256): one KiB a subspace and query, so prepare large batches in pieces."""
        tables = np.empty((len(queries), self.books.table_items), np.float32)
        qaux = np.empty((len(queries), 1), np.float32)
        self.prepare_into(queries, tables, qaux)
        return Prepared(tables, qaux)

    def prepare_into(self, queries: Rows, qcodes: Floats, qaux: Floats) -> None:
        """As :meth:`prepare`, into arrays of its shapes."""
        squared = self.space.metric is not Metric.DOT
        scale = {Metric.L2: 1.0, Metric.COSINE: 0.5}.get(self.space.metric, -1.0)
        self.books.fill_tables(as_floats(self.space, queries), qcodes, squared=squared, scale=scale)
        qaux[...] = 0.0

    def codes(self, codes: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> Codes:
        return QuantizedCodes("pq", codes, aux, self)

    def reconstruct(self, codes: npt.NDArray[np.uint8]) -> Floats:
        """The vectors the codes stand for, float32 (n, dim)."""
        return self.books.decode(codes)

    def state(self) -> State:
        return self.books.state()

    @classmethod
    def from_state(cls, space: Space, state: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(space, Codebooks.from_state(space.dim, state))


def _pad(points: Floats, width: int) -> Floats:
    if points.shape[1] == width:
        return np.ascontiguousarray(points)
    padded = np.zeros((len(points), width), np.float32)
    padded[:, :points.shape[1]] = points
    return padded
