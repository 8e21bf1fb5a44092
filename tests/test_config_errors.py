"""What a person gets wrong: one short message that names it, exit code 2, and nothing started."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from PIL import Image

from orchestrator.cli import main
from orchestrator.config.load import load_config
from orchestrator.config.yaml import parse_yaml

# What is wrongly accepted would run for minutes: the commands here are no dry runs.
pytestmark = pytest.mark.timeout(60)

BASE = "name: check\ncategories: [cat, dog, bird]\n"
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Outcome:
    """How a call of the command line ended."""

    code: int | str | None
    out: str
    err: str


class CommandLine:
    """Calls `datafree` in this process, in a folder of its own."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)
        for name in ("DATAFREE_CACHE", "DATAFREE_RUNS", "RAY_ADDRESS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the same here and beside a GPU

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def call(self, *arguments: str) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["datafree", *arguments])
        self._capsys.readouterr()
        code: int | str | None = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = self._capsys.readouterr()
        return Outcome(code, out, err)

    def refuses(self, *arguments: str, words: str | list[str]) -> None:
        """The call ends with one short message that has all the words; nothing was started."""
        outcome = self.call(*arguments)
        assert outcome.code == 2, outcome
        assert len(outcome.err) < 1500
        assert "Traceback" not in outcome.err
        for word in [words] if isinstance(words, str) else words:
            assert word in outcome.err
        assert outcome.out == ""
        assert not ray.is_initialized()
        assert not (self.folder / "cache").is_dir()
        assert not (self.folder / "runs").is_dir()

    def refuses_config(self, content: str | bytes, words: str | list[str], *options: str) -> None:
        self.write("c.yaml", content)
        self.refuses("run", "c.yaml", *options, words=words)

    def accepts_config(self, content: str | bytes, *options: str) -> None:
        self.write("c.yaml", content)
        outcome = self.call("run", "c.yaml", "--dry-run", *options)
        assert outcome.code == 0, outcome.err


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


UNKNOWN_FIELDS = [
    (BASE + "tunning: {}", "c.yaml: tunning: unknown field; did you mean tuning?"),
    (BASE + "tuning: {epoch: 5}", "tuning.epoch: unknown field; did you mean tuning.epochs?"),
    (BASE + "knowledge: {llm: {modle: x}}", "knowledge.llm.modle: unknown field; did you mean"),
    (BASE + "tuning: {noise: {sdt: 1}}", "did you mean tuning.noise.std?"),
    (
        BASE + "tuning: {zzz: 5}",
        "tuning.zzz: unknown field; the fields are: optimizer, lr",
    ),
    (BASE + "x: {<<: {name: a}}", "x: unknown field"),
    (BASE + "x" * 900 + ": 1", "xxxxxx"),
    (BASE + "losses: {a: 1, b: 1, c: 1, d: 1, e: 1, f: 1, g: 1}", "and 2 more"),
]

TYPES = [
    (BASE + "tuning: {epochs: many}", 'tuning.epochs: must be a whole number (got "many")'),
    (BASE + "tuning: {epochs: true}", "tuning.epochs: must be a whole number (got true)"),
    (BASE + 'tuning: {epochs: "3"}', 'tuning.epochs: must be a whole number (got "3")'),
    (BASE + "tuning: {epochs: 2.5}", "tuning.epochs: must be a whole number"),
    (BASE + "tuning: {epochs: 2.0}", "tuning.epochs: must be a whole number"),
    (BASE + "tuning: {epochs: }", "tuning.epochs: must be a whole number (got null)"),
    (BASE + "tuning: {lr: fast}", "tuning.lr: must be a number"),
    (BASE + "tuning: {lr: {a: 1}}", "tuning.lr: must be a number"),
    (BASE + "tuning: [1]", "tuning: must be a mapping"),
    (BASE + "tuning:", "tuning: must be a mapping"),
    (BASE + "seeds: {a: 1}", "seeds: must be a list"),
    (BASE + "seeds: 3", "seeds: must be a list"),
    (BASE + "seeds: [0, one]", "seeds.1: must be a whole number"),
    (BASE + "hierarchy: {groups: true}", "hierarchy.groups: must be a text"),
    (BASE + "prompts: {local_branch: {hierarchical: 1}}", "hierarchical: must be true or false"),
    (BASE + "paths: {cache: 3}", "paths.cache: must be a text"),
    (BASE + "captions: {files: a.tsv}", "captions.files: must be a list"),
    ("name: 5\ncategories: [cat, dog]", "name: must be a text"),
    ("name: a\ncategories: 3", "categories: must be a text or a list (got 3)"),
    ("name: a\ncategories: {cat: dog}", "categories: must be a text or a list"),
    ("name: a\ncategories: [cat, 3]", "categories.1: must be a text (got 3)"),
    (BASE + "knowledge: {llm: {engines: x}}", "engines: must be a whole number or 'auto'"),
    (BASE + "tuning: {cpus_per_worker: true}", "cpus_per_worker: must be a number or 'auto'"),
]

