"""The training loop that passes share, on Hugging Face accelerate.

options     what can be asked for
processes   one process, or as many as accelerate started
batches     which samples every step learns from
schedule    learning rate and momentum, by the step
optimizer   the optimizer, and the zeros that it must leave alone
device      the device, the precision
data        the training samples in any order, as tensors
checkpoint  where a training is, so that a killed one goes on
loop        the loop itself

Labels are optional, for each sample: a class of -1, or a value of NaN, says that there is none.
"""
