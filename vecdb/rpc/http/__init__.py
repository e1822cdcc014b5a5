"""The HTTP face of a node: REST under ``/v1``, health, metrics, the OpenAPI document.

**One table.**  :class:`~vecdb.rpc.http.operations.Operation` rows route requests, name methods for metrics and the
audit log as gRPC does, and make the OpenAPI document; models check bodies and describe them.

**Plain ASGI on uvicorn, no framework.**  Routing needs the undecoded path (a record id may hold a slash), errors need
one form whoever refuses (404 and 405 included), and a body is not to be read before its caller is known: what a
framework such as Starlette would do is thirty lines here, its Request, Headers and Response would replace few of
them, and nothing has to be undone; so none is among the dependencies.

**Ids in paths.**  ``/records/7`` is the integer 7, ``/records/7?id_type=string`` the string "7", ``/records/a%2Fb`` the
string "a/b".  Everything else takes ids in JSON, where the two differ by themselves.

**Verbs** that are no resource stand behind a colon (``/v1/collections/docs:query``): no name of a collection holds one,
so none is ever hidden by a verb.
"""

from vecdb.rpc.http.app import HttpApp
from vecdb.rpc.http.face import HttpFace, HttpOptions

__all__ = ["HttpApp", "HttpFace", "HttpOptions"]
