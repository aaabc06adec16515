"""The mode "static": weights and activations, calibrated on samples, in a Q/DQ graph.

quantizer           the mode, from a float model to a quantized one
placement           nodes that become integer, and the reason for every layer that stays float
placement_tensorrt  the same by the rules of TensorRT
qdq_graph           the graph with Q/DQ pairs
forms               layers whose static int8 kernel is missing or slow
"""
