"""Training loop of the passes that train, on Hugging Face accelerate.

options       the options of the loop
processes     the processes of a training, one or as many as accelerate started
batches       the samples of each step
schedule      learning rate and momentum of each step
optimizer     the optimizer, and the masks of pruned weights
device        the device and the precision
training_set  the training samples as tensors, in any order
checkpoint    the state of a training, from which an interrupted build resumes
loop          the loop itself

Labels are optional for each sample: a class of -1 or a value of NaN marks a missing label.
"""
