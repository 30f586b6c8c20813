"""The network: convolution, batch normalisation, blocks, pooling and ECAPA-TDNN."""
