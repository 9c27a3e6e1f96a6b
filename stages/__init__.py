"""The stages of dvc.yaml, one module each; run them as `python -m stages.<name>`."""
