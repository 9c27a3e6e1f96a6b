"""Measurements of training and evaluation on this machine, beside the peers' loops and the chip's limits.

python -m benchmarks             the table in the README, on this machine; JSON and Markdown into results/
python -m benchmarks.accuracy    the accuracy of the fast loop beside the plain loop's, seed by seed
python -m benchmarks.familiarity ways to tell unfamiliar pictures from familiar ones, by AUROC on real photos
python -m benchmarks.acceptance  everything that is claimed of CUDA, in one command

    workload.py      drawn photos: as JPEG files for the peers, as the training split for us
    peers.py, timm_peer.py  d2l's loop, torchvision's references, timm's
    ours.py          our step, and the same step without its data path
    contestants.py   the runs of each; process.py: a process of its own for each
    roofline.py      what the chip allows
    training.py, evaluation.py, startup.py, growth.py    the rows
    timing.py, record.py, table.py    interleaved medians; the results file; the Markdown
    accuracy.py, tasks.py  both loops on drawn and on real photos
"""
