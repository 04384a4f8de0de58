"""Images of camera size, got over tcp."""

from __future__ import annotations

from benchmarks.results import Measurement, Results
from benchmarks.session import Session

SIZES = {"image_1": 1_000_000, "image_8": 8_000_000, "image_25": 24_900_000}


def images(session: Session) -> Results:
    return {key: measure_image(session, size) for key, size in SIZES.items()}


def measure_image(session: Session, size: int) -> Measurement:
    measurement = Measurement(f"image of {size / 1e6:g} MB over tcp", "ms")

    def sample(system: str) -> tuple[float]:
        return (1e3 * session.clients[system].run("image", size=size, seconds=session.effort.seconds),)

    # The first one makes the frame and grows the memory of both sides.
    session.interleave([Measurement(f"warming up: {measurement.title}", "")], sample, session.systems, 1)
    session.interleave([measurement], sample, session.systems, session.effort.image_rounds)
    return measurement
