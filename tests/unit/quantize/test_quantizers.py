"""What all quantizers promise: sizes, states, determinism, read-only arrays, refusals, and recall."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests import goldens
from tests.oracles import quantizers as oracle
from vecdb.ann import flat
from vecdb.ann.codes import RowCodes
from vecdb.ann.quantize import code_bytes, default_oversample, from_state, state_bytes, train
from vecdb.ann.rerank import rerank
from vecdb.ann.space import Space
from vecdb.core.errors import InvalidArgument, Unsupported
from vecdb.core.schema import IndexSpec, Metric, Quantization, VectorType

SPECS = [IndexSpec(quantization="sq8"), IndexSpec(quantization="sq4"), IndexSpec(quantization="pq"),
         IndexSpec(quantization="opq", subspaces=6), *(IndexSpec(quantization="rabitq", bits=b) for b in range(1, 9))]
METRICS = [Metric.L2, Metric.DOT, Metric.COSINE]


def name_of(spec):
    return f"{spec.quantization}{spec.bits if spec.quantization is Quantization.RABITQ else ''}"


every_spec = pytest.mark.parametrize("spec", SPECS, ids=name_of)


def on_threads(thunks):
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(thunk) for thunk in reversed(thunks)]:
            future.result()


def clustered(count, dim, seed):
    """Points around 40 centres, as embeddings lie: neighbours are much nearer than strangers."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, dim)) * 0.8
    return centres[rng.integers(0, 40, count)] + rng.standard_normal((count, dim)) * 0.5


def space_of(metric, dim=24, kind=VectorType.FLOAT32):
    return Space(metric, kind, dim)


@every_spec
@pytest.mark.parametrize("dim", [1, 17, 100])
def test_sizes_are_known_beforehand(spec, dim):
    space = space_of(Metric.L2, dim)
    rows = space.encode(clustered(40, dim, 1))
    quantizer = train(spec, space, rows)
    codes, aux = quantizer.encode(rows)
    assert quantizer.kind is spec.quantization
    assert code_bytes(spec, space) == quantizer.code_bytes == (codes.nbytes + aux.nbytes) / 40
    stored = sum(array.nbytes for array in quantizer.state().values())
    assert stored <= state_bytes(spec, space) <= 5 * stored + 64


@every_spec
@pytest.mark.parametrize("metric", METRICS)
def test_a_state_gives_the_quantizer_back(spec, metric):
    space = space_of(metric)
    rows, queries = space.encode(clustered(300, 24, 1)), space.encode(clustered(3, 24, 2))
    quantizer = train(spec, space, rows)
    state = {name: array.copy() for name, array in quantizer.state().items()}
    for array in state.values():
        array.flags.writeable = False
    again = from_state(spec.quantization, space, state)
    first, second = quantizer.encode(rows), again.encode(rows)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    prepared = [q.codes(*first).prepare(queries) for q in (quantizer, again)]
    assert np.array_equal(prepared[0].codes, prepared[1].codes)
    # a query's float sums are loose: their order, and so the last bit, may depend on where the arrays lie in memory
    np.testing.assert_allclose(prepared[0].aux, prepared[1].aux, rtol=2e-6)


@every_spec
def test_threads_and_other_rows_do_not_change_a_bit(spec):
    space = space_of(Metric.COSINE)
    rows = space.encode(clustered(9000, 24, 3))
    one, many = train(spec, space, rows, seed=5), train(spec, space, rows, seed=5, run=on_threads)
    for name, array in one.state().items():
        assert np.array_equal(array, many.state()[name]), name
    codes, _ = one.encode(rows)
    assert np.array_equal(codes, many.encode(rows, on_threads)[0])
    assert np.array_equal(codes[4090:4100], one.encode(rows[4090:4100])[0])
    assert np.array_equal(codes[:64], one.encode(space.pad(rows[:64]))[0])


@every_spec
def test_one_query_is_prepared_in_place_as_among_many(spec):
    space = space_of(Metric.L2)
    rows, queries = space.encode(clustered(300, 24, 1)), space.encode(clustered(5, 24, 2))
    quantizer = train(spec, space, rows)
    codes = quantizer.codes(*quantizer.encode(rows))
    whole, one = codes.prepare(queries), codes.prepare(queries[:1])
    qcodes, qaux = one.codes.copy(), one.aux.copy()
    put = codes.preparer(qcodes, qaux)
    for q in range(5):
        put(queries[q:q + 1])
        assert np.array_equal(qcodes[0], whole.codes[q])
        np.testing.assert_allclose(qaux[0], whole.aux[q], rtol=2e-6)


@every_spec
def test_codes_of_read_only_rows_are_read_only_and_borrowed(spec):
    space = space_of(Metric.DOT)
    rows = space.encode(clustered(50, 24, 1))
    rows.flags.writeable = False
    quantizer = train(spec, space, rows)
    codes, aux = quantizer.encode(rows)
    held = quantizer.codes(codes, aux)
    assert np.shares_memory(held.codes, codes)
    assert not held.codes.flags.writeable
    assert codes.flags.writeable


