"""What the keys of answers and of what is made of texts depend on, and what needs no model."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from without_packages import datafree_without

from orchestrator.cluster.resources import Node, Resources
from orchestrator.config.load import load_config
from orchestrator.config.models import RunConfig
from orchestrator.errors import InputError
from orchestrator.plan.knowledge import CAPTIONS, KnowledgePlan, describe_engines, plan_knowledge
from orchestrator.plan.run import make_plan
from orchestrator.stages.given_captions import write_given_knowledge
from orchestrator.stages.knowledge_summary import read_summary
from prompt_tuning.install_hints import install_set
from prompt_tuning.knowledge.noun_matching import NounMatcher
from workers.knowledge.llm_settings import GPU_DEFAULT
from workers.stage import run_stage

ON_CPU = Resources((Node(8, 0),))
NOTHING_ASKED = ("knowledge.questions.per_category=0", "knowledge.questions.relationships=0")


def config(folder: Path, *overrides: str) -> RunConfig:
    (folder / "llm").mkdir(exist_ok=True)
    (folder / "llm/config.json").write_text(json.dumps({"architectures": ["Llama"]}), "utf-8")
    text = "name: a\ncategories: [dog, car]\nknowledge: {llm: {model: llm}}"
    (folder / "a.yaml").write_text(text, "utf-8")
    cache, runs = str(folder / "cache"), str(folder / "runs")
    return load_config(folder / "a.yaml", list(overrides), cache, runs)


def plan(folder: Path, *overrides: str, resources: Resources = ON_CPU) -> KnowledgePlan:
    return plan_knowledge(config(folder, *overrides), resources)


@pytest.mark.parametrize(
    "override",
    [
        "llm.max_num_seqs=64",
        "llm.max_model_len=512",
        "llm.cpus_per_engine=2",
        "llm.adapter=base",
        "llm.dtype=float16",
        "llm.quantization=fp8",
        "llm.revision=v2",
        "llm.deterministic=true",
        "sampling.temperature=0.1",
        "sampling.max_tokens=8",
    ],
)
def test_what_forms_an_answer_is_in_its_key(tmp_path: Path, override: str) -> None:
    changed = plan(tmp_path, f"knowledge.{override}")
    assert changed.llm_identity != plan(tmp_path).llm_identity
    assert changed.stage.key != plan(tmp_path).stage.key


def test_the_model_and_the_environment_are_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan(tmp_path).llm_identity
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads = plan(tmp_path).llm_identity
    assert threads != before
    monkeypatch.undo()
    (tmp_path / "llm").mkdir(exist_ok=True)
    (tmp_path / "llm/weights.bin").write_bytes(b"other")
    assert plan(tmp_path).llm_identity != before


def test_how_many_engines_answer_is_not_in_the_key(tmp_path: Path) -> None:
    one, two = (
        plan(tmp_path, "knowledge.llm.cpus_per_engine=4", f"knowledge.llm.engines={engines}")
        for engines in (1, 2)
    )
    assert one.engines.count == 1
    assert two.engines.count == 2
    assert one.stage.key == two.stage.key


def test_where_and_how_fast_a_server_answers_is_not_in_the_key(tmp_path: Path) -> None:
    def served(**fields: object) -> KnowledgePlan:
        llm = {"source": "server", "url": "http://a/v1", "model": "glm", **fields}
        return plan(tmp_path, f"knowledge.llm={json.dumps(llm)}")

    before = served()
    elsewhere = served(url="http://b:1/v1/", concurrency=2, timeout_minutes=1, adapter="chat")
    assert elsewhere.stage.key == before.stage.key
    assert served(source="file", url=None).stage.key == before.stage.key, "whoever sends it"
    for change in ({"model": "qwen"}, {"adapter": "base"}):
        assert served(**change).stage.key != before.stage.key
    assert "server: glm at http://a/v1, 32 questions at once" in describe_engines(before)


def test_own_templates_and_other_gpus_are_in_the_key(tmp_path: Path) -> None:
    gpus = [Resources((Node(8, 2, kind),)) for kind in ("A100", "H100")]
    a100, h100 = (plan(tmp_path, resources=resources).llm_identity for resources in gpus)
    assert a100 != h100
    asks = "instruction: '{name}', heading: h, line: '{name}:', examples: []"
    own = f"own: {{kind: specific, {asks}}}"
    (tmp_path / "own.yaml").write_text(own, "utf-8")
    with_own = plan(tmp_path, "knowledge.questions.templates=own.yaml")
    assert list(with_own.templates)[-1] == "own"
    assert with_own.stage.key != plan(tmp_path).stage.key
    assert with_own.llm_identity == plan(tmp_path).llm_identity


def test_the_default_model_is_glm_on_gpus_and_the_embedded_one_without(tmp_path: Path) -> None:
    on_gpus = Resources((Node(8, 2),))
    default = "knowledge.llm.model=auto"
    assert plan(tmp_path, default, resources=on_gpus).config.knowledge.llm.model == GPU_DEFAULT
    assert plan(tmp_path, default).config.knowledge.llm.model == "embedded:gemma-3-270m"


def test_without_questions_no_language_model_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same captions are the same on any machine, which need not have the model either."""
    (tmp_path / "own.tsv").write_text("My dog sleeps.\tdog\n", "utf-8")
    own = ("captions.files=[own.tsv]", *NOTHING_ASKED)
    key = plan(tmp_path, *own).stage.key
    elsewhere = Resources((Node(2, 8, "H100"),))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for override in ("model=nowhere/at-all", "model=auto", "model=/not/here", "pool=none"):
        planned = plan(tmp_path, *own, f"knowledge.llm.{override}", resources=elsewhere)
        assert planned.stage.key == key
        assert describe_engines(planned) == "engines: none, because no language model is asked"
    asked = plan(tmp_path, "captions.files=[own.tsv]", "knowledge.llm.dtype=float32")
    assert asked.stage.key != key
    assert describe_engines(asked) == "engines: 1, each 8 CPUs and 0 GPUs, in float32"


