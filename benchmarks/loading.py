"""Measure what it costs to read a training image, from either store and as others read it: python -m benchmarks.loading.

Drawn JPEG photos of 500 x 375; every contestant makes random crops of 224 px of all of them, mirrored half of the time, in
an order of its own, on one thread. CPU time, the median of rounds taken in turn: results/loading.json. With --train, a
ResNet-18 is trained from either store too.
"""

import argparse
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks import ours
from benchmarks.record import RESULTS
from benchmarks.scale import draw_source
from benchmarks.workload import make_model
from stages.preprocess.shards import ShardWriter
from stages.shared.dataset import TrainSplit, pack_canvas
from stages.shared.encoded import EncodedImages
from stages.shared.files import write_json
from stages.shared.image_source import crop_on_all_threads
from stages.shared.reproducibility import choose_device, describe_machine
from stages.shared.sampling import batches, plan_epoch

PHOTOS, SIZE, CROP, BATCH, ROUNDS = 500, (500, 375), 224, 32, 5
TRAINED = 64  # images, in an epoch of ResNet-18
FFCV = "not run: ffcv 1.0.2 is built from source and wants OpenCV's headers, which are not installed"
Epoch = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--train", action="store_true", help="train a ResNet-18 from either store too, for minutes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        draw_source(photos, PHOTOS * 5 // 4, SIZE)
        shutil.rmtree(photos / "test")
        files = sorted(photos.rglob("*.jpg"))
        pixels, encoded = splits(files, Path(folder))
        read = {
            "pixels": read_split(pixels),
            "encoded": read_split(encoded),
            "files, by torchvision": read_all(
                DataLoader(ImageFolder(photos / "train", augment()), BATCH, shuffle=True)
            ),
        }
        if find_spec("webdataset"):
            read["webdataset"] = read_all(webdataset(files, Path(folder, "photos.tar")))
        rows: dict[str, object] = {"ffcv": FFCV, "webdataset": "not run: it is not installed"}
        rows |= {name: {"cpu_ms_per_image": ms} for name, ms in cpu_ms(read, len(files)).items()}
        if arguments.train:
            train = {
                f"ResNet-18 from {name}": epoch_of(split) for name, split in (("pixels", pixels), ("encoded", encoded))
            }
            rows |= {name: {"cpu_ms_per_image": ms} for name, ms in cpu_ms(train, TRAINED).items()}
    about = {"images": len(files), "size": SIZE, "crop": CROP, "rounds": ROUNDS}
    write_json(
        arguments.out / "loading.json", {"machine": describe_machine(choose_device("cpu")), **about, "rows": rows}
    )
    for name, row in rows.items():
        print(f"{name}: {row}")


def splits(files: list[Path], folder: Path) -> tuple[TrainSplit, TrainSplit]:
    """The photos in both stores, as preprocess writes them; nothing stays decoded."""
    canvases, sizes = pack_canvas([np.asarray(Image.open(file)) for file in files], max(SIZE))
    np.save(folder / "pixels.npy", canvases)
    with ShardWriter(folder / "shards") as writer:
        for file in files:
            writer.append(file.read_bytes())
    labels = np.arange(len(files), dtype=np.int64) % 2
    images = EncodedImages(folder / "shards", np.load(folder / "shards/index.npy"), max(SIZE))
    return TrainSplit(np.load(folder / "pixels.npy", mmap_mode="c"), sizes, labels), TrainSplit(images, sizes, labels)


def read_split(split: TrainSplit) -> Epoch:
    """An epoch of crops as training asks for them."""
    crops, epochs = crop_on_all_threads(split.pixels, CROP), iter(range(1, 1000))

    def epoch() -> None:
        plan = plan_epoch(torch.from_numpy(split.sizes), torch.arange(len(split)), 0, next(epochs))
        if isinstance(split.pixels, EncodedImages):
            split.pixels.expect(plan.index.tolist())
        for batch in batches(plan, BATCH):
            crops(batch)

    return epoch


def augment() -> Callable[[Image.Image], torch.Tensor]:
    return v2.Compose([v2.RandomResizedCrop(CROP), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def webdataset(files: list[Path], path: Path) -> DataLoader:
    """As its documentation has it: a tar read from end to end, shuffled in a buffer, decoded by Pillow."""
    import webdataset as wds

    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    dataset = (
        wds.WebDataset(str(path), shardshuffle=False).shuffle(1000).decode("pil").to_tuple("jpg").map_tuple(augment())
    )
    return wds.WebLoader(dataset, batch_size=BATCH)


def read_all(loader: DataLoader) -> Epoch:
    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def epoch_of(split: TrainSplit) -> Epoch:
    """An epoch of ResNet-18 over a few images."""
    model, rows = make_model(CROP), torch.arange(TRAINED)

    def epoch() -> None:
        ours.fit_recipe(
            model, split, rows, crop=CROP, epochs=1, batch_size=BATCH, device=torch.device("cpu"), name="loading"
        )

    return epoch


def cpu_ms(contestants: dict[str, Epoch], num_images: int) -> dict[str, float]:
    """The CPU's milliseconds for an image of each, the median of rounds in turn; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(1 + ROUNDS):
        for name, epoch in contestants.items():
            start = time.process_time()
            epoch()
            seconds[name].append(time.process_time() - start)
    return {name: round(statistics.median(found[1:]) / num_images * 1000, 3) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
