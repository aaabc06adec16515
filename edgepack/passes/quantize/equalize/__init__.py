"""Scale channels to similar magnitudes, by factors between layers, before ranges are observed.

scaling     the factors, and the scaled constants
classes     tensors that have to be scaled together
magnitudes  the largest magnitude of every channel, on calibration samples
restorers   inverse factors that keep a residual path unchanged
"""
