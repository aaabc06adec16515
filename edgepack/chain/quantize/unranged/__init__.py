"""The modes that store no ranges: "dynamic", which takes them at run time, and "weights".

run           the pass in these modes
choose        which constants become integers
look          where weights are rounded for calibration samples, what the layers read
weights       s8 with a scale per output channel;  blocks: four bits
emit          the graph;  dynamic, weights_only: what each mode makes of a layer
"""
