"""What the composition root decides for the engine; defaults suit a laptop and a server alike."""

from dataclasses import dataclass

from vecdb.core.sizing import MAX_SEGMENT_RECORDS, SEAL_BYTES, SEAL_RECORDS


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """``seal_records``/``seal_bytes``: a growing segment is sealed at whichever comes first.

    ``memory_bytes``: what vectors, graphs and codes of sealed segments may take together (None: no limit); a
    segment that would not fit leaves its vectors on disk and walks on smaller codes.
    ``merge_factor`` neighbours of similar size become one, up to ``max_segment_records`` records;
    ``dead_fraction`` of dead records makes a sealed segment worth rewriting.  ``background`` runs jobs by
    themselves (off: only ``optimize`` does).  ``verify`` checks every byte of sealed files at open.
    ``max_open_collections``: beyond it the one idle longest is closed, and opened again by its next call.
    ``replicated``: shards are written by the log of their group alone, which brings back what their stores lose.
    """

    memory_bytes: int | None = None
    seal_records: int = SEAL_RECORDS
    seal_bytes: int = SEAL_BYTES
    merge_factor: int = 4
    max_segment_records: int = MAX_SEGMENT_RECORDS
    dead_fraction: float = 0.25
    background: bool = True
    verify: bool = True
    read_only: bool = False
    max_open_collections: int = 64
    replicated: bool = False