VALUES = [
    (BASE + "tuning: {lr: .nan}", "tuning.lr: must be a finite number"),
    (BASE + "tuning: {lr: .inf}", "tuning.lr: must be a finite number"),
    (BASE + "losses: {margin: -.inf}", "losses.margin: must be a finite number"),
    (BASE + "tuning: {lr: 1e999}", "tuning.lr: must be a finite number"),
    (BASE + "losses: {order: -1}", "losses.order: must be at least 0"),
    (BASE + "tuning: {lr: 0}", "tuning.lr: must be above 0"),
    (BASE + "tuning: {epochs: 0}", "tuning.epochs: must be at least 1"),
    (BASE + "tuning: {optimizer: sdg}", "tuning.optimizer: must be 'sgd' or 'adam'"),
    (BASE + f"tuning: {{optimizer: {'x' * 3000}}}", "tuning.optimizer: must be 'sgd' or 'adam'"),
    (BASE + "prompts: {depth: 9}", "prompts.depth: must be at most 4"),
    (BASE + "hierarchy: {fine: 1, coarse: 3}", "hierarchy: fine 1 is below coarse 3"),
    (BASE + "seeds: []", "seeds: must be a list of at least 1"),
    (BASE + "seeds: [1, 1]", "seeds: must not repeat a seed"),
    (BASE + "seeds: [-1]", "seeds.0: must be at least 0"),
    (BASE + f"seeds: [{'9' * 5000}]", "seeds.0: must be a whole number"),
    (BASE + "paths: {cache: ''}", "paths.cache: must be a text of 1 or more"),
    (BASE + "captions: {min_words: 9, max_words: 3}", "captions: min_words 9 is above max_words"),
    (BASE + "tuning: {noise: {std: 1, relative: 1}}", "tuning.noise: needs exactly one of std"),
    (BASE + "tuning: {noise: {}}", "tuning.noise: needs exactly one of std and relative"),
    (
        BASE + "prompts: {global_branch: {order: [shared, shared, fine, category]}}",
        "prompts.global_branch.order: must list each of shared, fine, coarse, category once",
    ),
    (
        BASE + "prompts: {global_branch: {order: [shard, fine, coarse, category]}}",
        "prompts.global_branch.order.0: must be 'shared', 'fine', 'coarse' or 'category'",
    ),
    (
        BASE + "knowledge: {questions: {set_shares: [0.5, 0.1, 0, 0, 0]}}",
        "knowledge.questions: set_shares must add up to 1 (got 0.6)",
    ),
    (
        BASE + "knowledge: {questions: {set_shares: [0.5, 0.5]}}",
        "knowledge.questions.set_shares.2: is missing",
    ),
    (
        BASE + "knowledge: {questions: {per_category: 0, relationships: 0}}",
        "knowledge.questions: there would be no captions",
    ),
    (BASE + "tuning: {lr: 0, epochs: 0}", ["tuning.lr: must", "tuning.epochs: must"]),
]

