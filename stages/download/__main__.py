"""`python -m stages.download dataset | model`: a URL, local files, a torchvision name, or drawn images."""

import os

from stages.download.checksum import split_checksum
from stages.download.dataset import bring_dataset
from stages.download.output_folder import locked, replacing_folder
from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.files import write_json
from stages.shared.params import load_params


def main(what: str = "") -> None:
    """Build artifacts/download/<what>; nothing half-written is ever seen there."""
    params = load_params()
    cache = artifacts.CACHE / "download"
    mirror = os.environ.get("MIRROR_BASE") or None
    if what == "dataset":
        source, checksum = split_checksum(params.dataset.source)
        with locked(cache, what), replacing_folder(artifacts.SOURCE_DATASET) as folder:
            facts = bring_dataset(
                folder / "images",
                source=source,
                checksum=checksum,
                labels=params.dataset.labels,
                num_train=params.dataset.synthetic.num_train,
                num_test=params.dataset.synthetic.num_test,
                side=params.dataset.synthetic.side,
                seed=params.seed,
                cache=cache,
                mirror=mirror,
            )
            write_json(folder / "source.json", facts)
    elif what == "model":
        weights, checksum = split_checksum(params.model.weights)
        from stages.download.weights import bring_weights  # torch takes seconds to import; the dataset needs none of it

        with locked(cache, what), replacing_folder(artifacts.SOURCE_MODEL) as folder:
            facts = bring_weights(
                folder / "weights.safetensors",
                weights=weights,
                architecture=params.model.architecture,
                checksum=checksum,
                cache=cache,
                mirror=mirror,
            )
            write_json(folder / "source.json", facts)
    else:
        raise ValueError(f"download what? {what!r} is not known; run `python -m stages.download dataset` or `… model`")


if __name__ == "__main__":
    run(main)
