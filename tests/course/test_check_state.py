"""What an answer changes outside itself is put back: patches, settings, random numbers."""

import builtins
import gc
import json
import math
import os
import random
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from doubling import TASK

from minilora.course import check
from minilora.course.check import judge
from minilora.lora import layer as lora_layer

pytestmark = pytest.mark.usefixtures("short")

DOT, MATMUL, ADD, FORWARD = np.dot, torch.matmul, torch.Tensor.add, torch.nn.Linear.forward
OURS = lora_layer.LoRALinear.forward


def _draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


PATCHES = {
    "numpy": (lambda: setattr(np, "dot", None), lambda: np.dot is DOT),
    "torch": (lambda: setattr(torch, "matmul", max), lambda: torch.matmul is MATMUL),
    "a method": (
        lambda: setattr(torch.Tensor, "add", None),
        lambda: torch.Tensor.add is ADD,
    ),
    "an operator": (
        lambda: setattr(torch.Tensor, "__matmul__", lambda a, b: a),
        lambda: torch.equal(torch.eye(2) @ torch.ones(2, 2), torch.ones(2, 2)),
    ),
    "a layer": (
        lambda: setattr(torch.nn.Linear, "forward", None),
        lambda: torch.nn.Linear.forward is FORWARD,
    ),
    "a module's own layer": (
        lambda: setattr(torch.nn.modules.linear, "Linear", None),
        lambda: torch.nn.modules.linear.Linear is torch.nn.Linear,
    ),
    "an optimizer": (
        lambda: setattr(torch.optim.AdamW, "step", None),
        lambda: callable(torch.optim.AdamW.step),
    ),
    "ours": (
        lambda: setattr(lora_layer.LoRALinear, "forward", None),
        lambda: lora_layer.LoRALinear.forward is OURS,
    ),
    "a builtin": (lambda: setattr(builtins, "len", lambda x: 7), lambda: len([]) == 0),
    "a builtin gone": (lambda: delattr(builtins, "sum"), lambda: sum([1]) == 1),
    "a builtin hidden": (
        lambda: setattr(check, "zip", lambda *a: []),
        lambda: not hasattr(check, "zip"),
    ),
    "a constant": (lambda: setattr(math, "pi", 3), lambda: math.pi > 3.1),
    "the check": (
        lambda: setattr(check, "difference", lambda *a: ""),
        lambda: check.difference(1, 2) != "",
    ),
    "default type": (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.get_default_dtype() == torch.float32,
    ),
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "default device": (
        lambda: torch.set_default_device("meta"),
        lambda: torch.zeros(1).device.type == "cpu",
    ),
    "numpy's form": (
        lambda: np.set_printoptions(precision=2),
        lambda: np.get_printoptions()["precision"] == 8,
    ),
    "numpy's errors": (lambda: np.seterr(all="raise"), lambda: np.geterr()["over"] == "warn"),
    "torch's form": (
        lambda: torch.set_printoptions(precision=2),
        lambda: str(torch.tensor(1 / 3)) == "tensor(0.3333)",
    ),
    "folder": (lambda: os.chdir("/"), lambda: os.getcwd() == HERE),
    "environment": (
        lambda: os.environ.update(MINILORA_ODD="1"),
        lambda: "MINILORA_ODD" not in os.environ,
    ),
    "environment gone": (lambda: os.environ.pop("PATH"), lambda: "PATH" in os.environ),
    "recursion": (lambda: sys.setrecursionlimit(300), lambda: sys.getrecursionlimit() == LIMIT),
    "path": (lambda: sys.path.clear(), lambda: len(sys.path) > 1),
    "a module": (lambda: sys.modules.pop("json"), lambda: sys.modules.get("json") is json),
    "garbage": (gc.disable, gc.isenabled),
    "the clock": (lambda: setattr(time, "sleep", None), lambda: time.sleep(0) is None),
}
HERE, LIMIT = os.getcwd(), sys.getrecursionlimit()


@pytest.mark.parametrize("ending", ["returns", "raises"])
@pytest.mark.parametrize("name", PATCHES)
def test_what_an_answer_patched_is_put_back(name, ending):
    patch, intact = PATCHES[name]
    assert intact()

    def answer(x):
        patch()
        if ending == "raises":
            raise ValueError("on purpose")
        return x + x

    verdict = judge(TASK, answer)
    assert verdict.state == ("done" if ending == "returns" else "wrong")
    assert intact()


def test_patches_of_one_case_are_gone_in_the_next():
    def answer(x):
        assert math.pi > 3.1
        math.pi = 3
        return 2 * x

    assert judge(TASK, answer).state == "done"


def test_a_check_cannot_be_talked_into_right():
    def cheat(x):
        check.difference = lambda *a: ""
        check._look = lambda *a: check.Verdict("99-double", "done", "right")
        np.abs = np.isfinite = lambda *a: np.zeros(1)
        return x

    assert judge(TASK, cheat).state == "wrong"


def test_random_numbers_go_on_as_if_nothing_had_been():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    wanted = _draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)

    def answer(x):
        _draws()
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        return 2 * x

    assert judge(TASK, answer).state == "done"
    assert _draws() == wanted


def test_warnings_are_filtered_as_before():
    def answer(x):
        warnings.simplefilter("error")
        warnings.showwarning = None
        return 2 * x

    before, shown = list(warnings.filters), warnings.showwarning
    assert judge(TASK, answer).state == "done"
    assert list(warnings.filters) == before and warnings.showwarning is shown


def test_what_a_notebook_defines_stays_its_own():
    """A function of the learner may count its calls."""
    seen = []

    def answer(x):
        seen.append(1)
        globals()["COUNT"] = len(seen)
        return 2 * x

    assert judge(TASK, answer).state == "done" and COUNT == 3  # noqa: F821


def test_what_is_new_in_a_module_stays():
    """A library that is loaded while an answer runs is not torn apart."""

    def answer(x):
        torch.something_new = 1
        return 2 * x

    judge(TASK, answer)
    assert torch.something_new == 1
    del torch.something_new
