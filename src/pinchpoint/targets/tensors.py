"""What model servers that take tensors are sent: the prompt as a text tensor, or numbers made from it.

The options have one meaning for all of these targets, over HTTP and over gRPC.
"""

import struct
import zlib

import msgspec
import numpy as np

from pinchpoint.errors import UsageError
from pinchpoint.targets.options import Options
from pinchpoint.targets.target import TargetSpec

TEXT = "BYTES"
NUMPY_TYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Tensor data types of the Open Inference Protocol, as little-endian numpy types."""
WHOLE_NUMBERS = 10
"""Whole numbers are drawn below it: as small as that they are valid ids of any vocabulary."""
ELEMENTS_MAX = 1 << 26
"""A tensor of 64 Mi numbers is beyond every message limit in use."""
BYTES_LENGTH = struct.Struct("<I")
"""Before each element of a raw BYTES tensor."""

OPTIONS = {
    "input": "name of the tensor that takes the prompt",
    "output": "name of the tensor that holds the answer's text",
    "length_input": 'name of the INT32 tensor that takes the longest length of an answer; "" for none',
    "shape": "of the input; [1, 1] is a batch of one text, [1] suits models without a batch",
    "datatype": f"of the input: {TEXT} for text, else {', '.join(NUMPY_TYPES)} for random numbers of that shape",
}


CHANNELS_OPTION = {"channels": "gRPC channels, and so connections, of each load process; default 1"}
VERSION_OPTION = {"version": "of the model; default is the service's own choice"}
KSERVE_GRPC_OPTIONS = {
    **OPTIONS,
    **VERSION_OPTION,
    "stream_input": 'name of the BOOL tensor that asks for a stream; "" for none',
    "sampling_input": "name of the text tensor that takes sampling parameters as JSON, as Triton's vLLM backend has it",
    **CHANNELS_OPTION,
}
"""Those that are not given are taken from the metadata of the model, where the service has them."""
TFSERVING_GRPC_OPTIONS = {
    **OPTIONS,
    **VERSION_OPTION,
    "signature_name": "of the model that is asked; default serving_default",
    **CHANNELS_OPTION,
}


class TensorOptions(msgspec.Struct, frozen=True):
    """shape: of the input, and for text of the other inputs, too. length_input: "" for none."""

    input: str
    output: str
    length_input: str
    shape: tuple[int, ...]
    datatype: str

    @classmethod
    def of(cls, spec: TargetSpec, *, length_input: str, shape: tuple[int, ...]) -> "TensorOptions":
        """The defaults are those of the target. Raises UsageError for an option that cannot be used."""
        options = Options(spec)
        datatype = options.choice("datatype", (TEXT, *NUMPY_TYPES), TEXT)
        given = options.counts("shape") or shape
        elements = int(np.prod(given, dtype=float))
        if elements > (1 if datatype == TEXT else ELEMENTS_MAX):
            raise UsageError(
                f"option shape of {spec.api} has {elements} elements; "
                + ("one prompt needs a shape such as [1] or [1, 1]" if datatype == TEXT else "give a smaller one")
            )
        return cls(
            input=options.text("input", "text_input"),
            output=options.text("output", "text_output"),
            length_input=options.text("length_input", length_input if datatype == TEXT else ""),
            shape=given,
            datatype=datatype,
        )

    @property
    def is_text(self) -> bool:
        return self.datatype == TEXT

    @property
    def generates(self) -> bool:
        """Only a model that is told a length is one whose answers have a length worth comparing."""
        return self.is_text and self.length_input != ""

    def numbers(self, text: str) -> np.ndarray:
        """A tensor of numbers; the same text gives the same ones. Floating point: from 0 up to 1."""
        random = np.random.default_rng(zlib.crc32(text.encode("utf-8", "replace")))
        kind = np.dtype(NUMPY_TYPES[self.datatype])
        if kind.kind == "f":
            return random.random(self.shape).astype(kind)
        return random.integers(0, 2 if kind.kind == "b" else WHOLE_NUMBERS, self.shape).astype(kind)


def texts_of(raw: bytes) -> list[bytes]:
    """Elements of a BYTES tensor in its raw form: each is its length and itself. Raises ValueError when cut off."""
    texts: list[bytes] = []
    position = 0
    while position < len(raw):
        start = position + BYTES_LENGTH.size
        if start > len(raw):
            raise ValueError("a text tensor ends inside the length of an element")
        position = start + BYTES_LENGTH.unpack_from(raw, position)[0]
        if position > len(raw):
            raise ValueError("a text tensor ends inside an element")
        texts.append(raw[start:position])
    return texts
