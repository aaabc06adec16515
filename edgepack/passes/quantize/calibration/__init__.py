"""Measure activations and layer inputs on calibration samples, streamed.

histograms    exact ranges of tensors, then histograms over them
calibrators   from a histogram to a range
ranges        from a range or a histogram to scale and zero point
moments       means and second moments of the inputs of layers
layer_inputs  the same, in the modes without stored ranges
"""
