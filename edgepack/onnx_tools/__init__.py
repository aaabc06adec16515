"""Tools that the passes on the ONNX graph share.

view     producers and readers of every tensor
stream   inner tensors of a network, run over samples
axes     classes of axes that belong together
names    names of nodes, by the user, and free names
clean    removal of initializers that no node reads
writer   a graph written node by node
fusion   a Q/DQ graph as onnxruntime fuses it
"""
