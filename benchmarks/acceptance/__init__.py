"""Acceptance on CUDA: everything that this project claims of it, measured by one command and judged.

python -m benchmarks.acceptance --out DIR [--only STEP …] [--real PATH [--weights PATH]]
python -m benchmarks.acceptance --out DIR --device cpu --small     the dry run: the same code on a CPU, in minutes

Every step is a process with a time limit of its own; each result is written as soon as it is known, and the next step
runs when one fails. The results of several calls merge into one file, DIR/cuda-<device>.json, which starts as a copy of
the one in benchmarks/results: put it back there after each call. A machine that is lent for ten minutes at a time takes
it in these pieces:

    --only machine capture tests         --only pipeline          --only devices         --only parity
    --only training                      --only profile growth startup     --only evaluation     --only accuracy
    --only real --real PATH

It needs what the stages and the tests marked gpu import, and neither Prefect nor DVC nor a network. A bare machine says what it
lacks by python -m benchmarks.acceptance.packages; to one with Python 3.12, torch 2.11 and the usual packages beside it
(torchvision, triton, ONNX Runtime, scikit-learn, pandas, matplotlib, pytest) take these wheels, 4 MB in all:

    pip download -d wheels --no-deps --only-binary=:all: --python-version 3.12 -c constraints.txt pydantic pydantic-core
        annotated-types typing-extensions typing-inspection ruamel.yaml ruamel.yaml.clib cleanlab termcolor

The steps tests, parity and evaluation also want ONNX Runtime's CUDA provider (onnxruntime-gpu; 54 MB cut to the kernels of
one GPU): without it its rows say `not run`, or fail where a GPU is required.

    steps.py      the steps: what each runs and how long it may take
    step.py       one step in this process
    claims.py     a claim and its verdict; the table
    packages.py   the packages that the steps import, and which are missing
    capture.py    captured steps against eager ones
    graph.py      the stages in the order of dvc.yaml's graph
    pipeline.py   the whole pipeline in a scratch folder, CUDA against the CPU, parity, predict.py
    speed.py      the rows of python -m benchmarks as claims; a step's profile; accuracy over seeds
"""
