"""The stages of dvc.yaml, one module each; run them as `python -m stages.<name>`."""

import os

# Before onnxruntime is imported: its builds for Linux report models and machines to their maker otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
