"""Show an experiment: one HTML file, its figures as PNG and SVG, and the model card."""
