"""An S3 server of its own for a test: moto's, over HTTP, on a free port of the loopback; or one that is named.

``VECDB_TEST_S3=http://host:port`` with ``VECDB_TEST_S3_KEY`` and ``VECDB_TEST_S3_SECRET`` runs the same tests against
another (MinIO, Garage, ...).
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vecdb.storage.objects import ObjectAccess

KEY, SECRET = "AKIATESTTESTTEST", "not-a-secret-of-anybody"


@contextmanager
def s3_server() -> Iterator[ObjectAccess]:
    """How to reach it."""
    named = os.environ.get("VECDB_TEST_S3")
    if named:
        yield ObjectAccess(named, "us-east-1", os.environ["VECDB_TEST_S3_KEY"], os.environ["VECDB_TEST_S3_SECRET"],
                           retry_s=5.0)
        return
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            """Nobody reads it."""

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True,
                           request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ObjectAccess(f"http://127.0.0.1:{server.server_port}", "us-east-1", KEY, SECRET, retry_s=5.0)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_bucket(access: ObjectAccess, bucket: str) -> None:
    """By a signed PUT, as any client's."""
    import boto3

    client = boto3.client("s3", endpoint_url=access.endpoint, region_name=access.region,
                          aws_access_key_id=access.access_key_id, aws_secret_access_key=access.secret_access_key)
    client.create_bucket(Bucket=bucket)
