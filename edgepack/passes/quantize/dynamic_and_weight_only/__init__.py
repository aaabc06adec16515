"""Modes without stored ranges: "dynamic", which takes them at run time, and "weights".

weight_quantizer  the two modes, from a float model to a quantized one
constants         constants that become integers
integer_graph     the graph with integer constants
dynamic           layers of the mode "dynamic"
weight_only       layers of the mode "weights"
weight_figures    figures and notes for the ledger
"""
