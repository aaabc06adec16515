"""Modes without stored ranges: "dynamic", which takes them at run time, and "weights".

weight_quantizer  the two modes, from a float model to a quantized one
constants         constants that become integers
graph_writers     graphs with integer constants, for each mode
"""
