"""What several test files share: the embedded model, and cut-outs to compose scenes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tiny_artifact import NAMES, QUICK, SENTENCES

from prompt_tuning import tune
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.datasets.stamps import StampsUnavailable, fetch_stamps, stamps_source

# Tensors here are small: threads that wait for each other on a busy machine cost most of the time.
torch.set_num_threads(1)

# Begun first, so that two processes end at about the same time.
LONGEST = """
    sweep submit resume tuning_worker knowledge_faults evaluate_job knowledge_job pool adapters
    serve tag sweep_trials interruption curves failure clip_check config_errors cluster_check
    imagenet_bridge distributed_tuning uneven_nodes onnx_export feature_tasks calibrate artifact
    trainer local_ray
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def lasting_cache(pytestconfig: pytest.Config) -> Path:
    """A folder that outlives the session: what goes here is found by its content."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("datafree")


@pytest.fixture(scope="session")
def stamps(lasting_cache: Path) -> Path:
    try:
        return stamps_source(lasting_cache) or fetch_stamps(lasting_cache)
    except StampsUnavailable as error:
        pytest.skip(f"no cut-outs to compose scenes from: {error}")


@pytest.fixture(scope="session")
def embedded_settings() -> VLMSettings:
    return VLMSettings(model="efficientnet-lite0+minilm", resolution=224)


@pytest.fixture(scope="session")
def embedded_vlm(embedded_settings: VLMSettings, lasting_cache: Path) -> VLM:
    # One process computes the embeddings of ImageNet's classes, the other waits for them.
    with FileLock(lasting_cache / "imagenet_anchors.lock"):
        return load_vlm(embedded_settings, cache=lasting_cache)


@pytest.fixture(scope="session")
def new_cache(embedded_vlm: VLM, lasting_cache: Path) -> Callable[[Path], Path]:
    """Makes an empty cache that has the embeddings of ImageNet's classes, which take 20 s."""

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "imagenet_anchors").symlink_to(lasting_cache / "imagenet_anchors")
        return folder

    return make


@pytest.fixture(scope="session")
def artifact(embedded_vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one, to be read only."""
    target = tmp_path_factory.mktemp("tuned") / "artifact"
    tune(embedded_vlm, NAMES, SENTENCES, tuning=QUICK, held_out=0.3).save(target)
    return target
