"""Measurements of training and evaluation on this machine, beside the peers' loops and the chip's limits.

python -m benchmarks             the table in the README, on this machine; JSON and Markdown into results/
python -m benchmarks.accuracy    the accuracy of the fast loop beside the plain loop's, seed by seed
python -m benchmarks.familiarity ways to tell unfamiliar pictures from familiar ones, by AUROC on real photos
python -m benchmarks.acceptance  everything that is claimed of CUDA, in one command
"""
