"""How the service's models reload an artifact that is replaced while they serve it."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from prompt_tuning import Artifact
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.storage import MANIFEST
from workers.serving.device import is_lost
from workers.serving.model import _Artifacts
from workers.serving.review.encoded_files import EncodedFiles


def test_a_copy_is_loaded_with_its_last_file_and_the_previous_model_is_freed(
    artifact: Path, embedded_settings: VLMSettings, lasting_cache: Path, tmp_path: Path
) -> None:
    smaller = embedded_settings.model_copy(update={"resolution": 192})
    identity = load_vlm(smaller, cache=lasting_cache).identity
    replacement = tmp_path / "replacement"
    replace(Artifact.load(artifact), vlm_settings=smaller, vlm=identity).save(replacement)
    folder = tmp_path / "served"
    shutil.copytree(artifact, folder)
    artifacts = _Artifacts({"name": folder}, "cpu", lasting_cache)
    artifacts.reload()
    before = artifacts.served["name"]
    replaced = weakref.ref(before.tagger.vlm)
    order = (MANIFEST, "tokens.safetensors", "class_features.safetensors", "artifact.json")
    files = [replacement / name for name in order]
    assert set(files) == set(replacement.iterdir())
    for file in files:
        assert artifacts.served["name"] is before
        shutil.copyfile(file, folder / file.name)
        artifacts.reload()
        if file != files[-1]:
            assert artifacts.problems["name"].startswith("name: the artifact is damaged: ")
    assert artifacts.served["name"].version != before.version
    assert artifacts.problems == {}
    [(_, vlm)] = artifacts._vlms.values()
    assert vlm.identity == identity
    before = artifacts.served["name"]  # a batch under way would hold it as well
    artifacts.free()
    assert replaced() is None
    # Back to what was there, while nothing changes.
    (folder / MANIFEST).unlink()
    artifacts.reload()
    assert str(tmp_path) not in artifacts.problems["name"]
    shutil.copyfile(replacement / MANIFEST, folder / MANIFEST)
    served = artifacts.served["name"]
    artifacts.reload()
    assert artifacts.problems == {}
    assert artifacts.served["name"] is served


def test_files_that_were_encoded_do_not_hold_a_replaced_model(
    embedded_settings: VLMSettings, lasting_cache: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    vlm = load_vlm(embedded_settings, cache=lasting_cache)
    encoded = EncodedFiles()
    first = encoded.features(vlm, [tmp_path / "a.png"])
    assert encoded.features(vlm, [tmp_path / "a.png"])[0] is first[0]
    replaced = weakref.ref(vlm)
    del vlm
    gc.collect()
    assert replaced() is None


def test_a_lost_device_is_told_apart_from_other_errors() -> None:
    lost = RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
    assert is_lost(lost)
    assert not is_lost(torch.OutOfMemoryError("CUDA out of memory"))
    full = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert not is_lost(RuntimeError(full))
    assert not is_lost(RuntimeError("shapes do not match"))
    assert not is_lost(ValueError("CUDA error"))
