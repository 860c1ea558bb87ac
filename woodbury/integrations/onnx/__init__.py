"""Networks as ONNX files, by torch's exporter, checked in onnxruntime."""

from woodbury.integrations.onnx.exporting import OnnxFile as OnnxFile
from woodbury.integrations.onnx.exporting import export_onnx as export_onnx
