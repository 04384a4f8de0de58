"""A process with shared memory: a server's, or that of a client; does what it is told, line by line, in JSON."""

import json
import os
import sys
import zlib
from typing import Any

from rpc_kit.errors import BufferLost
from rpc_kit.sharedmem import Ring, RingClient, Slot
from tests.rings import pattern


class User:
    """What a process holds, by the names that it was told."""

    def __init__(self, role: str, *arguments: str) -> None:
        made = self.open(*arguments) if role == "open" else self.create(*arguments)
        if made is None:
            raise SystemExit("no shared memory")
        self.memory: Any = made
        self.held: dict[str, Any] = {}
        self.pipe = os.pipe()

    def open(self, path: str) -> RingClient | None:
        return RingClient.open({"path": path}, os.path.dirname(path))

    def create(self, folder: str, limit: str) -> Ring | None:
        return Ring.create(int(limit), folder)

    def proof(self) -> Any:
        return self.memory.proof

    def path(self) -> Any:
        return self.memory.path

    def view(self, name: str, ref: Any) -> int:
        """Hold the bytes; their checksum."""
        self.held[name] = self.memory.view(ref)
        return zlib.crc32(self.held[name])

    def checksum(self, name: str) -> int:
        return zlib.crc32(self.held[name])

    def allocate(self, name: str, size: int, seed: int) -> Any:
        """Hold a slot with a pattern; whether there was one."""
        slot: Slot | None = self.memory.allocate(size)
        if slot is not None:
            slot.array.data[:] = pattern(seed, size)
            self.held[name] = slot
        return slot is not None

    def hand_over(self, name: str, reader: int) -> Any:
        slot = self.held[name]
        return self.memory.hand_over(slot, 0, slot.array.nbytes, reader)

    def reference(self, name: str) -> Any:
        return self.memory.reference(self.held[name])

    def drop(self, name: str) -> None:
        del self.held[name]

    def close(self) -> None:
        self.memory.close()

    def fork(self) -> dict[str, Any]:
        """A child that holds all this, until it is told to end or this process ends; what it can do with the memory."""
        answers, answer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(self.pipe[1])
            try:
                self.memory.view((0, 1, 0, 1, -1))
                said = "viewed"
            except BufferLost:
                said = f"lost {self.memory.allocate(1)}"
            os.write(answer, said.encode())
            os.read(self.pipe[0], 1)
            self.memory.close()
            sys.exit()
        return {"child": child, "said": os.read(answers, 100).decode()}

    def end_child(self) -> None:
        os.write(self.pipe[1], b"x")
        os.wait()


def main() -> None:
    user = User(*sys.argv[1:])
    print("ready", flush=True)
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        print(json.dumps(getattr(user, order)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
