"""The ways to a server of ours, also those that a client on the same host would not take."""

from __future__ import annotations

from rpc_kit import RPCClient

SHM = "shm"
IPC = "ipc"
TCP = "tcp"


def go_by(client: RPCClient, way: str) -> None:
    """Let a client that has just been made do without what is nearer: as one of another user, or on another host."""
    if way != SHM:
        client._rpc.transfer.close()
    if way == TCP:
        client._rpc._near = ""
        client._rpc.calls.use(client.url)


def check_way(client: RPCClient, member: str, way: str) -> None:
    """Nothing else is measured than what is said."""
    taken = client.stats().paths.get(member, {})
    if taken.keys() != {way}:
        raise ValueError(f"{member} has gone by {taken}, not by {way}")
