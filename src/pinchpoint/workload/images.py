"""Pictures of a given size, different for each request: PNG (RFC 2083) with smooth shapes and a little grain, so that
they compress about as well as a photo does in this format: 1.2 to 1.6 bytes per pixel.

All but the first row of pixels of a few variants is made once and kept compressed. The first row is drawn for each
picture and goes before it uncompressed (RFC 1951, stored block), so a picture costs a hash and a copy, and neither its
bytes nor its pixels are those of another: a service that caches pictures by their pixels has to look at each.
"""

import hashlib
import struct
import zlib
from functools import lru_cache

import msgspec
import numpy as np

from pinchpoint.plan import ImagesSpec

VARIANTS = 8
GRAIN = 1.0
"""Standard deviation in steps of 256: a photo taken in daylight."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8_BIT = bytes((8, 2, 0, 0, 0))
NO_FILTER, DIFFERENCES = 0, 1
"""Filters of a row: the bytes themselves; each pixel less the one on its left."""
ZLIB_HEADER = b"\x78\x01"
ADLER_BASE = 65521
"""Largest prime below 2^16 (RFC 1950)."""
DRAWN_BITS = 0x03
"""Of the first row's bytes: too few to be seen."""
LEVEL = 1


class _Variant(msgspec.Struct, frozen=True):
    """header, rest: whole chunks. first_row: bytes of the first row. adler, size: of the other rows, uncompressed."""

    header: bytes
    first_row: np.ndarray
    rest: bytes
    adler: int
    size: int


def picture(number: int, shape: ImagesSpec) -> bytes:
    """A whole PNG file; the same for the same number and shape."""
    variant = _variant(number % VARIANTS, shape.width, shape.height)
    drawn = hashlib.shake_128(b"%d" % number).digest(len(variant.first_row))
    noise = np.frombuffer(drawn, np.uint8) & DRAWN_BITS
    row = bytes((NO_FILTER,)) + (variant.first_row ^ noise).tobytes()
    stored = struct.pack("<BHH", 0, len(row), len(row) ^ 0xFFFF) + row
    adler = _joined_adler(zlib.adler32(row), variant.adler, variant.size)
    parts = (
        SIGNATURE,
        variant.header,
        _chunk(b"IDAT", ZLIB_HEADER + stored),
        variant.rest,
        _chunk(b"IDAT", struct.pack(">I", adler)),
        _chunk(b"IEND", b""),
    )
    return b"".join(parts)


@lru_cache(maxsize=4 * VARIANTS)
def _variant(variant: int, width: int, height: int) -> _Variant:
    rng = np.random.default_rng((variant, width, height))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = []
    for _ in range(3):
        waves = sum(
            rng.uniform(20, 50)
            * np.sin(x * rng.uniform(0.5, 6) / width * 6.28 + y * rng.uniform(0.5, 6) / height * 6.28)
            for _ in range(3)
        )
        planes.append(128 + waves + rng.normal(0, GRAIN, (height, width)))
    pixels = np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
    rows = np.full((height - 1, 1 + width * 3), DIFFERENCES, np.uint8)
    rows[:, 1:4] = pixels[1:, 0]
    steps = pixels[1:, 1:] - pixels[1:, :-1]  # modulo 256, as the filter wants it
    rows[:, 4:] = steps.reshape(height - 1, (width - 1) * 3)
    raw = rows.tobytes()
    packer = zlib.compressobj(LEVEL, wbits=-zlib.MAX_WBITS)
    packed = packer.compress(raw) + packer.flush()
    header = _chunk(b"IHDR", struct.pack(">II", width, height) + RGB_8_BIT)
    return _Variant(header, pixels[0].reshape(-1), _chunk(b"IDAT", packed), zlib.adler32(raw), len(raw))


def _joined_adler(first: int, second: int, second_size: int) -> int:
    """Adler-32 of two stretches of bytes: the sums of the second begin where those of the first end."""
    low, high = first & 0xFFFF, first >> 16
    sum_low = (low + (second & 0xFFFF) - 1) % ADLER_BASE
    sum_high = (high + (second >> 16) + (low - 1) * second_size) % ADLER_BASE
    return sum_high << 16 | sum_low


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
