"""Exports pipelines to ONNX files that can be used without Python; README.md describes the files."""

from .onnx_file import METADATA_KEY, ExportError, export_onnx
from .sampler import describe_sampler


__all__ = ["METADATA_KEY", "ExportError", "describe_sampler", "export_onnx"]
