"""The pool through every fault, on a real Ray cluster; the engine is a stand-in, for vLLM would add
nothing here. An answer names all questions of its call, so bytes tell what was asked together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.storage import digest, write_atomic
from workers import waiting
from workers.failure import DescribedFailure
from workers.knowledge.ledger import Ledger, Shard, cut_shards
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings
from workers.knowledge.pool import KnowledgePool
from workers.placement import NodeSettings, Placement

PATHS = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


class StandIn:
    """Does what a question's instruction says; `model` is the folder where it keeps its diary."""

    def __init__(self, settings: LLMSettings, model: Path, on_gpu: bool) -> None:
        self._folder = model
        if (model / "no more engines").exists():
            raise ValueError("no room for the weights")
        self.note("loaded", [os.getpid()])

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        seeds = [question.seed for question in questions]
        self.note("asked", seeds)
        for question in questions:
            self.obey(question.instruction, question.seed)
        return [Answer(f"{seed} of {digest(seeds)[:16]}", True, 1) for seed in seeds]

    def note(self, what: str, numbers: list[int]) -> None:
        name = f"{time.time_ns()}-{uuid.uuid4().hex}"
        write_atomic(self._folder / "diary" / name, json.dumps([what, numbers]).encode())

    def obey(self, instruction: str, seed: int) -> None:
        if instruction == "die":
            time.sleep(0.3)  # else the answer before may die on its way, and be asked for again
            os.kill(os.getpid(), signal.SIGKILL)
        if instruction == "die once" and not (self._folder / f"died {seed}").exists():
            (self._folder / f"died {seed}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if instruction == "raise":
            raise ValueError(f"question {seed} is too long\nand more")
        if instruction == "wait":
            while not (self._folder / "go on").exists():
                time.sleep(0.01)
        if instruction == "rest":
            time.sleep(0.2)
        if instruction == "hang once" and not (self._folder / f"hung {seed}").exists():
            (self._folder / f"hung {seed}").touch()
            time.sleep(600)


class FirstIsBroken(StandIn):
    """The engine that loads first raises at everything, as one whose GPU has failed."""

    def __init__(self, settings: LLMSettings, model: Path, on_gpu: bool) -> None:
        super().__init__(settings, model, on_gpu)
        try:
            (model / "broken").touch(exist_ok=False)
            self._broken = True
        except FileExistsError:
            self._broken = False

    def obey(self, instruction: str, seed: int) -> None:
        if self._broken:
            while len(diary(self._folder, "loaded")) < 2:  # alone it would be the only witness
                time.sleep(0.01)
            raise RuntimeError("an illegal memory access was encountered")


class FailsTogether(StandIn):
    """Cannot hold more than a few questions at once."""

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        if len(questions) > 5:
            raise MemoryError(f"{len(questions)} questions")
        return super().answer(questions, sampling)


class Hangs(StandIn):
    """Loads for ever where its folder has a file of that name."""

    def __init__(self, settings: LLMSettings, model: Path, on_gpu: bool) -> None:
        super().__init__(settings, model, on_gpu)
        while (model / "load for ever").exists():
            time.sleep(0.1)


class NamesItsNode(StandIn):
    """Tells where it runs, and on which GPUs."""

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        context = ray.get_runtime_context()
        where = f"{context.get_node_id()} {len(context.get_accelerator_ids()['GPU'])}"
        self.obey(questions[0].instruction, questions[0].seed)
        return [Answer(where, True, 1) for _ in questions]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(PATHS))  # workers import this file
        head = {"num_cpus": 3, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def _all_engines_are_gone_afterwards(cluster: Cluster) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 30
    while (table := placement_group_table()) and time.monotonic() < deadline:
        if all(group["state"] == "REMOVED" for group in table.values()):
            break
        time.sleep(0.1)
    assert all(group["state"] == "REMOVED" for group in table.values())
    while ray.available_resources().get("CPU") != ray.cluster_resources().get("CPU"):
        assert time.monotonic() < deadline, "an engine still holds its CPU"
        time.sleep(0.1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "diary").mkdir(parents=True)
    return folder


def diary(model: Path, what: str) -> list[list[int]]:
    """The seeds of each call, or the process of each engine loaded, in the order of time."""
    entries = [json.loads(file.read_text()) for file in sorted((model / "diary").glob("[!.]*"))]
    return [numbers for kind, numbers in entries if kind == what]


def shards(count: int, size: int, orders: dict[int, str] | None = None) -> list[Shard]:
    """`count` shards of `size`; `orders`: what single questions, by their seed, shall do."""
    orders = orders or {}
    asked = [
        Question(
            kind="specific",
            categories=(),
            words=(),
            instruction=orders.get(seed, "answer"),
            pattern=f"Things.\nThing {seed}:",
            shown=(),
            seed=seed,
        )
        for seed in range(count * size)
    ]
    return list(cut_shards([asked], size, {"model": "stand-in"}))


def pool(
    model: Path,
    ledger: Path,
    engines: int,
    engine: type = StandIn,
    gpus: int = 0,
    on: NodeSettings | None = None,
    timeout_minutes: float = 5,
) -> KnowledgePool:
    on = on or NodeSettings()
    settings = LLMSettings(model="stand-in", timeout_minutes=timeout_minutes, **on.model_dump())
    placement = Placement(engines, 1, gpus, on.pool, on.node_labels)
    return KnowledgePool(settings, SamplingSettings(), placement, model, Ledger(ledger), engine)


def together(seeds: list[int]) -> list[Answer]:
    """What engines answer when they are asked exactly these at once."""
    return [Answer(f"{seed} of {digest(seeds)[:16]}", True, 1) for seed in seeds]


def seeds_of(shard: Shard) -> list[int]:
    return [question.seed for question in shard.questions]


def assert_calm(ledger: Path, work: list[Shard]) -> None:
    """Every shard is there with the answers of an undisturbed run."""
    for shard in work:
        assert Ledger(ledger).has(shard)
        assert Ledger(ledger).read(shard) == together(seeds_of(shard))


def no_matter(*_: object) -> None: ...


@pytest.mark.parametrize("engines", [1, 2])
def test_a_question_that_kills_is_found_and_named(
    model: Path, tmp_path: Path, engines: int
) -> None:
    work = shards(4, 12, {5: "die"})
    with pool(model, tmp_path / "ledger", engines) as running:
        running.answer(work, no_matter)
    answerable = [seed for seed in range(12) if seed != 5]
    answers = Ledger(tmp_path / "ledger").read(work[0])
    assert answers[5] == Answer("", False, 0, failure="the engine died of it")
    assert [answers[seed] for seed in answerable] == together(answerable), "one call without probes"
    assert_calm(tmp_path / "ledger", work[1:])
    # Of the others each was asked whole and no more than once: none was suspected.
    others = [seeds for seeds in diary(model, "asked") if seeds[0] >= 12]
    assert sorted(others) == [seeds_of(shard) for shard in work[1:]]
    assert diary(model, "asked").count([5]) == 2, "a question must fail twice"

    before = len(diary(model, "asked"))
    with pool(model, tmp_path / "ledger", engines) as running:
        running.answer(work, no_matter)
    assert len(diary(model, "asked")) == before, "a failed question is not asked again"


def test_questions_that_raise_are_found_and_named(model: Path, tmp_path: Path) -> None:
    failing = (0, 17, 18, 59)
    work = shards(3, 40, dict.fromkeys(failing, "raise"))
    alone = list(cut_shards([[work[0].questions[17]]], 1, {}))
    with pool(model, tmp_path / "ledger", 2) as running:
        running.answer(work + alone, no_matter)
    for shard in work:
        answerable = [seed for seed in seeds_of(shard) if seed not in failing]
        named = {
            seed: Answer("", False, 0, failure=f"ValueError: question {seed} is too long")
            for seed in failing
        }
        expected = named | dict(zip(answerable, together(answerable), strict=True))
        answers = Ledger(tmp_path / "ledger").read(shard)
        assert answers == [expected[seed] for seed in seeds_of(shard)]
    assert Ledger(tmp_path / "ledger").read(alone[0]) == [named[17]]
    # One engine may have done it all before the second had loaded.
    assert len(diary(model, "loaded")) <= 2, "an engine that raises need not load again"


def test_a_single_death_is_not_blamed_on_a_question(model: Path, tmp_path: Path) -> None:
    work = shards(6, 5, {7: "die once", 16: "die once", 22: "die once"})
    with pool(model, tmp_path / "ledger", 2) as running:
        running.answer(work, no_matter)
    assert_calm(tmp_path / "ledger", work)
    assert all(len(seeds) == 5 for seeds in diary(model, "asked")), "no shard was bisected"


def test_an_engine_that_always_raises_ends_the_run_soon(model: Path, tmp_path: Path) -> None:
    work = shards(3, 200, dict.fromkeys(range(600), "raise"))
    with (
        pool(model, tmp_path / "ledger", 1) as running,
        pytest.raises(RuntimeError, match=r"^knowledge: ValueError: question \d+ is too") as raised,
    ):
        running.answer(work, no_matter)
    assert isinstance(raised.value.__cause__, ValueError)
    assert len(diary(model, "asked")) <= 12
    assert not list((tmp_path).rglob("*.parquet"))


def test_engines_that_always_die_end_the_run_soon(model: Path, tmp_path: Path) -> None:
    work = shards(3, 200, dict.fromkeys(range(600), "die"))
    with (
        pool(model, tmp_path / "ledger", 1) as running,
        pytest.raises(RuntimeError, match=r"^knowledge: The actor is dead .*engine is broken"),
    ):
        running.answer(work, no_matter)
    assert len(diary(model, "loaded")) <= 6
    assert not list((tmp_path).rglob("*.parquet"))


def test_more_than_a_few_failing_questions_mean_a_broken_engine(
    model: Path, tmp_path: Path
) -> None:
    work = shards(1, 20, dict.fromkeys((1, 2, 3, 8), "raise"))
    with (
        pool(model, tmp_path / "ledger", 1) as running,
        pytest.raises(RuntimeError, match=r"^knowledge: ValueError: question 1 .*4 questions"),
    ):
        running.answer(work, no_matter)
    assert not list((tmp_path).rglob("*.parquet"))


def test_a_shard_that_only_fails_whole_ends_the_run(model: Path, tmp_path: Path) -> None:
    with (
        pool(model, tmp_path / "ledger", 1, FailsTogether) as running,
        pytest.raises(RuntimeError, match=r"^knowledge: MemoryError: 8 questions .*whole"),
    ):
        running.answer(shards(1, 8), no_matter)


def test_one_broken_engine_among_others_costs_no_answer(model: Path, tmp_path: Path) -> None:
    work = shards(8, 10)
    with pool(model, tmp_path / "ledger", 2, FirstIsBroken) as running:
        running.answer(work, no_matter)
    assert_calm(tmp_path / "ledger", work)


def test_without_a_replacement_the_others_go_on(model: Path, tmp_path: Path) -> None:
    work = shards(8, 5, {0: "wait", 5: "wait"})  # the first two: one for each engine
    alive: list[int] = []

    def on_shard(shard: Shard, answers: list[Answer], fresh: bool, engines_alive: int) -> None:
        alive.append(engines_alive)

    def spoil() -> None:
        while len([s for s in diary(model, "asked") if s[0] in (0, 5)]) < 2:
            time.sleep(0.01)
        (model / "no more engines").touch()
        os.kill(diary(model, "loaded")[0][0], signal.SIGKILL)
        (model / "go on").touch()

    spoiler = threading.Thread(target=spoil, daemon=True)
    spoiler.start()
    with pool(model, tmp_path / "ledger", 2) as running:
        running.answer(work, on_shard)
        assert_calm(tmp_path / "ledger", work)
        assert alive[-1] == 1
        # The last one dies, too, and none can come.
        more = shards(9, 5, {41: "die"})
        with pytest.raises(RuntimeError, match="cannot be loaded, vLLM says: no room"):
            running.answer(more, on_shard)
    spoiler.join(timeout=10)


def test_no_more_engines_start_than_are_needed(model: Path, tmp_path: Path) -> None:
    work = shards(5, 4)
    Ledger(tmp_path / "ledger").write(work[0], together(seeds_of(work[0])))
    calls: list[tuple[str, bool]] = []

    def on_shard(shard: Shard, answers: list[Answer], fresh: bool, engines_alive: int) -> None:
        calls.append((shard.key, fresh))

    with pool(model, tmp_path / "ledger", 3) as running:
        running.answer(work[:1], on_shard)
        assert diary(model, "loaded") == []
        running.answer(work[:2], on_shard)
        assert len(diary(model, "loaded")) == 1
        running.answer(work, on_shard)
    assert calls[:3] == [(work[0].key, False), (work[0].key, False), (work[1].key, True)]
    assert_calm(tmp_path / "ledger", work)


def test_shards_are_taken_as_they_are_needed(model: Path, tmp_path: Path) -> None:
    taken = published = 0
    most = 0

    def source() -> Iterator[Shard]:
        nonlocal taken, most
        for shard in shards(60, 2):
            taken += 1
            most = max(most, taken - published)
            yield shard

    def on_shard(*_: object) -> None:
        nonlocal published
        published += 1

    with pool(model, tmp_path / "ledger", 2) as running:
        running.answer(source(), on_shard)
    assert published == 60
    assert most <= 2 * 2 + 2 + 1, "two in flight for each engine, and as many ahead as engines"


def test_nobody_waits_behind_a_busy_engine_at_the_end(model: Path, tmp_path: Path) -> None:
    work = shards(3, 2, {0: "wait"})
    published = 0

    def on_shard(*_: object) -> None:
        nonlocal published
        published += 1
        if published == 2:  # never, were one of them queued behind the first
            (model / "go on").touch()

    with pool(model, tmp_path / "ledger", 2) as running:
        running.answer(work, on_shard)
    assert_calm(tmp_path / "ledger", work)


def test_a_damaged_shard_is_asked_again(model: Path, tmp_path: Path) -> None:
    work = shards(3, 4)
    with pool(model, tmp_path / "ledger", 1) as running:
        running.answer(work, no_matter)
        file = next((tmp_path / "ledger").rglob(f"{work[1].key}/answers.parquet"))
        file.write_bytes(file.read_bytes()[:-20])
        running.answer(work, no_matter)
    assert_calm(tmp_path / "ledger", work)
    expected = [seeds_of(shard) for shard in (*work, work[1])]
    assert diary(model, "asked") == expected


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(disk)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs is refused: {mounted.stderr.decode().strip()}")
    try:
        work = shards(12, 4)
        with (
            pool(model, disk / "ledger", 1) as running,
            pytest.raises(OSError, match=f"No space left on device: '{disk}"),
        ):
            running.answer(work, no_matter)
        there = [shard for shard in work if Ledger(disk / "ledger").has(shard)]
        assert 0 < len(there) < len(work)
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        with pool(model, disk / "ledger", 1) as running:
            running.answer(work, no_matter)
        assert_calm(disk / "ledger", work)
        asked = diary(model, "asked")
        assert all(asked.count(seeds_of(shard)) == 1 for shard in there)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import ray
from test_knowledge_faults import no_matter, pool, shards
ray.init(address={address!r}, log_to_driver=False)
with pool(Path({model!r}), Path({ledger!r}), 2) as running:
    running.answer(shards(20, 3, dict.fromkeys(range(60), "rest")), no_matter)
"""


def test_a_killed_driver_goes_on_where_it_was(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    script = DRIVER.format(
        paths=PATHS,
        address=cluster.address,
        model=str(model),
        ledger=str(tmp_path / "ledger"),
    )
    work, ledger = shards(20, 3, dict.fromkeys(range(60), "rest")), Ledger(tmp_path / "ledger")
    driver = subprocess.Popen([sys.executable, "-c", script])
    # Published ones: a shard that is being written has a manifest too, in its staging folder.
    while sum(map(ledger.has, work)) < 3:
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    there = [shard for shard in work if ledger.has(shard)]
    assert 3 <= len(there) < 20
    before = len(diary(model, "asked"))
    with pool(model, tmp_path / "ledger", 2) as running:
        running.answer(work, no_matter)
    assert_calm(tmp_path / "ledger", work)
    again = diary(model, "asked")[before:]
    assert not [shard for shard in there if seeds_of(shard) in again]
    assert not list((tmp_path / "ledger").rglob("*.tmp*"))


def test_nodes_go_and_come(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    work = shards(16, 3, dict.fromkeys(range(48), "rest"))
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    ready: list[int] = []

    def on_shard(shard: Shard, answers: list[Answer], fresh: bool, engines_alive: int) -> None:
        ready.append(engines_alive)
        if len(ready) == 5:
            # Its replacement has no node, and the other engine does the work.
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            while len([node for node in ray.nodes() if node["Alive"]]) > 2:
                time.sleep(0.1)  # a busy machine notices late
        if len(ready) == 10:
            # No engine is left, until a node comes.
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1, num_gpus=1))

    with pool(model, tmp_path / "ledger", 2, gpus=1) as running:
        running.answer(work, on_shard)
    assert_calm(tmp_path / "ledger", work)
    assert len(ready) == 16
    assert 1 in ready[5:10], "the replacement had no node to load on"
    cluster.remove_node(nodes.pop())


def test_tensor_parallel_engines_have_a_node_each(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(num_cpus=2, num_gpus=2) for _ in range(2)]
    work = shards(2, 2, {0: "wait"})

    def on_shard(*_: object) -> None:
        (model / "go on").touch()  # so the other engine has answered meanwhile

    with pool(model, tmp_path / "ledger", 2, NamesItsNode, gpus=2) as running:
        running.answer(work, on_shard)
        groups = list(placement_group_table().values())
        assert [group["bundles"] for group in groups] == [{0: {"CPU": 1.0, "GPU": 2.0}}] * 2
    where = {Ledger(tmp_path / "ledger").read(shard)[0].text for shard in work}
    assert where == {f"{node.node_id} 2" for node in nodes}
    for node in nodes:
        cluster.remove_node(node)


@pytest.mark.parametrize("gpus", [0, 2])
@pytest.mark.parametrize(
    "chosen",
    [
        NodeSettings(pool="engines"),
        NodeSettings(
            pool="accelerator_type:L4",
            node_labels={"ray.io/accelerator-type": "in(L4, H100)", "tier": "!spot"},
        ),
    ],
)
def test_engines_are_on_the_nodes_that_a_config_chooses_only(
    cluster: Cluster, model: Path, tmp_path: Path, gpus: int, chosen: NodeSettings
) -> None:
    size = {"num_cpus": 2, "num_gpus": 2 * gpus}
    spot = cluster.add_node(**size, labels={"ray.io/accelerator-type": "H100", "tier": "spot"})
    nodes = [
        spot,
        cluster.add_node(
            **size,
            labels={"ray.io/accelerator-type": "L4"},
            resources={"engines": 1, "accelerator_type:L4": 1},
        ),
    ]
    work = shards(2, 2, {0: "wait"})

    def on_shard(*_: object) -> None:
        (model / "go on").touch()  # so the other engine has answered meanwhile

    with pool(model, tmp_path / "ledger", 2, NamesItsNode, gpus, on=chosen) as running:
        running.answer(work, on_shard)
    where = {Ledger(tmp_path / "ledger").read(shard)[0].text for shard in work}
    assert where == {f"{nodes[1].node_id} {gpus}"}
    for node in nodes:
        cluster.remove_node(node)


def test_an_engine_that_hangs_while_others_answer_is_replaced(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Enough for one engine until the new one has loaded, also on a busy machine.
    work = shards(60, 2, {1: "hang once", **dict.fromkeys(range(2, 120), "rest")})
    with pool(model, tmp_path / "ledger", 2, timeout_minutes=0.1) as running:
        running.answer(work, no_matter)
    assert_calm(tmp_path / "ledger", work)
    assert re.search("an engine has worked on one shard for [0-9]+ s and is replaced", caplog.text)
    assert len(diary(model, "loaded")) >= 3


@pytest.mark.parametrize(
    ("hanging", "words"),
    [
        ("placing", r"1 not placed \(each needs 1 CPU, 0\.001 nowhere of one node, but the nodes"),
        ("loading", r"1 loading$"),
        ("answering", r"1 answering$"),
    ],
)
def test_what_hangs_is_said_and_given_up_and_what_was_answered_stays(
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    hanging: str,
    words: str,
) -> None:
    monkeypatch.setattr(waiting, "_SECONDS_BETWEEN_REPORTS", 1)
    first, second = shards(2, 3, {5: "wait"} if hanging == "answering" else {})
    with pool(model, tmp_path / "ledger", 1) as running:
        running.answer([first], no_matter)
    if hanging == "loading":
        (model / "load for ever").touch()
    on = NodeSettings(pool="nowhere" if hanging == "placing" else None, wait_minutes=0.1)
    hung = pool(model, tmp_path / "ledger", 1, Hangs, on=on, timeout_minutes=0.1)
    with hung, pytest.raises(DescribedFailure, match=f"^gave up after 0 minutes: engines: {words}"):
        hung.answer([first, second], no_matter)
    assert re.search(words, caplog.messages[-1])
    assert caplog.messages[-1].startswith("waiting for ")
    assert_calm(tmp_path / "ledger", [first])
