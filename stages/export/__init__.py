"""Export the chosen recipe's checkpoint to ONNX: the deployable file, the subject of parity, and what goes with them."""
