"""Training on int8 arithmetic: the network computes as `quantize` will make it, and learns so.

Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference" (2018); Krishnamoorthi, "Quantizing deep convolutional networks" (2018).

trace    who reads what in one call of the network
fold     batch norms into the layers before them: the structure, which the recipe tells
sites    what of a network computes so, and what is left
fake     quantize and dequantize, with a gradient;  activation: ranges that follow what is seen
attach   the network while it trains

Weights and inputs of convolutions and linear layers are quantized, and what a convolution gives
where no clamp follows it. Sums and pools between them are not: on the device they round too, which
the training does not see. Neither are recurrent layers and tables of embeddings. Step sizes are not
learnt (Esser et al., "Learned step size quantization", 2019): `quantize` measures them anew on what
comes out of the training.

Afterwards `quantize:rounding=nearest:bias_correction=false` keeps the rounding that was learnt;
gptq rounds for the float weights anew.

What it buys (benchmarks/aware.py): SNR against the original on Fashion-MNIST's test pictures, and
agreement with it,

                                      to the nearest   gptq             trained, to the nearest
    perceptron, four-bit weights      25.7 dB, 98.2 %  34.5 dB, 99.1 %  33.2 dB, 99.2 %
    ResNet-20, weights of half range  33.1 dB, 99.7 %  37.7 dB, 99.8 %  34.1 dB, 99.6 %
    ResNet-20                         37.3 dB, 99.8 %  38.9 dB, 99.8 %  37.6 dB, 99.8 %

It makes good what rounding to the nearest loses where weights have few bits. Over gptq, where there
are calibration samples for it, it gains nothing on these networks: what is left in 8 bits is the
noise of the activations, which no weight can learn away.
"""
