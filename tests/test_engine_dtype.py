"""Engines compute in the numbers that their nodes are fast in, and everything says in which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.machine import report_machine
from orchestrator.cluster.resources import Node, Resources
from orchestrator.config.load import load_config
from orchestrator.plan.knowledge import KnowledgePlan, plan_knowledge
from workers.knowledge import engine_dtype
from workers.knowledge.embedded_llm import EMBEDDED_MODEL
from workers.knowledge.engine import LLMEngine
from workers.knowledge.engine_dtype import Dtype, common_dtype, native_dtype
from workers.knowledge.gpu_memory import check_gpu_memory, weights_gib
from workers.knowledge.llm_settings import GPU_DEFAULT, LLMSettings, chosen_dtype

ZEN_3 = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 fma f16c\n\nprocessor\t: 1\n"
ZEN_4 = ZEN_3.replace("avx2", "avx2 avx512f avx512_bf16")


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which Linux says what the CPU can do: one without bfloat16."""
    file = tmp_path / "cpuinfo"
    file.write_text(ZEN_3, "utf-8")
    monkeypatch.setattr(engine_dtype, "_CPUINFO", file)
    return file


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        (ZEN_3, "float32"),
        ("flags\t\t: fpu avx512f avx512_vnni\n", "float32"),
        (ZEN_4, "bfloat16"),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", "bfloat16"),
        ("Features\t: fp asimd i8mm bf16\n", "bfloat16"),
        ("", "float32"),
    ],
)
def test_a_cpu_is_fast_in_bfloat16_only_with_instructions_for_it(
    cpu: Path, flags: str, dtype: Dtype
) -> None:
    cpu.write_text(flags, "utf-8")
    assert native_dtype(on_gpu=False) == dtype
    cpu.unlink()
    assert native_dtype(on_gpu=False) == "float32"


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [("8.0\n9.0", "bfloat16"), ("7.5", "float16"), ("9.0\n7.0", "float16"), ("[N/A]", "bfloat16")],
)
def test_a_gpu_is_asked_for_its_compute_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: str, dtype: Dtype
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{capabilities}'", "utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert native_dtype(on_gpu=True) == dtype
    monkeypatch.setenv("PATH", "")
    assert native_dtype(on_gpu=True) == "bfloat16", "vLLM says so if it is not"


@pytest.fixture
def gpu_with_10_gib_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two GPUs, as nvidia-smi reports them; the first is empty."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase \"$*\" in *--id=1*) ;; *) echo '79000 MiB, 81920 MiB';; esac\n"
        "echo '10240 MiB, 16384 MiB'",
        "utf-8",
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")


def checkpoint(folder: Path, gib: float, **config: object) -> Path:
    """A folder with weights of this size, which take no space on a disk."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", **config}), "utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(int(gib * 1024**3))
    return folder


@pytest.mark.usefixtures("gpu_with_10_gib_free")
def test_weights_that_a_gpu_cannot_hold_are_refused_before_they_load(tmp_path: Path) -> None:
    def check(gib: float, dtype: Dtype = "bfloat16", **settings: Any) -> None:
        model = checkpoint(tmp_path / str(len(list(tmp_path.iterdir()))), gib)
        check_gpu_memory(LLMSettings(model=str(model), **settings), model, dtype)

    check(9)
    with pytest.raises(ValueError, match=r"knowledge.llm.model: .* need 12.0 GiB .* 10.0 of 16.0"):
        check(12)
    check(12, tensor_parallel=2)
    check(12, quantization="fp8")
    with pytest.raises(ValueError, match=r"need 12.0 GiB"):
        check(6, "float32")
    with pytest.raises(ValueError, match=r"need 9.0 GiB .* 8.0 of 16.0 GiB are free for it"):
        check(9, gpu_memory_share=0.5)
    nowhere = Path("zai-org/GLM-4-9B-0414")
    check_gpu_memory(LLMSettings(model=str(nowhere)), nowhere, "bfloat16")
    packed = checkpoint(tmp_path / "packed", 6, quantization_config={"quant_method": "gptq"})
    assert weights_gib(packed, "float32") == 6


def test_nodes_that_differ_take_what_suits_all() -> None:
    assert common_dtype(["bfloat16", "bfloat16"]) == "bfloat16"
    assert common_dtype(["bfloat16", "float32"]) == "float32"
    assert common_dtype(["bfloat16", "float16"]) == "float16"


def test_auto_avoids_float16_where_the_default_models_overflow() -> None:
    for model in (EMBEDDED_MODEL, GPU_DEFAULT):
        assert chosen_dtype(LLMSettings(model=model), "float16") == "float32"
        assert chosen_dtype(LLMSettings(model=model), "bfloat16") == "bfloat16"
    assert chosen_dtype(LLMSettings(model="a/b"), "float16") == "float16"
    assert chosen_dtype(LLMSettings(model="a/b", dtype="float32"), "float16") == "float32"


def test_an_engine_with_a_dtype_does_not_ask_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, asked = tmp_path / "nvidia-smi", tmp_path / "asked"
    tool.write_text(f"#!/bin/sh\necho asked >{asked}", "utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for dtype, asks in (("float32", False), ("auto", True)):
        settings = LLMSettings.model_validate({"model": "nowhere", "dtype": dtype})
        with pytest.raises(Exception, match="nowhere"):
            LLMEngine(settings, tmp_path / "nowhere", on_gpu=True)
        assert asked.exists() == asks


def test_what_auto_became_is_in_the_key(cpu: Path, tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm/config.json").write_text(json.dumps({"architectures": ["Llama"]}), "utf-8")
    text = "name: a\ncategories: [dog, car]\nknowledge: {llm: {model: llm}}"
    (tmp_path / "a.yaml").write_text(text, "utf-8")

    def plan(*overrides: str) -> KnowledgePlan:
        cache, runs = str(tmp_path / "cache"), str(tmp_path / "runs")
        config = load_config(tmp_path / "a.yaml", list(overrides), cache, runs)
        return plan_knowledge(config, Resources((Node(8, 0),)))

    without = plan()
    assert without.config.knowledge.llm.dtype == "float32"
    assert without.llm_identity == plan("knowledge.llm.dtype=float32").llm_identity
    slow = plan("knowledge.llm.dtype=bfloat16")
    assert slow.config.knowledge.llm.dtype == "bfloat16", "slow here, but asked for"
    cpu.write_text(ZEN_4, "utf-8")
    assert plan().llm_identity == slow.llm_identity
    assert plan().stage.key == slow.stage.key != without.stage.key


def test_doctor_says_in_what_engines_would_compute(
    cpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    report_machine(tmp_path / "cache")
    assert "dtype of engines      float32 (no bfloat16 in this CPU)" in capsys.readouterr().out
    cpu.write_text(ZEN_4, "utf-8")
    report_machine(tmp_path / "cache")
    assert "dtype of engines      bfloat16\n" in capsys.readouterr().out
