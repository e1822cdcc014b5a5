"""What the image starts: ``vecdb ARGUMENTS`` in this very process, on the kernels that the image was made with.

Compiled kernels are cached by the processor they were compiled for, so those of the machine that built an image would
be of no use on another.  The build compiles them for the *targets* below instead, each a set of features rather than a
processor, and a container takes the largest one its processor has: nothing is compiled at its start.
``KERNELS=native`` compiles for the processor at hand (half a minute, again in each new container), ``KERNELS=avx2``
takes that target.  A processor that has none of them (ARM, for one) is native.

    launch.py ARGUMENTS     become vecdb
    launch.py --warm        compile for the targets this processor has (in the build)
    launch.py --healthy     exit code 0 if this node's HTTP face answers /healthz (for HEALTHCHECK)

Only the standard library is imported, and little of it: a health check takes a hundredth of a second.
"""

import os
import sys

_AVX2 = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "avx", "avx2", "f16c", "fma", "bmi", "bmi2", "lzcnt",
         "movbe", "xsave")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni")
TARGETS = {"avx512": ("x86-64-v4", _AVX512), "avx2": ("x86-64-v3", _AVX2)}
"""By name, the largest first: LLVM's processor and features.  Cascade Lake and Zen 4 have the first, Haswell and Zen
the second."""

_FLAGS = {"sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "bmi": "bmi1", "lzcnt": "abm",
          "avx512vnni": "avx512_vnni"}
"""Features that /proc/cpuinfo calls by other names than LLVM does."""

_PATIENCE_S = 4.0


def usable(cpuinfo: str) -> list[str]:
    """The targets of a processor, from the text of /proc/cpuinfo."""
    flags = next((set(line.partition(":")[2].split()) for line in cpuinfo.splitlines() if line.startswith("flags")),
                 set())
    return [name for name, (_, features) in TARGETS.items() if {_FLAGS.get(one, one) for one in features} <= flags]


def variables(asked: str, cpuinfo: str, cache: str) -> dict[str, str]:
    """What makes Numba compile for a target, or load what was; each has a folder of its own in ``cache``."""
    found = usable(cpuinfo)
    if asked not in ("auto", "native", *found):
        sys.exit(f"launch: KERNELS={asked[:40]}: this processor has {', '.join(found) or 'none of the targets'}; "
                 "auto takes the largest of them, native compiles for it")
    target = next(iter(found), "native") if asked == "auto" else asked
    name, features = TARGETS.get(target, ("", ()))
    chosen = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ",".join(f"+{one}" for one in features)} if name else {}
    return chosen | {"NUMBA_CACHE_DIR": os.path.join(cache, target)}


def writable(cache: str, otherwise: str) -> str:
    """``cache``, or a copy of it where that is read-only: Numba reads none that it may not write."""
    try:
        os.makedirs(cache, exist_ok=True)
    except OSError:  # there is none, and can be none
        return otherwise
    if os.access(cache, os.W_OK):
        return cache
    import shutil

    shutil.copytree(cache, otherwise, dirs_exist_ok=True)
    return otherwise


def warm(cpuinfo: str, cache: str) -> int:
    """Compile for every target of this processor, at the same time; 0 if all went well."""
    import subprocess

    command = [sys.executable, "-m", "vecdb.ann.warmup"]
    runs = [subprocess.Popen(command, env=os.environ | variables(name, cpuinfo, cache))  # noqa: S603
            for name in usable(cpuinfo)]
    return max([one.wait() for one in runs], default=0)


def healthy() -> bool:
    """Whether the HTTP face on this machine answers; whether the node also serves is /readyz's to say."""
    import socket

    host, port = os.environ.get("VECDB_SERVER__HOST", ""), int(os.environ.get("VECDB_SERVER__HTTP_PORT") or 7701)
    if port < 0:
        return True
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # not listened on
    try:
        with socket.create_connection((host, port), _PATIENCE_S) as wire:
            wire.settimeout(_PATIENCE_S)
            if os.environ.get("VECDB_TLS__CERT_FILE"):
                return _answers_tls(wire)
            wire.sendall(_ASK)
            return wire.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


_ASK = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def _answers_tls(wire) -> bool:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Nobody is believed for it: no more is asked than whether the event loop turns, which a refusal for want of a
    client's certificate says as well.
    """
    import ssl

    try:
        secured = ssl._create_unverified_context().wrap_socket(wire)  # noqa: S323
        secured.sendall(_ASK)
        return secured.recv(64).split(b" ")[1:2] == [b"200"]
    except ssl.SSLError:
        return True


def main() -> None:
    arguments = sys.argv[1:]
    if arguments == ["--healthy"]:
        sys.exit(not healthy())
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        cpuinfo = file.read()
    cache = os.environ.get("NUMBA_CACHE_DIR") or "/var/cache/vecdb"
    if arguments == ["--warm"]:
        sys.exit(warm(cpuinfo, cache))
    chosen = variables(os.environ.pop("KERNELS", "") or "auto", cpuinfo, cache)
    os.environ |= chosen
    os.environ["NUMBA_CACHE_DIR"] = writable(chosen["NUMBA_CACHE_DIR"], "/tmp/vecdb-kernels")  # noqa: S108
    beside = os.path.join(os.path.dirname(sys.executable), "vecdb")
    os.execv(beside, [beside, *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
