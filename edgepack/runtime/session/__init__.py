"""A model in an engine: onnxruntime, or TensorRT with the GPU memory that it needs."""
