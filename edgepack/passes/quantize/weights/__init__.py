"""Quantize the weights of layers.

int8           s8 with a scale per output channel
int4           four bits with a scale and a zero point per block
rounding       rounding to the nearest step or with compensated errors, within the pair limit
channel_order  order of input channels in which few pairs of weights exceed the limit
channel_ties   axes that share an order
"""
