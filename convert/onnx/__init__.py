"""Exports a bundle as an ONNX file: front end, network, metadata and quantisation."""
