"""Frames in an HDF5 file."""

import time
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

ROWS = 1024
"""Numbers and times in one chunk."""
FLUSH_EVERY = 1.0
"""So much of a recording is lost when the recorder is killed, s."""


class FrameFile:
    """A file to which frames are appended.

    ``frames`` is ``(N, H, W, 3) uint8``, each frame a chunk of its own; ``number`` and ``time`` (Unix, s) are ``(N,)``.

    Parameters
    ----------
    path
        A file that exists already is a FileExistsError, unless `overwrite` is true.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self._file = h5py.File(path, "w" if overwrite else "x")
        self.attributes = self._file.attrs
        self._number = self._file.create_dataset("number", (0,), np.int64, maxshape=(None,), chunks=(ROWS,))
        self._time = self._file.create_dataset("time", (0,), np.float64, maxshape=(None,), chunks=(ROWS,))
        self._frames: h5py.Dataset | None = None
        self.count = 0
        self._flushed = time.monotonic()

    def append(self, image: NDArray[np.uint8], number: int, when: float) -> None:
        if self._frames is None:
            shape = image.shape
            self._frames = self._file.create_dataset(
                "frames", (0, *shape), np.uint8, maxshape=(None, *shape), chunks=(1, *shape)
            )
        for dataset in (self._number, self._time, self._frames):
            dataset.resize(self.count + 1, 0)
        self._number[self.count] = number
        self._time[self.count] = when
        # Past HDF5's cache of chunks: from shared memory to the file without another copy.
        self._frames.id.write_direct_chunk((self.count, 0, 0, 0), np.ascontiguousarray(image))
        self.count += 1
        if time.monotonic() - self._flushed > FLUSH_EVERY:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Complete the file; what an interrupted `append` has begun is cut off."""
        if self._frames is not None:
            for dataset in (self._number, self._time, self._frames):
                dataset.resize(self.count, 0)
        self._file.close()
