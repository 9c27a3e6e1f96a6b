"""Check the exported files against PyTorch, runtime by runtime, and against a float64 reference."""