NAMES = [
    ("categories: [cat, dog]", "name: is missing"),
    ("name: a", "categories: is missing"),
    *(
        (f"name: {name}\ncategories: [cat, dog]", "name: ")
        for name in ("a/b", "..", ".hidden", "a b", "''", "x" * 65, '"a\\n"', "../a", "-a", "ä")
    ),
    ("name: a\ncategories: []", "categories: must be a list of at least 2"),
    ("name: a\ncategories: [cat]", "categories: must be a list of at least 2"),
    ("name: a\ncategories: [cat, dog, cat]", "category 'cat' is listed twice"),
    ("name: a\ncategories: [cat, dog, Cat]", "category 'Cat' is listed twice"),
    ("name: a\ncategories: [cat, '']", "categories.1.name: must be a text of 1 or more"),
    ("name: a\ncategories: [cat, ' ']", "categories.1.name: ' ' is not a plain name"),
    ("name: a\ncategories: [cat, 'hot  dog']", "categories.1.name: 'hot  dog' is not a plain"),
    (
        "name: a\ncategories: cocoo",
        ["categories: 'cocoo' is not a file", "coco, nus, scenes, starter, voc"],
    ),
    ("name: a\ncategories: mine.txt", "categories: 'mine.txt' is not a file"),
    ("name: a\ncategories: .", "categories: '.' is not a file"),
    ("name: a\ncategories: ''", "categories: '' is not a file"),
    (f"name: a\ncategories: {'x' * 5000}", ["categories: 'xxx", "File name too long"]),
    ("name: a\ncategories: ~nobody-here/x", "categories: '~nobody-here/x'"),
]

NOT_YAML = [
    ("", "c.yaml: must be a mapping"),
    ("# nothing", "c.yaml: must be a mapping"),
    ("- a\n- b", "c.yaml: must be a mapping"),
    ("hello", "c.yaml: must be a mapping"),
    ("a: b: c", "c.yaml, line 1: "),
    ("a:\n\t- b", "c.yaml, line 2: "),
    ("name: [a", "c.yaml, line 1: "),
    (BASE + "---\n" + BASE, "c.yaml, line 3: "),
    (BASE + "seeds: \x01", "c.yaml: not YAML"),
    (BASE + 'seeds: ["\\0"]', "c.yaml, line 3: "),
    (BASE + 'seeds: ["\\ud800"]', "c.yaml, line 3: "),
    ("näme: café".encode("latin-1"), "c.yaml: not UTF-8 (byte 1)"),
    (BASE.encode("utf-16"), "c.yaml: not UTF-8 (byte 0)"),
    (bytes(range(32, 256)), "c.yaml: not UTF-8"),
    ("name: !!python/object/apply:os.system ['touch here']", ["line 1: tags are not", "!!python"]),
    (BASE + "seeds: [!!int '3']", "line 3: tags are not allowed (got !!int)"),
    (BASE + "tuning: !mine {}", "line 3: tags are not allowed (got !mine)"),
    ("name: &n check\ncategories: [*n, dog]", "c.yaml, line 2: aliases are not allowed"),
    (
        "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60)),
        "c.yaml, line 2: aliases are not allowed",
    ),
    (BASE + "name: other", "c.yaml, line 3: the key 'name' is given twice"),
    (BASE + "tuning: {lr: 1, lr: 2}", "c.yaml, line 3: the key 'lr' is given twice"),
    (BASE + "1: 2", "c.yaml, line 3: the key 1 is not a text"),
    (BASE + "? [a]\n: 2", "c.yaml, line 3: the key ['a'] is not a text"),
    (BASE + "seeds: " + "[" * 100_000, "c.yaml, line 3: nested too deeply"),
    (BASE + "seeds: " + "{a: " * 100_000, "c.yaml, line 3: nested too deeply"),
    (BASE + "seeds: " + "[" * 300 + "]" * 300, "c.yaml, line 3: nested too deeply"),
    (BASE + "#" * 1_100_000, "c.yaml: must be at most 1 MB"),
]

