"""Toolbox for ONNX models: `graph`, `normalize`, the passes and the engines build on it.

walk        nodes and graphs, subgraphs included
attributes  attributes of nodes as Python values
view        producers and readers of every tensor, and the weights of layers
copies      copies of models, and replacement of their parts
names       names of nodes, by the user, and free names
clean       removal of initializers that nothing reads
writer      writing a graph node by node, and serialising a model
limits      the newest and oldest formats that engines read, and the opset of a model
sessions    sessions of onnxruntime on the build host
stream      inner tensors of a network, run over samples
axes        classes of axes that belong together
fusion      a Q/DQ graph as onnxruntime fuses it
operators   traits of every operator that edgepack treats specially
"""
