"""Channels of like size: factors between layers, before anything is observed.

run        the factors, and what they are computed from
classes    tensors that have to be scaled together
seen       the largest magnitude of every channel, on calibration samples
restore    what a residual path needs to stay as it was
"""
