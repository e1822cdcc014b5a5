"""The page at ``/``: the state of the node and the way on, without anything from elsewhere."""

import base64
import hashlib
from typing import Final

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.4rem}dt{color:#666}dd{margin:0 0 .6rem}code{background:#f3f3f3;padding:.1em .3em}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}code{background:#2a2a2a}dt{color:#999}a{color:#8bf}}
"""
_SCRIPT: Final = """
fetch('/readyz').then(r=>r.json()).then(h=>{
const put=(id,text)=>{document.getElementById(id).textContent=text};
put('state',h.ready?'ready':'not ready: '+h.reasons.join('; '));
put('version',h.version);put('uptime',Math.round(h.uptime_s)+' s')});
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_POLICY: Final = (f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
                      "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")

PAGE: Final = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vecdb</title><style>{_STYLE}</style></head><body>
<h1>vecdb</h1>
<dl><dt>state</dt><dd id="state">…</dd><dt>version</dt><dd id="version">…</dd><dt>up for</dt><dd id="uptime">…</dd></dl>
<p><a href="/openapi.json">OpenAPI description</a> of the REST API under <code>/v1</code> ·
<a href="/healthz">health</a> · <a href="/metrics">metrics</a></p>
<script>{_SCRIPT}</script></body></html>
""".encode()
