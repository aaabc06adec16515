"""Modes without stored ranges: "dynamic", which takes them at run time, and "weights".

run           the pass in these modes
choose        constants that become integers
look          moments of the layers' inputs, if weights are rounded for calibration samples
weights       s8 with a scale per output channel;  blocks: four bits
emit          the graph;  dynamic, weights_only: layers in each mode
"""
