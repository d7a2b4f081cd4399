"""Messages of the gRPC services that can be loaded, made when they are first needed, from the fields that are used.

A field has the number and type that the service's published definition gives it, so the bytes are the same; fields
that are not listed are skipped on reading, as protocol buffers want it. Sources: the Open Inference Protocol's
`inference.GRPCInferenceService` with Triton's `ModelStreamInfer`, and TensorFlow Serving's
`tensorflow.serving.PredictionService` with TensorFlow's `TensorProto`.

Needs the extra `grpc`.
"""

from functools import cache
from typing import Any

from pinchpoint.errors import UsageError

MISSING_ERROR = "gRPC needs packages that are not installed; run: pip install 'pinchpoint[grpc]'"

_TYPES = {
    "double": 1,
    "float": 2,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "bool": 8,
    "string": 9,
    "message": 11,
    "bytes": 12,
    "uint32": 13,
    "enum": 14,
}
"""google.protobuf.FieldDescriptorProto.Type."""
_OPTIONAL, _REPEATED = 1, 3
"""google.protobuf.FieldDescriptorProto.Label."""

Fields = tuple[str, ...]
"""Each as in a .proto file: "repeated int64 shape = 3", "map<string, Value> parameters = 4", "oneof int32 n = 1"."""

KSERVE: dict[str, Fields] = {
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready = 1",),
    "ModelReadyRequest": ("string name = 1", "string version = 2"),
    "ModelReadyResponse": ("bool ready = 1",),
    "ModelMetadataRequest": ("string name = 1", "string version = 2"),
    "ModelMetadataResponse": (
        "string name = 1",
        "repeated string versions = 2",
        "string platform = 3",
        "repeated ModelMetadataResponse.TensorMetadata inputs = 4",
        "repeated ModelMetadataResponse.TensorMetadata outputs = 5",
    ),
    "ModelMetadataResponse.TensorMetadata": ("string name = 1", "string datatype = 2", "repeated int64 shape = 3"),
    "InferParameter": (
        "oneof bool bool_param = 1",
        "oneof int64 int64_param = 2",
        "oneof string string_param = 3",
    ),
    "InferTensorContents": (
        "repeated bool bool_contents = 1",
        "repeated int32 int_contents = 2",
        "repeated int64 int64_contents = 3",
        "repeated uint32 uint_contents = 4",
        "repeated uint64 uint64_contents = 5",
        "repeated float fp32_contents = 6",
        "repeated double fp64_contents = 7",
        "repeated bytes bytes_contents = 8",
    ),
    "ModelInferRequest": (
        "string model_name = 1",
        "string model_version = 2",
        "string id = 3",
        "map<string, InferParameter> parameters = 4",
        "repeated ModelInferRequest.InferInputTensor inputs = 5",
        "repeated bytes raw_input_contents = 7",
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name = 1",
        "string datatype = 2",
        "repeated int64 shape = 3",
        "InferTensorContents contents = 5",
    ),
    "ModelInferResponse": (
        "string model_name = 1",
        "string model_version = 2",
        "string id = 3",
        "map<string, InferParameter> parameters = 4",
        "repeated ModelInferResponse.InferOutputTensor outputs = 5",
        "repeated bytes raw_output_contents = 6",
    ),
    "ModelInferResponse.InferOutputTensor": (
        "string name = 1",
        "string datatype = 2",
        "repeated int64 shape = 3",
        "InferTensorContents contents = 5",
    ),
    "ModelStreamInferResponse": ("string error_message = 1", "ModelInferResponse infer_response = 2"),
}

