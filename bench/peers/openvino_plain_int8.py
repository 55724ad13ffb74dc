"""OpenVINO alone, on the static INT8 IR of a folder."""

from functools import partial

from bench.peers import openvino_plain

load = partial(openvino_plain.load, file="openvino/openvino_model_qint8_quantized.xml")