MODELS_AND_MACHINE = [
    (BASE + "vlm: {model: clip}", "vlm.model: 'clip' is not an embedded model; there are: effic"),
    (BASE + "vlm: {pretrained: openai}", "vlm.pretrained"),
    (BASE + "vlm: {kind: clip}", "vlm.kind: must be 'embedded' or 'open_clip'"),
    (
        BASE + "vlm: {kind: open_clip, model: RN50, pretrained: openai, resolution: 224}",
        ["QuickGELU", "RN50-quickgelu"],
    ),
    (
        BASE + "vlm: {kind: open_clip, model: RN51, pretrained: openai, resolution: 224}",
        ["vlm.model", "RN51", "did you mean"],
    ),
    (
        BASE + "vlm: {kind: open_clip, model: RN50-quickgelu, pretrained: opnai, resolution: 224}",
        ["vlm.pretrained", "opnai"],
    ),
    (
        BASE
        + "vlm: {kind: open_clip, model: RN50-quickgelu, pretrained: openai, resolution: 224}\n"
        + "prompts: {local_branch: {hierarchical: false, shared: 64}, global_branch: {shared: 64, "
        + "category: 10}}",
        "prompts: 90 tokens with the category 'cat' exceed the 77 that RN50-quickgelu reads",
    ),
    (
        BASE
        + "vlm: {kind: open_clip, model: ViT-B-16-SigLIP, pretrained: webli, resolution: 224}\n"
        + "prompts: {local_branch: {hierarchical: false, shared: 63}}",
        "prompts: 63 context tokens leave no room for a name and EOS in the 64",
    ),
    (
        BASE + "vlm: {kind: open_clip, model: RN50-quickgelu, pretrained: openai, resolution: 99}",
        "vlm.resolution",
    ),
    (
        BASE + "knowledge: {llm: {model: ./missing}}",
        "knowledge.llm.model: './missing' must be a fold",
    ),
    (BASE + "knowledge: {llm: {model: ''}}", "knowledge.llm.model: must be a text of 1 or more"),
    (BASE + "knowledge: {llm: {model: 'embedded:x'}}", "knowledge.llm.model: 'embedded:x'"),
    (BASE + f"tuning: {{workers: {4 * CORES + 1}}}", "tuning.workers"),
    (BASE + f"tuning: {{cpus_per_worker: {CORES + 1}}}", "tuning.workers"),
    (BASE + "tuning: {gpus_per_worker: 1}", ["tuning.workers", "0 GPUs"]),
    (BASE + f"knowledge: {{llm: {{cpus_per_engine: {CORES + 1}}}}}", "knowledge.llm.engines"),
    (BASE + f"knowledge: {{llm: {{engines: {CORES + 1}}}}}", "knowledge.llm.engines"),
    (BASE + "knowledge: {llm: {tensor_parallel: 8}}", ["knowledge.llm.tensor_parallel", "0 GPUs"]),
    (
        BASE + "knowledge: {questions: {templates: t.yaml}}",
        "knowledge.questions.templates: 't.yaml' is not a file",
    ),
    (
        BASE + "hierarchy: {groups: llm}\ncaptions: {files: [own.tsv]}\n"
        "knowledge: {questions: {per_category: 0, relationships: 0}}",
        "hierarchy.groups: llm needs a language model's answers",
    ),
    (
        BASE + "knowledge: {questions: {per_category: 0, relationships: 0}}",
        "captions.files is empty and captions.templates is false",
    ),
    (BASE + "captions: {templates: 80}", "captions.templates: must be true or false (got 80)"),
    (BASE + "hierarchy: {groups: builtin}", "hierarchy.groups: builtin only goes with categories"),
    ("name: a\ncategories: scenes\nhierarchy: {groups: builtin}", "hierarchy.groups: builtin"),
    (BASE + "hierarchy: {groups: g.yaml}", "hierarchy.groups: 'g.yaml' is not a file"),
    (BASE + "hierarchy: {groups: .}", "hierarchy.groups: '.' is not a file"),
    (BASE + "captions: {files: [a.tsv]}", "captions.files: 'a.tsv' is not a file"),
    (BASE + "captions: {files: [.]}", "captions.files: '.' is not a file"),
    (
        BASE + "evaluation: {dataset: imagenet}",
        ["evaluation.dataset: must be 'voc2007', 'voc2012', ", "'folder', 'scenes' or 'none'"],
    ),
    (BASE + "evaluation: {dataset: folder}", "evaluation.root: is missing"),
    (BASE + "evaluation: {dataset: folder, root: x}", "evaluation.root: 'x' is not a folder"),
    (
        BASE + "evaluation: {dataset: folder, root: c.yaml}",
        "evaluation.root: 'c.yaml' is not a fo",
    ),
    (BASE + "evaluation: {dataset: folder, root: .}", ["evaluation.root", "labels.csv is missing"]),
    (BASE + "evaluation: {root: .}", "evaluation.root: only goes with"),
    (
        BASE + "evaluation: {select_on: evaluation}",
        "evaluation.select_on: evaluation needs labelled images, but evaluation.dataset is none",
    ),
    (
        BASE + "evaluation: {select_on: images, dataset: scenes}",
        "evaluation.select_on: must be 'text' or 'evaluation'",
    ),
    (
        BASE + "evaluation: {dataset: scenes, root: .}",
        "evaluation.root: only goes with dataset: voc",
    ),
    (
        BASE + "evaluation: {dataset: folder, root: ., split: val}",
        "evaluation.split: only goes with dataset: voc2007, voc2012, coco2014, coco2017, nus_wide",
    ),
    (
        BASE + "evaluation: {dataset: coco2017, root: ., difficult: ignore}",
        "evaluation.difficult: only goes with dataset: voc2007, voc2012",
    ),
    (
        BASE + "evaluation: {dataset: nus_wide, root: ., crowd: false}",
        "evaluation.crowd: only goes with dataset: coco2014, coco2017, coco_json",
    ),
    (
        BASE + "evaluation: {dataset: voc2007, root: ., difficult: maybe}",
        "evaluation.difficult: must be 'ignore', 'negative' or 'positive'",
    ),
    (
        BASE + "evaluation: {dataset: voc2007}",
        ["evaluation.root: is missing", "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/"],
    ),
    (
        BASE + "evaluation: {dataset: coco2014, root: x}",
        ["evaluation.root: 'x' is not a folder", "https://cocodataset.org/#download"],
    ),
    (
        BASE + "evaluation: {dataset: nus_wide, root: .}",
        ["evaluation.root", "TestImagelist.txt is missing", "https://lms.comp.nus.edu.sg/"],
    ),
    (
        BASE + "evaluation: {dataset: voc2012, root: ., split: train}",
        ["evaluation.root", "VOCdevkit/VOC2012/ImageSets/Main is missing", "VOC/voc2012/"],
    ),
    (
        "name: a\ncategories: [unicorn, troll]\nevaluation: {dataset: scenes}",
        "evaluation.dataset: the scenes show none of the categories",
    ),
]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *UNKNOWN_FIELDS,
        *TYPES,
        *VALUES,
        *NAMES,
        *NOT_YAML,
        *MODELS_AND_MACHINE,
    ],
    ids=lambda value: str(value)[-60:] if isinstance(value, str | bytes) else "",
)
def test_refused(cli: CommandLine, content: str | bytes, words: str | list[str]) -> None:
    if "dataset: scenes" in str(content):
        # The cut-outs are fetched before the plan is made.
        cli.write("c.yaml", content)
        cli.refuses("run", "c.yaml", "--dry-run", words=words)
    else:
        cli.refuses_config(content, words)
    assert not (cli.folder / "here").exists()  # what the tag of os.system would make


