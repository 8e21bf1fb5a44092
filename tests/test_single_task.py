"""Heavy work in Ray tasks: on a GPU only where the task has one, and with its own errors."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from orchestrator.cluster.connect import connect, disconnect
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.captions import Caption, CaptionWriter
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.evaluation.selection import NoCategoryShown, Selection, reported_rows
from prompt_tuning.features import StoredFeatures
from workers.failure import root_cause
from workers.features import encode_captions
from workers.hierarchy import cluster_by_features
from workers.loaded_vlm import task_device
from workers.single_task import in_task

ROOT = Path(__file__).parent.parent
CATEGORIES = CategoryList(categories=tuple(Category(name=n) for n in ("dog", "car", "lemon")))


@pytest.fixture(scope="module", autouse=True)
def a_node_with_a_gpu() -> Iterator[None]:
    """Ray believes in its GPU, which is enough to see who would use it."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers lack this module
    connect(cpus=2, gpus=1, dashboard=False)
    yield
    disconnect()


def seen() -> tuple[str, str | None, bool]:
    return task_device(), os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.is_initialized()


def test_only_tasks_with_a_gpu_see_one() -> None:
    assert in_task("a look", 0, 1, seen) == ("cpu", "", False)
    assert in_task("a look", 1, 1, seen) == ("cuda", "0", False)
    assert in_task("a look", 0, 1, seen) == ("cpu", "", False)


def test_what_has_no_gpu_computes_on_the_cpu(
    tmp_path: Path, embedded_settings: VLMSettings, lasting_cache: Path
) -> None:
    with CaptionWriter(tmp_path / "captions.parquet", CATEGORIES) as writer:
        writer.write_caption(Caption("A dog sleeps in the sun.", (0,), "file"))
    vlm = (embedded_settings, lasting_cache)
    shards = tmp_path / "shards"
    encode_captions(tmp_path / "captions.parquet", *vlm, tmp_path / "parts", shards, lambda _: None)
    assert len(StoredFeatures(shards)) == 1
    groups = in_task("clustering", 0, 1, cluster_by_features, *vlm, CATEGORIES, 2, 2)
    assert sorted(groups.coarse_of) == [0, 0, 1]
    assert in_task("a look", 0, 1, seen) == ("cpu", "", False)


def test_no_module_looks_for_gpus_by_itself() -> None:
    """The device is given, or asked of Ray: also asking torch would take memory of a GPU."""
    found = {
        str(file.relative_to(ROOT))
        for package in ("prompt_tuning", "workers", "orchestrator")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch.cuda"
    }
    # The first stands in for a device that is not given, as in a program without Ray; the second
    # gives back the memory of the device that it was given.
    assert found == {"prompt_tuning/tagging/tagger.py", "workers/serving/model.py"}


def rows_of_images_that_show_nothing() -> np.ndarray:
    images = LabelledImages((Path(__file__),), np.zeros((1, 2), dtype=bool))
    return reported_rows(images, Selection("folder", 2, 0, ("a", "b")))


def test_errors_of_a_task_are_the_functions_own() -> None:
    with pytest.raises(NoCategoryShown) as raised:
        in_task("evaluation", 0, 1, rows_of_images_that_show_nothing)
    assert str(root_cause(raised.value)).startswith("no image of the reported half shows")


def threads() -> int:
    return torch.get_num_threads()


def test_a_task_has_the_threads_that_it_is_given() -> None:
    assert [in_task("a look", 0, number, threads) for number in (3, 1)] == [3, 1]
