"""Scale channels to similar magnitudes, by factors between layers, before ranges are observed.

run        the factors, and the magnitudes that they are computed from
classes    tensors that have to be scaled together
seen       the largest magnitude of every channel, on calibration samples
restore    inverse factors that keep a residual path unchanged
"""
