"""The methods of the API that the SDK calls."""

from typing import Final

from vecdb.client.remote.io import Rpc

CREATE: Final = Rpc("Collections/Create")
DROP: Final = Rpc("Collections/Drop")
LIST: Final = Rpc("Collections/List")
GET: Final = Rpc("Collections/Get")
DESCRIBE: Final = Rpc("Collections/Describe")
OPTIMIZE: Final = Rpc("Collections/Optimize", "unary_stream")

UPSERT: Final = Rpc("Records/Upsert")
UPSERT_STREAM: Final = Rpc("Records/UpsertStream", "stream_stream")
DELETE: Final = Rpc("Records/Delete")
UPDATE: Final = Rpc("Records/UpdateMetadata")
FETCH: Final = Rpc("Records/Fetch")
SCAN: Final = Rpc("Records/Scan")
COUNT: Final = Rpc("Records/Count")

QUERY: Final = Rpc("Queries/Query")

SERVER: Final = Rpc("Admin/GetServer")
CREATE_KEY: Final = Rpc("Admin/CreateKey")
LIST_KEYS: Final = Rpc("Admin/ListKeys")
ROTATE_KEY: Final = Rpc("Admin/RotateKey")
REVOKE_KEY: Final = Rpc("Admin/RevokeKey")
JOBS: Final = Rpc("Admin/ListJobs")
VERIFY: Final = Rpc("Admin/Verify")

SHARD_MAP: Final = Rpc("Cluster/ShardMap")

SHARDS: Final = Rpc("Shards/ListShards")
VERIFY_SHARD: Final = Rpc("Shards/VerifyShard")
TRANSFER_LEADER: Final = Rpc("Shards/TransferLeader")