@every_spec
@pytest.mark.parametrize("metric", METRICS)
def test_duplicates_get_one_code_and_one_score(spec, metric):
    space = space_of(metric)
    rows = space.encode(np.repeat(clustered(20, 24, 1), 5, axis=0))
    quantizer = train(spec, space, rows)
    codes, aux = quantizer.encode(rows)
    scores = oracle.scores(quantizer.codes(codes, aux), rows[:2]).reshape(2, 20, 5)
    assert np.all(scores == scores[:, :, :1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [VectorType.FLOAT16, VectorType.INT8, VectorType.UINT8])
@pytest.mark.parametrize("spec", [SPECS[1], SPECS[4], SPECS[7]], ids=name_of)
def test_other_stored_types(spec, kind, metric):
    space = space_of(metric, 24, kind)
    scale, shift = (1, 0) if space.is_float else (20, 100 if kind is VectorType.UINT8 else 0)
    rows, queries = (space.encode(clustered(n, 24, n) * scale + shift) for n in (400, 4))
    quantizer = train(spec, space, rows)
    scores = oracle.scores(quantizer.codes(*quantizer.encode(rows)), queries)
    floats, asked = rows.astype(np.float64), queries.astype(np.float64)
    if metric is Metric.COSINE:
        floats /= np.linalg.norm(floats, axis=1, keepdims=True)
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    exact = oracle.distances(metric, asked, floats)
    assert np.corrcoef(scores.ravel(), exact.ravel())[0, 1] > (0.85 if spec.bits == 1 and spec is SPECS[4] else 0.98)


@pytest.mark.parametrize("kind", ["none", "auto"])
def test_what_names_no_codes_is_refused(kind):
    with pytest.raises(InvalidArgument, match="quantization"):
        train(IndexSpec(quantization=kind), space_of(Metric.L2), np.zeros((1, 24), np.float32))


@pytest.mark.parametrize("kind", ["sq8", "sq4", "pq", "opq", "rabitq"])
def test_binary_vectors_are_refused(kind):
    space = Space(Metric.HAMMING, VectorType.BINARY, 64)
    with pytest.raises(Unsupported, match="binary"):
        train(IndexSpec(quantization=kind), space, np.zeros((1, 8), np.uint8))
    with pytest.raises(Unsupported):
        from_state(Quantization(kind), space, {})


def test_oversample_falls_with_bits_and_with_the_dimension():
    for dim in (1, 50, 128, 768, 4096):
        by_bits = [default_oversample(Quantization.RABITQ, bits, dim) for bits in range(1, 9)]
        assert by_bits == sorted(by_bits, reverse=True)
        assert 1.5 <= by_bits[-1] <= by_bits[0] <= 32
        by_width = [default_oversample(Quantization.PQ, 1, dim, max(1, dim // width)) for width in (2, 4, 8, 16)]
        assert by_width == sorted(by_width)
        assert default_oversample(Quantization.NONE, 1, dim) == 1.0
    for bits in (1, 2, 3):
        by_dim = [default_oversample(Quantization.RABITQ, bits, dim) for dim in (64, 128, 384, 1536)]
        assert by_dim == sorted(by_dim, reverse=True)


@pytest.mark.parametrize("metric", METRICS)
def test_recall_at_the_default_oversample(metric):
    space = space_of(metric, 96)
    rows = space.pad(space.encode(clustered(4000, 96, 11)))
    queries = space.encode(clustered(60, 96, 12))
    exact = flat.scan(RowCodes(space, rows, space.aux(rows)), queries, k=10).ordinals
    measured = {}
    for spec in SPECS:
        quantizer = train(spec, space, rows, seed=1)
        scores = oracle.scores(quantizer.codes(*quantizer.encode(rows)), queries)
        subspaces = code_bytes(spec, space) if spec.quantization in ("pq", "opq") else 0
        oversample = default_oversample(spec.quantization, spec.bits, 96, subspaces)
        for label, keep in (("1", 10), ("default", round(10 * oversample))):
            near = np.argsort(scores, axis=1, kind="stable")[:, :keep]
            hits = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(near, exact, strict=True)])
            measured[f"{name_of(spec)} x{label}"] = hits
    assert all(recall >= 0.95 for key, recall in measured.items() if key.endswith("default")), measured
    goldens.check(f"quantize_recall_{metric.value}", measured, tolerance=0.02)


@pytest.mark.parametrize("spec", [SPECS[2], SPECS[4]], ids=name_of)
def test_scan_and_rerank(spec):
    space = space_of(Metric.L2, 96)
    rows = space.pad(space.encode(clustered(3000, 96, 13)))
    queries = space.encode(clustered(20, 96, 14))
    aux = space.aux(rows)
    quantizer = train(spec, space, rows)
    codes = quantizer.codes(*quantizer.encode(rows))
    found = rerank(space, rows, aux, queries, flat.scan(codes, queries, k=200), 10)
    exact = flat.scan(RowCodes(space, rows, aux), queries, k=10)
    np.testing.assert_allclose(found.distances, exact.distances, rtol=0.02)
    assert np.mean(found.ordinals == exact.ordinals) > 0.9


_ASK = """
import numpy as np
from tests.oracles.quantizers import _make_scores
from vecdb.ann.codes import frozen
from vecdb.kernels.registry import made

entry = made("tests.scores", "pq", _make_scores)
codes, tables = np.array([[3], [200]], np.uint8), np.arange(256, dtype=np.float32)[None]
none, zero, out = np.zeros((2, 0), np.float32), np.zeros((1, 1), np.float32), np.zeros((1, 2), np.float32)
entry(frozen(codes), frozen(none), frozen(tables), frozen(zero), out)
print(out.tolist(), sum(entry.stats.cache_hits.values()))
"""


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [subprocess.run([sys.executable, "-c", _ASK], env=environment, capture_output=True, text=True, timeout=240,
                           check=True).stdout for _ in range(2)]
    assert said == ["[[3.0, 200.0]] 0\n", "[[3.0, 200.0]] 1\n"]