TENSORFLOW: dict[str, Fields] = {
    "TensorShapeProto": ("repeated TensorShapeProto.Dim dim = 2", "bool unknown_rank = 3"),
    "TensorShapeProto.Dim": ("int64 size = 1", "string name = 2"),
    "TensorProto": (
        "int32 dtype = 1",  # the enum DataType, which is written in the same way
        "TensorShapeProto tensor_shape = 2",
        "bytes tensor_content = 4",
        "repeated float float_val = 5",
        "repeated double double_val = 6",
        "repeated int32 int_val = 7",
        "repeated bytes string_val = 8",
        "repeated int64 int64_val = 10",
        "repeated bool bool_val = 11",
    ),
}

TENSORFLOW_SERVING: dict[str, Fields] = {
    "Int64Value": ("int64 value = 1",),  # google.protobuf.Int64Value
    "ModelSpec": ("string name = 1", "Int64Value version = 2", "string signature_name = 3"),
    "PredictRequest": (
        "ModelSpec model_spec = 1",
        "map<string, tensorflow.TensorProto> inputs = 2",
        "repeated string output_filter = 3",
    ),
    "PredictResponse": ("map<string, tensorflow.TensorProto> outputs = 1", "ModelSpec model_spec = 2"),
}


class Messages:
    """Message classes of one package, by name without the package: `messages["ModelInferRequest"]()`."""

    def __init__(self, classes: dict[str, Any]) -> None:
        self._classes = classes

    def __getitem__(self, name: str) -> Any:
        return self._classes[name]


@cache
def kserve() -> Messages:
    """Package `inference`. Raises UsageError when the extra is missing."""
    return _build({"inference": KSERVE})["inference"]


@cache
def tensorflow_serving() -> Messages:
    """Package `tensorflow.serving`. Raises UsageError when the extra is missing."""
    return _build({"tensorflow": TENSORFLOW, "tensorflow.serving": TENSORFLOW_SERVING})["tensorflow.serving"]


def decode(kind: Any, data: bytes, what: str) -> Any:
    """A message of class `kind`. Raises ValueError, which says what it should have been."""
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(data)
    except DecodeError:
        raise ValueError(f"{len(data)} bytes are not {what}") from None


def _build(packages: dict[str, dict[str, Fields]]) -> dict[str, Messages]:
    """Packages in order: each may use those before it. The pool is our own, and meets no other definition of the same
    names in this process."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise UsageError(MISSING_ERROR) from None
    pool = descriptor_pool.DescriptorPool()
    built: dict[str, Messages] = {}
    files: list[str] = []
    for package, messages in packages.items():
        file = descriptor_pb2.FileDescriptorProto(
            name=f"{package}.proto", package=package, syntax="proto3", dependency=files
        )
        made: dict[str, Any] = {}
        for name, fields in messages.items():
            parent, _, own = name.rpartition(".")
            message = made[parent].nested_type.add() if parent else file.message_type.add()
            message.name = own
            made[name] = message
            for field in fields:
                _add_field(message, field, f".{package}.{name}", package)
        pool.Add(file)
        files.append(file.name)
        classes = {
            name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages
        }
        built[package] = Messages(classes)
    return built


def _add_field(message: Any, line: str, full_name: str, package: str) -> None:
    kind, name, number = line.replace(" =", "").replace(", ", ",").rsplit(" ", 2)
    field = message.field.add(name=name, number=int(number), label=_OPTIONAL)
    if kind.startswith("repeated "):
        field.label = _REPEATED
    elif kind.startswith("oneof "):
        field.oneof_index = 0
        if not message.oneof_decl:
            message.oneof_decl.add(name="choice")
    elif kind.startswith("map<"):
        key, value = kind.removeprefix("map<").removesuffix(">").split(",")
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, f"{key} key = 1", "", package)
        _add_field(entry, f"{value} value = 2", "", package)
        field.label = _REPEATED
        field.type, field.type_name = _TYPES["message"], f"{full_name}.{entry.name}"
        return
    kind = kind.split()[-1]
    if kind in _TYPES:
        field.type = _TYPES[kind]
    else:
        field.type = _TYPES["message"]
        field.type_name = f".{kind}" if kind.startswith("tensorflow.") else f".{package}.{kind}"
