"""Quantization-aware training: train a network in the arithmetic that `quantize` will give it.

Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference" (2018); Krishnamoorthi, "Quantizing deep convolutional networks" (2018).

trace       readers and producers of the tensors in one call of the network
fold        folding of batch norms into the layers before them, which the recipe records
sites       layers to quantize, and reasons for the others
fake        quantize and dequantize, with a gradient
activation  fake quantization of activations, with ranges that follow a moving average
attach      attachment to a network for the duration of its training

The weights and inputs of convolutions and linear layers are quantized, and the outputs of
convolutions without a clamp behind them. Sums and pools between them are not: the device rounds
them too, which the training does not model. Recurrent layers and embedding tables are not quantized
either. Step sizes are not learnt (Esser et al., "Learned step size quantization", 2019): `quantize`
calibrates them again on the trained network.

Afterwards `quantize:rounding=nearest:bias_correction=false` preserves the learnt rounding; gptq
would round again to fit the float weights.

Results (benchmarks/aware.py): SNR against the original on Fashion-MNIST's test pictures, and
agreement with it,

                                      nearest          gptq             trained, nearest
    perceptron, four-bit weights      25.7 dB, 98.2 %  34.5 dB, 99.1 %  33.2 dB, 99.2 %
    ResNet-20, weights of half range  33.1 dB, 99.7 %  37.7 dB, 99.8 %  34.1 dB, 99.6 %
    ResNet-20                         37.3 dB, 99.8 %  38.9 dB, 99.8 %  37.6 dB, 99.8 %

Training recovers the loss of rounding to the nearest if weights have few bits. On these networks it
gains nothing over gptq, which needs calibration samples: the remaining error in 8 bits is the noise
of the activations, which no change of the weights removes.
"""
