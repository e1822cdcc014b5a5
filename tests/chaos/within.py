"""Run a command in a network of its own: ``python within.py ADDRESS SOCKET COMMAND...``.

A new network namespace (in a new user namespace, where the one alone is not allowed), in it a tun device with ADDRESS
as its only way out; the device's descriptor goes through SOCKET, an inherited Unix socket, to whoever carries the
packets (:mod:`tests.chaos.networks`).  Then the command takes this process's place.  Ends with 97 where the kernel or
the rights do not allow it.
"""

import array
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys

REFUSED = 97
MTU = 16000
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_TUNSETIFF, _IFF_TUN_BARE = 0x400454CA, 0x1001
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8914, 0x8916, 0x891C, 0x8922
_UP_RUNNING = 0x41
_PR_SET_PDEATHSIG = 1


def _alone() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) == 0:
        return
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace")
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as out:
            out.write(text)


def _device(address: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    name = b"wire0"
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name, _IFF_TUN_BARE))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, text in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
            fcntl.ioctl(control, request, struct.pack("16sHH4s16x", name, socket.AF_INET, 0, socket.inet_aton(text)))
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", name, MTU))
        for up in (name, b"lo"):
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", up, _UP_RUNNING))
    return device


def main() -> None:
    address, handle, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with socket.socket(fileno=int(handle)) as carrier:
        try:
            _alone()
            device = _device(address)
        except OSError as error:
            print(f"no network of its own: {error}", file=sys.stderr)
            sys.exit(REFUSED)
        carrier.sendmsg([b"d"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [device]))])
        os.close(device)
    if command:
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