def test_own_captions_need_neither_vllm_nor_the_embedded_models(tmp_path: Path) -> None:
    config(tmp_path)
    (tmp_path / "own.tsv").write_text("My dog sleeps.\tdog\nA red car.\tcar\n", "utf-8")
    lacking = ("vllm", "gguf", "accelerate", "gemma3_", "gt_all_", "efficientnet_")
    places = ("--cache", tmp_path / "cache", "--runs", tmp_path / "runs")
    own = ("--set", "knowledge.llm.model=auto", "--set", "captions.files=[own.tsv]")
    command = ("knowledge", tmp_path / "a.yaml", *places, *own)
    nothing = (word for override in NOTHING_ASKED for word in ("--set", override))
    done = datafree_without(lacking, *command, *nothing)
    assert done.returncode == 0, done.stderr
    assert "own captions" in done.stdout
    refused = datafree_without(lacking, *command)
    assert refused.returncode == 2, refused.stderr
    assert "asking a language model needs vLLM, which is not installed" in refused.stderr
    assert install_set("cpu") in refused.stderr or install_set("gpu") in refused.stderr


def test_templates_are_captions_without_any_engine(tmp_path: Path) -> None:
    (tmp_path / "own.tsv").write_text("My dog sleeps.\tdog\n", "utf-8")
    own = ("captions.files=[own.tsv]", *NOTHING_ASKED)
    planned, without = plan(tmp_path, *own, "captions.templates=true"), plan(tmp_path, *own)
    assert planned.stage.key != without.stage.key
    run_stage(planned.stage, partial(write_given_knowledge, planned))
    rows = pq.read_table(planned.stage.folder / CAPTIONS).to_pylist()
    assert [(row["kind"], row["labels"]) for row in rows] == [
        ("file", ["dog"]),
        *[("template", ["dog"])] * 80,
        *[("template", ["car"])] * 80,
    ]
    assert rows[1]["text"] == "a bad photo of a dog."
    summary = read_summary(planned)
    assert summary["model"] is None
    assert summary["kept"] == {"file": 1, "template": 160}
    assert summary["captions_per_category"] == {"dog": 81, "car": 80}


def test_only_what_sees_images_depends_on_their_resolution(tmp_path: Path) -> None:
    small, large = (
        make_plan(config(tmp_path, f"vlm.resolution={pixels}"), ON_CPU, None)
        for pixels in (224, 320)
    )
    assert small.captions == large.captions
    assert small.hierarchy == large.hierarchy
    assert small.tuning == large.tuning
    assert small.evaluation != large.evaluation
    other = make_plan(config(tmp_path, "vlm.model=efficientnet-lite0+minilm"), ON_CPU, None)
    assert other.captions != large.captions
    assert other.hierarchy != large.hierarchy


def test_a_label_that_no_sentence_can_get_is_refused_before_any_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = "categories=[dog, traffic_light, C#, <b>, 'TV: old', 狗, no parking sign, der Hund]"
    assert len(plan(tmp_path, odd).categories) == 8
    with pytest.raises(InputError, match=r"'_': every sentence .* \(list or markup\).*synonym"):
        plan(tmp_path, "categories=[dog, _]")
    listed = "categories: [{name: dog}, {name: _, synonyms: [cat]}]"
    (tmp_path / "labels.yaml").write_text(listed, "utf-8")
    for _ in range(2):  # a sweep plans many times
        plan(tmp_path, "categories=labels.yaml")
    (warning,) = caplog.messages
    assert "'_': most sentences about it will be dropped (list or markup)" in warning
    (tmp_path / "own.tsv").write_text("My dog sleeps.\tdog\n", "utf-8")
    plan(tmp_path, "categories=[dog, _]", "captions.files=[own.tsv]", *NOTHING_ASKED)


def test_own_captions_may_hold_letters_whose_lower_case_is_another(tmp_path: Path) -> None:
    text = "A b\u0131cycle and a \u017faw lie here.\nA TAKS\u0130 waits.\n"
    (tmp_path / "own.tsv").write_text(text, "utf-8")
    own = ("captions.files=[own.tsv]", *NOTHING_ASKED)
    assert plan(tmp_path, "categories=[bicycle, saw, taksi]", *own).stage.key
    with pytest.raises(InputError, match=r"own.tsv, row 1: the sentence names no category"):
        plan(tmp_path, "categories=[bicycle, taksi]", *own)


def test_own_captions_are_matched_once_however_often_a_run_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (f"The {name} {n} stands there.\n" for n in range(40) for name in ("dog", "car"))
    (tmp_path / "own.tsv").write_text("".join(rows), "utf-8")
    of_file = ("captions.files=[own.tsv]", *NOTHING_ASKED)
    own = config(tmp_path, *of_file)
    planned = plan_knowledge(own, ON_CPU)
    matched: list[str] = []
    find = NounMatcher.find

    def counted(matcher: NounMatcher, text: str) -> tuple[int, ...]:
        matched.extend(re.findall("stands there", text))
        return find(matcher, text)

    monkeypatch.setattr(NounMatcher, "find", counted)
    run_stage(planned.stage, partial(write_given_knowledge, planned))
    again = make_plan(own, ON_CPU, None)
    assert again.knowledge.stage.done()
    assert matched == []
    with pytest.raises(InputError, match="0 held out"):
        make_plan(config(tmp_path, "captions.held_out=1e-9", *of_file), ON_CPU, None)
    assert matched == []
