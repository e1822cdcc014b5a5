import pytest

from vecdb.raft.settings import RaftSettings


@pytest.fixture
def quick():
    return RaftSettings(heartbeat_s=0.02, election_s_min=0.4, election_s_max=0.8, checkpoint_bytes=1 << 14,
                        keep_entries=16, log_bytes=1 << 16, chunk_bytes=1 << 10)
