"""Watch the nodes (machines) of one training: where one falls silent the others end, and say which it was."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

BEAT, SILENCE = 3.0, 24.0  # seconds between two signs of life, and without one until a node is given up


@contextmanager
def watching_nodes() -> Iterator[None]:
    """End this process, with a message that names the node, where a node of the training falls silent meanwhile.

    A machine that loses its power closes no connection: the others would wait for its gradients for half an hour.
    """
    num_nodes, node = (int(os.environ.get(name, "1")) for name in ("GROUP_WORLD_SIZE", "GROUP_RANK"))
    if num_nodes == 1 or dist.get_world_size() == 1:
        yield
        return
    done = threading.Event()
    watch = threading.Thread(target=keep_watch, args=(num_nodes, node, done), daemon=True)
    watch.start()
    try:
        yield
        dist.barrier()  # a node that is done shows signs of life until all are
    except RuntimeError as error:
        if isinstance(error, dist.DistBackendError) or "peer" in str(error):
            watch.join(SILENCE + 4 * BEAT)  # it will say whose connection ended
        raise
    finally:
        done.set()


def keep_watch(num_nodes: int, node: int, done: threading.Event) -> None:
    """Tell the others every BEAT seconds that this node lives, until `done`; ends the process where another does not."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=SILENCE)
    )
    names = {number: f"node {number}" for number in range(num_nodes)}
    seen = dict.fromkeys(range(num_nodes), ("", time.monotonic()))
    beat = 0
    while not done.wait(BEAT):
        beat += 1
        try:
            store.set(f"beat/{node}", f"{beat} {socket.gethostname()}")
            found = {other: store.get(f"beat/{other}").decode() for other in names if store.check([f"beat/{other}"])}
        except RuntimeError:  # the store is the first node's
            give_up(names[0])
        for other, said in found.items():
            if said != seen[other][0]:
                seen[other] = said, time.monotonic()
                names[other] = f"node {other} ({said.split(' ', 1)[1]})"
        for other, (_, when) in seen.items():
            if time.monotonic() - when > SILENCE:
                give_up(names[other])


def give_up(name: str) -> None:
    print(
        f"error: {name} has given no sign of life for {SILENCE:.0f} s: its training ended. Mend it and start the stage on "
        "every node again; it resumes",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # not by an exception: the training waits in a library that hears of none
