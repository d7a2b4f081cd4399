"""The gRPC services of TensorFlow Serving around real SavedModels: run by the python of .real/tensorflow.

    python tensorflow_server.py PORT DIRECTORY

Wire format, protobufs and TensorFlow are the real ones; the servicer stands in for the model server, which no Python
index has, so its batching is not here. Prints "ready". Models: half_plus_two (float x -> y) and text (string
text_input, int32 max_tokens -> string text_output of so many words).
"""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

WORDS = tf.constant("pinch point queue batch token cache slot worker stage limit".split())
SIGNATURE = "serving_default"
VERSION = 1
THREADS = 8


class HalfPlusTwo(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": 0.5 * x + 2.0}


class Text(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="text_input"),
            tf.TensorSpec([None], tf.int32, name="max_tokens"),
        ]
    )
    def serve(self, text_input: tf.Tensor, max_tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        def answer(count: tf.Tensor) -> tf.Tensor:
            return tf.strings.reduce_join(tf.gather(WORDS, tf.range(count) % len(WORDS)), separator=" ")

        return {"text_output": tf.map_fn(answer, max_tokens, fn_output_signature=tf.string)}


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, signatures: dict) -> None:
        self._signatures = signatures

    def Predict(self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext):
        name = request.model_spec.name
        if name not in self._signatures:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")
        function = self._signatures[name]
        wanted = function.structured_input_signature[1]
        if set(wanted) != set(request.inputs):
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"the signature takes {sorted(wanted)}, not {sorted(request.inputs)}"
            )
        outputs = function(**{key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()})
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name, answer.model_spec.signature_name = name, SIGNATURE
        answer.model_spec.version.value = VERSION
        for key, value in outputs.items():
            answer.outputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return answer


class Models(model_service_pb2_grpc.ModelServiceServicer):
    def GetModelStatus(self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext):
        state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        return get_model_status_pb2.GetModelStatusResponse(
            model_version_status=[get_model_status_pb2.ModelVersionStatus(version=VERSION, state=state)]
        )


def main() -> None:
    port, directory = int(sys.argv[1]), Path(sys.argv[2])
    loaded = {}  # a signature lives as long as the model that it came from
    for name, model in (("half_plus_two", HalfPlusTwo()), ("text", Text())):
        path = str(directory / name / str(VERSION))
        tf.saved_model.save(model, path, signatures=model.serve.get_concrete_function())
        loaded[name] = tf.saved_model.load(path)
    server = grpc.server(ThreadPoolExecutor(THREADS))
    predictions = Predictions({name: model.signatures[SIGNATURE] for name, model in loaded.items()})
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(predictions, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
