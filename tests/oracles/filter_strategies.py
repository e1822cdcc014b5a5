"""Random metadata and filters that meet often: few keys, and values from one pool."""

from hypothesis import strategies as st

from vecdb.core.filters import check
from vecdb.core.filters.tree import And, Everything, Exists, IsNull, Not, Or, Time

NUMBERS = (0, 1, -1, 2020, 2**53, 2**53 + 1, float(2**53), -(2**63), 2**63 - 1, 2**63, 2**64 - 1, 2**63 + 1,
           0.0, -0.0, 1.0, 0.5, -1.5, 2020.0, 1e300, -1e300, 5e-324, float(2**63), float(2**64))
FOREIGN_NUMBERS = (10**30, -(10**30), 10**400, -(10**400), 2**64, -(2**63) - 1, 0.1, 1e-300)
STRINGS = ("", "a", "ab", "abc", "b", "é", "日本", "\U0001f600", "\uffff", "a\nb", "2020", "true", "long " * 300,
           "long " * 300 + "!", "z" * 1024, "z" * 1025)
TIMES = ("2024-01-31T12:00:00Z", "2024-01-31t13:00:00+01:00", "2024-01-31", "1969-12-31T23:59:59.5Z",
         "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2024-01-31T12:00:00", "2024-13-01T00:00:00Z", "2024-02-30")
INSTANTS = (1706702400_000000000, -500_000_000, 2**63 - 1, -(2**63), 0, 1706659200_000000000)
LATS = (-90.0, -89.9, 0, 0.01, 45.5, 90.0, 89.99, 91.0)
LONS = (-180.0, -179.99, 0, 0.01, 13, 179.99, 180, 181.0)
KEYS = ("a", "b", "c", "x.y", "back\\slash")
PATHS = ("a", "b", "c", "a.b", "a.b.c", "a.a", "b.c", "x\\.y", "back\\\\slash", "a.lat", "missing", "a.missing")

texts = st.sampled_from(STRINGS) | st.sampled_from(TIMES) | st.text(max_size=3)
scalars = (st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers(-3, 3) | texts
           | st.floats(allow_nan=False, allow_infinity=False))
points = st.fixed_dictionaries({"lat": st.sampled_from(LATS), "lon": st.sampled_from(LONS)})
values = st.recursive(scalars | points, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3), max_leaves=6)
records = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)

paths = st.sampled_from(PATHS)
wanted_numbers = st.sampled_from(NUMBERS + FOREIGN_NUMBERS) | st.integers(-3, 3)
times = st.sampled_from(INSTANTS).map(Time)
ordered = wanted_numbers | texts | times
wanted = ordered | st.booleans() | st.none()
leaves = st.one_of(
    st.builds(check.compare, paths, st.sampled_from(("==", "!=")), wanted),
    st.builds(check.compare, paths, st.sampled_from(("<", "<=", ">", ">=")), ordered),
    st.builds(check.is_in, paths, st.lists(wanted, max_size=5)),
    st.builds(check.prefix, paths, texts),
    st.builds(check.contains, paths, texts),
    st.builds(Exists, paths),
    st.builds(IsNull, paths),
    st.builds(check.geo_radius, paths, st.sampled_from(LATS[:-1]), st.sampled_from(LONS[:-1]),
              st.sampled_from((0, 1, 1_500, 12_345, 1_000_000, 19_000_000, 30_000_000))),
    st.tuples(paths, st.sampled_from(LATS[:-1]), st.sampled_from(LONS[:-1]), st.sampled_from(LATS[:-1]),
              st.sampled_from(LONS[:-1])).map(
        lambda box: check.geo_box(box[0], min(box[1], box[3]), box[2], max(box[1], box[3]), box[4])),
    st.just(Everything()),
)
nodes = st.recursive(leaves, lambda inner: st.one_of(
    inner.map(Not), st.lists(inner, min_size=2, max_size=3).map(lambda parts: And(tuple(parts))),
    st.lists(inner, min_size=2, max_size=3).map(lambda parts: Or(tuple(parts)))), max_leaves=5)
