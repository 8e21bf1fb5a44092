"""The code in a stage's key: whatever can change its result, and no prose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prompt_tuning.code_digest import code_digest, imported_modules

ROOT = Path(__file__).parent.parent
EVALUATION = "orchestrator.stages.evaluation"
ENGINE = "workers.knowledge.engine"
STAGES = {
    name: imported_modules(f"orchestrator.stages.{name}")
    for name in ("given_captions", "knowledge", "features", "hierarchy", "tuning", "evaluation")
}


def changed_copy(folder: Path, entry: str, module: str, old: str, new: str) -> Path:
    """What the entry imports, with `old` in a module's source replaced by `new`."""
    for name in {*imported_modules(entry), module}:
        file = Path(*name.split(".")).with_suffix(".py")
        if not (ROOT / file).exists():
            file = file.with_suffix("") / "__init__.py"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / file)
    changed = folder.joinpath(*module.split(".")).with_suffix(".py")
    source = changed.read_text("utf-8")
    assert old in source
    changed.write_text(source.replace(old, new), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("prompt_tuning.tuning.losses", " - ", " + "),
        ("prompt_tuning.backbones.base", " = ", " = 1 * "),
        ("prompt_tuning.datasets.scenes", "labels", "labels2"),
    ],
)
def test_a_changed_formula_changes_the_key(tmp_path: Path, module: str, old: str, new: str) -> None:
    changed = changed_copy(tmp_path, EVALUATION, module, old, new)
    assert code_digest(EVALUATION, root=changed) != code_digest(EVALUATION)


@pytest.mark.parametrize(
    ("entry", "module", "old", "new"),
    [
        (EVALUATION, "prompt_tuning.tuning.losses", '"""The ', '"""Other words. The '),
        (EVALUATION, "prompt_tuning.tuning.trainer", "\n\n\n", "\n\n\n# A comment.\n"),
        (EVALUATION, "orchestrator.stages.images", '"evaluation.root: ', '"Reworded: '),
        (EVALUATION, "orchestrator.stages.images", "images cannot be read", "files are broken"),
        # Only messages use it.
        (ENGINE, "prompt_tuning.install_hints", "def ", "def renamed_"),
    ],
)
def test_prose_changes_no_key(tmp_path: Path, entry: str, module: str, old: str, new: str) -> None:
    changed = changed_copy(tmp_path, entry, module, old, new)
    assert code_digest(entry, root=changed) == code_digest(entry)


def write(folder: Path, **sources: str) -> Path:
    """A package `workers` of these modules."""
    (folder / "workers").mkdir(parents=True)
    for name, source in {"__init__": "", **sources}.items():
        (folder / "workers" / f"{name}.py").write_text(source, "utf-8")
    return folder


def test_a_newly_imported_module_is_in_the_key_by_itself(tmp_path: Path) -> None:
    lazy = "def f():\n    from workers import b\n    return b.X\n"
    before = write(tmp_path / "before", a="def f():\n    return 1\n", b="X = 1\n")
    after = write(tmp_path / "after", a=lazy, b="import workers.c\nX = 1\n", c="")
    assert imported_modules("workers.a", root=before) == ["workers.a"]
    assert imported_modules("workers.a", root=after) == [
        "workers", "workers.a", "workers.b", "workers.c",
    ]  # fmt: skip


def test_data_in_an_exception_and_text_that_is_no_message_stay_in_the_key(tmp_path: Path) -> None:
    sources = (
        "def f(x):\n    raise ValueError('reworded', x, 1, g('text'))\n",
        "def f(x):\n    raise ValueError('words', x, 2, g('text'))\n",
        "def f(x):\n    raise ValueError('words', x, 1, g('other'))\n",
        "def f(x):\n    raise OSError('words', x, 1, g('text'))\n",
        "def f(x):\n    return ValueError('words', x, 1, g('text'))\n",
        "def f(x):\n    return print('words', x, 1, g('text'))\n",
    )
    first = code_digest(
        "workers.a",
        root=write(tmp_path / "0", a="def f(x):\n    raise ValueError('words', x, 1, g('text'))\n"),
    )
    same = [
        code_digest("workers.a", root=write(tmp_path / f"{number}", a=source)) == first
        for number, source in enumerate(sources, start=1)
    ]
    assert same == [True, False, False, False, False, False]


def test_a_name_that_not_only_messages_use_is_an_import(tmp_path: Path) -> None:
    said = "from workers.b import X\nfrom workers.c import Y\n\ndef f():\n    raise E(f'{X} {Y}')\n"
    root = write(tmp_path, a=said + "\ndef g():\n    return Y\n", b="X = 1\n", c="Y = 1\n")
    assert imported_modules("workers.a", root=root) == ["workers.a", "workers.c"]


def test_a_run_that_asks_no_language_model_depends_on_none() -> None:
    for name in ("given_captions", "features", "hierarchy", "tuning", "evaluation"):
        assert [m for m in STAGES[name] if m.startswith("workers.knowledge")] == []
    assert ENGINE in STAGES["knowledge"]


def test_keys_are_not_needlessly_wide() -> None:
    """Progress bars, configs, clusters and pages change no result."""
    wide = ("config", "cluster", "plan", "runs", "pages", "console", "sweep", "commands")
    for name, modules in STAGES.items():
        found = [m for m in modules if m.startswith(tuple(f"orchestrator.{w}" for w in wide))]
        assert found == [], name
    assert "prompt_tuning.label_names" not in STAGES["features"]  # other spellings keep features
    assert "prompt_tuning.captions" not in STAGES["features"]
    assert "prompt_tuning.datasets.scenes" in STAGES["evaluation"]
    engine = imported_modules(ENGINE)
    unused = {"prompt_tuning", "prompt_tuning.install_hints", "workers.cluster_probe"}
    assert not unused & set(engine)
    assert "prompt_tuning.evaluation.bootstrap" not in STAGES["tuning"]
    assert not {m for m in engine if m.startswith("prompt_tuning.captions")}


def test_packages_in_folders_of_their_own_have_the_same_digest(tmp_path: Path) -> None:
    for package in ("prompt_tuning", "workers", "orchestrator"):  # as Ray unpacks them for a job
        shutil.copytree(ROOT / package, tmp_path / package[:1] / package)
    script = (
        f"from prompt_tuning.code_digest import code_digest; print(code_digest({EVALUATION!r}))"
    )
    path = os.pathsep.join(str(folder) for folder in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {script}", EVALUATION],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == code_digest(EVALUATION), done.stderr