GROUPS = BASE + "hierarchy: {groups: in.yaml}"
OWN_CAPTIONS = BASE + "captions: {files: [in.tsv]}"
TEMPLATES = BASE + "knowledge: {questions: {templates: in.yaml}}"
OWN_PHOTOS = BASE + "evaluation: {dataset: folder, root: photos}"


@pytest.mark.parametrize(
    ("content", "file", "given", "words"),
    [
        ("name: a\ncategories: in.txt", "in.txt", "cat\ndog\ncat\n", ["in.txt", "'cat' is listed"]),
        ("name: a\ncategories: in.txt", "in.txt", "cat\n\n", ["in.txt", "a list of at least 2"]),
        ("name: a\ncategories: in.txt", "in.txt", b"caf\xe9\ndog", "in.txt: not UTF-8"),
        ("name: a\ncategories: in.yaml", "in.yaml", "categories: cat", ["in.yaml", "must be a li"]),
        ("name: a\ncategories: in.yaml", "in.yaml", "cats: [a, b]", ["in.yaml", "must be a list"]),
        ("name: a\ncategories: in.yaml", "in.yaml", "[cat, [dog]]", "in.yaml: categories.1.name"),
        ("name: a\ncategories: in.yaml", "in.yaml", "[cat, {name: dog", "in.yaml, line 1"),
        (
            "name: a\ncategories: in.yaml",
            "in.yaml",
            "[cat, {name: dog, synonym: [hound]}]",
            "in.yaml: categories.1.synonym: unknown field; did you mean categories.1.synonyms?",
        ),
        (GROUPS, "in.yaml", "[cat, dog]", ["in.yaml", "must map coarse groups"]),
        (GROUPS, "in.yaml", "a: [cat, dog, bird]", ["in.yaml", "must map coarse groups"]),
        (GROUPS, "in.yaml", "a: {b: cat}", ["in.yaml", "'b' of 'a' must list its categories"]),
        (GROUPS, "in.yaml", "a: {b: [cat, dog, cow]}", ["in.yaml", "'cow' in group 'b' is no"]),
        (GROUPS, "in.yaml", "a: {b: [cat, dog], c: [cat]}", ["in.yaml", "'cat' is in two groups"]),
        (GROUPS, "in.yaml", "a: {b: [cat, dog]}", ["in.yaml", "categories without a group: bird"]),
        (GROUPS, "in.yaml", "a: {b: [cat], b: [dog]}", "in.yaml, line 1: the key 'b' is given"),
        (OWN_CAPTIONS, "in.tsv", "A cat.\nIt sits.\tcow\n", ["captions.files", "row 2", "'cow'"]),
        (OWN_CAPTIONS, "in.tsv", "A cat.\n\nIt sits.\n", ["captions.files", "in.tsv, row 3"]),
        (OWN_CAPTIONS, "in.tsv", b"A caf\xe9 cat.\n", ["captions.files", "in.tsv: not UTF-8"]),
        (TEMPLATES, "in.yaml", "[a, b]", "in.yaml: must map names to question templates"),
        (TEMPLATES, "in.yaml", "look: {kind: specific}", "in.yaml: look: instruction: is missing"),
        (
            TEMPLATES,
            "in.yaml",
            "own: {kind: specific, instruction: '{name}', heading: h, "
            "line: 'a {nam}:', examples: []}",
            ["in.yaml: own: line has {nam}; a", "kind specific can fill {attribute}, {name}"],
        ),
        (OWN_PHOTOS, "photos/labels.csv", "", ["evaluation.root", "must list at least one photo"]),
        (OWN_PHOTOS, "photos/labels.csv", "a.jpg,cat\n", ["evaluation.root", "labels.csv: row 1"]),
        (
            OWN_PHOTOS,
            "photos/labels.csv",
            "labels.csv,cow\n",
            ["evaluation.root", "(got 'cow' in row 1)"],
        ),
        (OWN_PHOTOS, "photos/labels.csv", "labels.csv\n", ["row 1", "must be path,label;label"]),
        (OWN_PHOTOS, "photos/labels.csv", "labels.csv,cat\n", "cannot be read as an image"),
        (OWN_PHOTOS, "photos/labels.csv", "labels.csv,\n", "no photo shows any category"),
        (OWN_PHOTOS, "photos/labels.csv", b"caf\xe9.jpg,cat\n", "evaluation.root"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_refused_for_an_input_file(
    cli: CommandLine, content: str, file: str, given: str | bytes, words: str | list[str]
) -> None:
    cli.write(file, given)
    cli.refuses_config(content, words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tuning.epochs", "'tuning.epochs': must be FIELD=VALUE"),
        ("=5", "must be FIELD=VALUE"),
        ("tuning.epoch=5", "did you mean tuning.epochs?"),
        ("tuning..epochs=5", "unknown field"),
        ("name.x=1", "'name.x=1': 'name' has no fields"),
        ("seeds.0=1", "seeds: must be a list"),
        ("tuning.lr.x=1", "tuning.lr: must be a number"),
        ("tuning.epochs=many", "tuning.epochs: must be a whole number"),
        ("tuning.epochs=", "tuning.epochs: must be a whole number"),
        ("tuning.lr=nan", "tuning.lr: must be a number"),
        ("seeds=[1", "--set 'seeds=[1', line 1: "),
        ("seeds=!!python/name:os.system", "tags are not allowed"),
    ],
)
def test_refused_override(cli: CommandLine, override: str, words: str) -> None:
    cli.refuses_config(BASE, words, "--set", override)


def test_no_such_config_file(cli: CommandLine) -> None:
    cli.refuses("run", "missing.yaml", words="missing.yaml: no such file")
    cli.refuses("run", ".", words=".: not a file")
    cli.refuses("run", "x" * 300, words="File name too long")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tuning: {cpus_per_worker: lots}", "tuning.cpus_per_worker: must be a number or 'auto'"),
        ("seeds: [a]", "seeds.0: must be a whole number"),
        ("vlm: {pretrained: 3}", "vlm.pretrained: must be a text"),
    ],
)
def test_a_field_that_may_be_several_things_gets_one_line(
    cli: CommandLine, content: str, message: str
) -> None:
    cli.write("c.yaml", BASE + content)
    err = cli.call("run", "c.yaml").err
    assert err.partition(" (got")[0] == f"error: c.yaml: {message}"
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", ["categories: [cat, 3]", "categories: [cat, {name: dog}]"])
def test_a_part_that_is_wrong_is_reported_without_its_whole(cli: CommandLine, content: str) -> None:
    cli.write("c.yaml", f"name: a\n{content}")
    err = cli.call("run", "c.yaml").err
    assert err.startswith("error: c.yaml: categories.1: must be a text")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:9", "RAY_ADDRESS: no Ray cluster answers at '127.0.0.1:9'"),
        (
            "ray://127.0.0.1:9",
            "RAY_ADDRESS: must be auto, or the address of a cluster's head, such",
        ),
        ("http://127.0.0.1:9", "a job server's address is for `datafree submit`"),
        ("local", "RAY_ADDRESS: must be auto, or"),
        ("somewhere", "RAY_ADDRESS: must be auto, or"),
    ],
)
def test_no_cluster_where_ray_address_says(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, address: str, words: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    cli.refuses_config(BASE, "paths.cache: 'cache' must be absolute on a cluster")
    folders = ("--cache", str(cli.folder / "cache"), "--runs", str(cli.folder / "runs"))
    cli.refuses_config(BASE, words, *folders)


@pytest.mark.parametrize("folder", ["cache", "runs"])
def test_a_file_where_results_belong(cli: CommandLine, folder: str) -> None:
    taken = cli.write("taken", "")
    for place in (taken, taken / "below"):
        cli.refuses_config(
            BASE, [f"paths.{folder}: {place}", "cannot be written to"], f"--{folder}", str(place)
        )


@pytest.mark.parametrize("folder", ["cache", "runs"])
def test_where_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(BASE + f"paths: {{{folder}: from-config}}")

    def chosen(option: str | None) -> str:
        options = {"cache": None, "runs": None, folder: option}
        return str(getattr(load_config(config, [], **options).paths, folder))

    monkeypatch.delenv(f"DATAFREE_{folder.upper()}", raising=False)
    assert chosen(None) == "from-config"
    monkeypatch.setenv(f"DATAFREE_{folder.upper()}", "from-environment")
    assert chosen(None) == "from-environment"
    assert chosen("from-option") == "from-option"


@pytest.mark.parametrize(
    "content",
    [
        BASE,
        b"\xef\xbb\xbf" + BASE.encode(),
        BASE.replace("\n", "\r\n").encode(),
        BASE + "tuning: {lr: 1e-3, weight_decay: 0}",
        BASE + "tuning: {lr: 1}",
        "name: &anchor a\ncategories: [cat, dog]",
        "name: v1.2_b-3\ncategories: coco\nhierarchy: {groups: builtin}",
        "name: a\ncategories: voc\nhierarchy: {groups: builtin}",
        BASE + "evaluation: {dataset: scenes}",
        BASE + "captions: {templates: true}\n"
        "knowledge: {questions: {per_category: 0, relationships: 0}}",
        BASE + "vlm: {kind: open_clip, model: RN50-quickgelu, pretrained: openai, resolution: 224}",
    ],
)
def test_accepted(cli: CommandLine, content: str | bytes) -> None:
    cli.accepts_config(content)
    # A dry run leaves nothing behind.
    assert not (cli.folder / "cache").exists()
    assert not (cli.folder / "runs").exists()


def test_accepted_with_input_files_beside_the_config(cli: CommandLine) -> None:
    cli.write("own/list.txt", "cat\n\nhot dog\n")
    cli.write("own/list.yaml", "categories: [cat, {name: hot dog, synonyms: [frankfurter]}]")
    cli.write("own/groups.yaml", "food: {fast: [hot dog]}\nanimals: {pets: [cat]}")
    cli.write("own/captions.tsv", "A cat sleeps.\nLunch is served.\thot dog;cat\n")
    cli.write("own/photos/labels.csv", "a.png,cat\na.png,hot dog\n")
    Image.new("RGB", (8, 8)).save(cli.folder / "own/photos/a.png")
    for categories in ("list.txt", "list.yaml"):
        cli.write(
            "own/c.yaml",
            f"name: a\ncategories: {categories}\nhierarchy: {{groups: groups.yaml}}\n"
            "captions: {files: [captions.tsv]}\n"
            "evaluation: {dataset: folder, root: photos}\n",
        )
        outcome = cli.call("run", "own/c.yaml", "--dry-run", "--set", "tuning.epochs=5")
        assert outcome.code == 0, outcome.err
        assert "image_features" in outcome.out


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("~", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(text, "text")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "--no-such-option", "c.yaml"], ["evaluate"], ["no-such-command"]],
)
def test_usage_errors(cli: CommandLine, arguments: list[str]) -> None:
    cli.refuses(*arguments, words="Usage:")


def datafree(*arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The installed command in a process of its own, and the seconds of CPU time that it took."""
    before = os.times()
    done = subprocess.run(
        [Path(sys.executable).parent / "datafree", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    after = os.times()
    spent = after.children_user + after.children_system
    return done, spent - before.children_user - before.children_system


def test_help_takes_less_than_a_second() -> None:
    # CPU time, for on a busy machine a clock tells of the others.
    calls = [datafree("--help") for _ in range(3)]
    assert all(call.returncode == 0 and "doctor" in call.stdout for call, _ in calls)
    assert min(seconds for _, seconds in calls) < 0.9


def test_version() -> None:
    done, _ = datafree("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("datafree 0.")


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(BASE + "tuning: {epoch: 3}")
    done, seconds = datafree("run", str(config), LC_ALL="C")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {config}: tuning.epoch: unknown field; did you mean tuning.epochs?\n"
    )
    assert done.stdout == ""
    assert seconds < 10
