"""A bundle as an ONNX file: front end, network, metadata, quantisation."""
