"""What a search finds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Nearest first, per query.

    ``ordinals``: int32 (nq, k), padded with -1.  ``distances``: float32 (nq, k), raw, padded with +inf.  ``hops`` and
    ``comparisons`` count vertices expanded and distances computed over all queries.  ``stopped``: a stop flag cut
    the search short, so better vertices may have been missed.
    """

    ordinals: npt.NDArray[np.int32]
    distances: npt.NDArray[np.float32]
    hops: int = 0
    comparisons: int = 0
    stopped: bool = False
