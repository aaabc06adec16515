"""What the passes on the ONNX graph share.

view     who reads and makes a tensor
stream   a network run over samples, its inner tensors looked at
axes     classes of axes that belong together
names    nodes that the user names
clean    initializers that nothing reads any more
"""
