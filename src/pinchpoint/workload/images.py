"""Pictures of a given size, different for each request: PNG (RFC 2083) with smooth shapes and a little noise, so that
they compress about as well as a photo does.

The pixels of a few variants are made once and kept compressed; a picture is a variant with a text chunk of its own,
which makes the file, and every cache key made of it, unique at the cost of a checksum.
"""

import struct
import zlib
from functools import lru_cache

import numpy as np

from pinchpoint.plan import ImagesSpec

VARIANTS = 8
NOISE = 2.0
"""Standard deviation in steps of 256: the grain of a photo taken in daylight."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8_BIT = (8, 2, 0, 0, 0)


def picture(number: int, shape: ImagesSpec) -> bytes:
    """A whole PNG file; the same for the same number and shape."""
    header, data = _variant(number % VARIANTS, shape.width, shape.height)
    note = _chunk(b"tEXt", b"Comment\0%d" % number)
    return SIGNATURE + header + note + data + _chunk(b"IEND", b"")


@lru_cache(maxsize=4 * VARIANTS)
def _variant(variant: int, width: int, height: int) -> tuple[bytes, bytes]:
    rng = np.random.default_rng((variant, width, height))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = []
    for _ in range(3):
        waves = sum(
            rng.uniform(20, 50)
            * np.sin(x * rng.uniform(0.5, 6) / width * 6.28 + y * rng.uniform(0.5, 6) / height * 6.28)
            for _ in range(3)
        )
        planes.append(128 + waves + rng.normal(0, NOISE, (height, width)))
    pixels = np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8).reshape(height, width * 3)
    rows = np.zeros((height, 1 + width * 3), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels
    header = _chunk(b"IHDR", struct.pack(">II", width, height) + bytes(RGB_8_BIT))
    return header, _chunk(b"IDAT", zlib.compress(rows.tobytes(), 1))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
