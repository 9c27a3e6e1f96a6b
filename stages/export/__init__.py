"""Export the chosen recipe to ONNX: the deployable files, the subject of parity, what goes with them."""
