"""The ways to read training images that benchmarks.loading compares; each makes an epoch of random crops of 224 px."""

import io
import tarfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from stages.preprocess.shards import ShardWriter
from stages.shared.dataset import TrainSplit, pack_canvas
from stages.shared.encoded import EncodedImages
from stages.shared.image_source import crop_on_all_threads
from stages.shared.sampling import batches, plan_epoch

CROP, BATCH = 224, 32
Epoch = Callable[[], object]


def splits(files: list[Path], folder: Path) -> tuple[TrainSplit, TrainSplit]:
    """The photos in both stores, as preprocess writes them; nothing stays decoded."""
    images = [np.asarray(Image.open(file)) for file in files]
    canvases, sizes = pack_canvas(images, max(max(image.shape) for image in images))
    np.save(folder / "pixels.npy", canvases)
    with ShardWriter(folder / "shards") as writer:
        for file in files:
            writer.append(file.read_bytes())
    labels = np.arange(len(files), dtype=np.int64) % 2
    encoded = EncodedImages(folder / "shards", np.load(folder / "shards/index.npy"), canvases.shape[1])
    return TrainSplit(np.load(folder / "pixels.npy", mmap_mode="c"), sizes, labels), TrainSplit(encoded, sizes, labels)


def ours(split: TrainSplit) -> Epoch:
    """An epoch of crops as training asks for them, on as many threads as torch uses."""
    crops, epochs = crop_on_all_threads(split.pixels, CROP), iter(range(1, 1000))

    def epoch() -> None:
        plan = plan_epoch(torch.from_numpy(split.sizes), torch.arange(len(split)), 0, next(epochs))
        if isinstance(split.pixels, EncodedImages):
            split.pixels.expect(plan.index.tolist())
        for batch in batches(plan, BATCH):
            crops(batch)

    return epoch


def torchvision(folder: Path, cores: int) -> Epoch:
    """A folder of files."""
    return read_all(DataLoader(ImageFolder(folder, augment()), BATCH, shuffle=True, num_workers=workers(cores)))


def webdataset(files: list[Path], folder: Path, cores: int) -> Epoch:
    """As its documentation has it: tars read from end to end, one a worker, shuffled in a buffer, decoded by Pillow."""
    import webdataset as wds

    tars = [folder / f"photos-{number}.tar" for number in range(cores)]
    for number, path in enumerate(tars):
        with tarfile.open(path, "w") as tar:
            for file in files[number::cores]:
                tar.add(file, file.name)
    shuffled = wds.WebDataset([str(tar) for tar in tars], shardshuffle=False).shuffle(1000)
    dataset = shuffled.decode("pil").to_tuple("jpg").map_tuple(augment())
    return read_all(wds.WebLoader(dataset, batch_size=BATCH, num_workers=workers(cores)))


def ffcv(split: TrainSplit, folder: Path, cores: int, form: str) -> Epoch:
    """As its documentation has it: one file, kept in the page cache; compiled loops decode, crop and mirror on `cores` threads.

    `form` is jpg, in which it encodes the images itself, with quality 90, or raw.
    """
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    path = folder / f"{form}.beton"
    fields = {"image": RGBImageField(write_mode=form), "label": IntField()}
    with redirect_stderr(io.StringIO()):  # its progress
        DatasetWriter(str(path), fields, num_workers=cores).from_indexed_dataset(Images(split))
    crop = [RandomResizedCropRGBImageDecoder((CROP, CROP)), RandomHorizontalFlip(), ToTensor(), ToTorchImage()]
    pipelines = {"image": crop, "label": [IntDecoder(), ToTensor()]}
    return read_all(
        Loader(str(path), BATCH, num_workers=cores, order=OrderOption.RANDOM, drop_last=False, pipelines=pipelines)
    )


class Images:
    """The images and labels of a split that is stored as pixels, for ffcv's writer."""

    def __init__(self, split: TrainSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        height, width = self.split.sizes[row]
        return self.split.pixels[row][:height, :width], int(self.split.labels[row])


def augment() -> Callable[[Image.Image], torch.Tensor]:
    return v2.Compose([v2.RandomResizedCrop(CROP), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def workers(cores: int) -> int:
    """Processes for torch's loader: none beside this one where there is but one core."""
    return cores if cores > 1 else 0


def read_all(loader: Iterable[object]) -> Epoch:
    return lambda: sum(1 for _ in loader)


def installed(package: str) -> bool:
    return find_spec(package) is not None
