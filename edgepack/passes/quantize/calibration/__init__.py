"""Measure activations and layer inputs on calibration samples, streamed.

activations  exact ranges, then histograms, and the quantization of every activation
calibrators  from a histogram to a range
moments      means and second moments of the inputs of layers
"""
