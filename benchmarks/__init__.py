"""How fast training and evaluation are, beside the peers' ways and the chip's limits, on this machine.

python -m benchmarks             the table of README, on this machine; JSON and Markdown into results/
python -m benchmarks.accuracy    the same accuracy as the plain loop? five seeds of both

    workload.py      drawn photos: as JPEG files for the peers, as the training split for us
    peers.py         d2l's loop, torchvision's references, timm, each written from its description
    ours.py          our step, and the same step without its data path
    contestants.py   what each can be asked to run; apart.py: each in a process of its own
    roofline.py      what the chip allows
    training.py, evaluation.py, startup.py, growth.py    the rows
    timing.py, table.py    interleaved medians; the Markdown
    accuracy.py, tasks.py  both loops, seed by seed, on drawn and on real photos
"""
