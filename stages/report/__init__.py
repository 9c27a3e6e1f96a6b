"""One HTML file that shows an experiment, and its figures as PNG and SVG."""
