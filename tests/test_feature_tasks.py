"""Ray tasks that encode images: the backbone's own features, the same however often they stop."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from orchestrator.cluster.connect import connect, disconnect
from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.features import StoredFeatures
from prompt_tuning.images import open_image
from workers.features import encode_images
from workers.stage import Stage, run_stage

# Another driver of the same stage, on the same Ray.
OTHER = """
import pickle, sys
from pathlib import Path
from orchestrator.cluster.connect import connect
from workers.features import encode_images
from workers.stage import run_stage

stage, files, vlm, cache = pickle.loads(Path(sys.argv[1]).read_bytes())
connect(dashboard=False)
def work(staging):
    encode_images(files, vlm, cache, stage.parts, staging / "features", lambda _: None)
assert run_stage(stage, work)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    connect(dashboard=False)
    yield
    disconnect()


@pytest.mark.usefixtures("cluster")
def test_images_have_the_backbones_features_also_after_a_stop(
    tmp_path: Path,
    embedded_vlm: VLM,
    embedded_settings: VLMSettings,
    lasting_cache: Path,
) -> None:
    draw = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(61)]  # two parts, the last batch of one
    for file in files:
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file)
    parts, reported = tmp_path / "parts", []
    vlm, folder, again = (embedded_settings, lasting_cache, parts), tmp_path / "a", tmp_path / "b"
    encode_images(files, *vlm, folder, reported.append)
    features = StoredFeatures(folder)
    assert sum(reported) == len(files)
    rows = [0, 3, 47, 48, 60]
    pixels = torch.stack([embedded_vlm.preprocess(open_image(files[row])) for row in rows])
    expected, some = embedded_vlm.encode_image(pixels), features.take(torch.tensor(rows))
    torch.testing.assert_close(some.pooled.float(), expected.pooled, atol=1e-3, rtol=0)
    torch.testing.assert_close(some.regions.float(), expected.regions, atol=1e-3, rtol=0)

    first, second = sorted(parts.iterdir())
    # As after a task that was killed while it wrote: a shard that is cut, and one never published.
    (torn,) = first.glob("*.safetensors")
    written = torn.read_bytes()
    torn.unlink()  # the folder has a link to it
    torn.write_bytes(written[:1000])
    shutil.copytree(first, first.with_name(f".{first.name}.elsewhere-1-abc.tmp"))
    kept = second.stat().st_ino
    encode_images(files, *vlm, again, reported.append)
    assert second.stat().st_ino == kept, "a finished shard is not computed again"
    assert [file.read_bytes() for file in sorted(again.iterdir())] == [
        file.read_bytes() for file in sorted(folder.iterdir())
    ]


@pytest.mark.usefixtures("cluster")
def test_the_slower_of_two_drivers_succeeds_and_discards_its_copy(
    tmp_path: Path,
    embedded_settings: VLMSettings,
    lasting_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(50)]  # two parts
    for file in files:
        Image.new("RGB", (30, 20), "teal").save(file)
    stage = Stage("image_features", "shared", tmp_path / "cache")
    given = tmp_path / "given"
    given.write_bytes(pickle.dumps((stage, files, embedded_settings, lasting_cache)))
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    published: list[int] = []

    def the_other_is_faster(_: int) -> None:
        """Let the other driver finish the stage when this one has begun."""
        if not published:
            subprocess.run([sys.executable, "-c", OTHER, str(given)], check=True)
            published.append((stage.folder / "manifest.json").stat().st_mtime_ns)

    def work(staging: Path) -> None:
        folder = staging / "features"
        encode_images(
            files, embedded_settings, lasting_cache, stage.parts, folder, the_other_is_faster
        )

    run_stage(stage, work)
    assert stage.done()
    assert (stage.folder / "manifest.json").stat().st_mtime_ns == published[0]
    assert len(StoredFeatures(stage.folder / "features")) == len(files)
    assert not stage.parts.exists()
    assert [path.name for path in stage.folder.parent.iterdir()] == ["shared"]
