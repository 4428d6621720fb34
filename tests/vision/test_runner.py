"""Running the frozen network: every fast path gives the plain one's features, whatever the batch."""

from __future__ import annotations

import itertools
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import run_python
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import efficientnet
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenfusion.utils.errors import UserError
from frozenfusion.vision import runner as runner_module
from frozenfusion.vision import runtime
from frozenfusion.vision.engines import exact_products
from frozenfusion.vision.folding import FoldedEfficientNet
from frozenfusion.vision.pixels import IMAGENET_MEAN as MEAN
from frozenfusion.vision.random_weights import calibrate_batchnorm
from frozenfusion.vision.registry import IMAGENET_STD as STD
from frozenfusion.vision.runner import Runner

SIZE, BATCH = 32, 4


@pytest.fixture(scope="module")
def network():
    """The first layers of B0, both kinds of block and of padding among them."""
    torch.manual_seed(0)
    blocks, parameters = efficientnet(1.0, 1.0, image_size=224, include_top=False)
    network = EfficientNet(blocks[:3], parameters).eval()
    calibrate_batchnorm(network, SIZE)
    return network


@pytest.fixture
def folded(network):
    return FoldedEfficientNet(network, "avg")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (11, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(network, pictures):
    """The reference's way."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    normalised = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        return network.extract_features(normalised).mean((2, 3)).numpy()


def runner_of(network, **changes):
    return Runner(network, SIZE, **({"device": "cpu", "runtime": "eager", "batch_size": BATCH} | changes))


@pytest.fixture(scope="module")
def runners(network):
    """Runners by their batch size."""
    return {size: runner_of(FoldedEfficientNet(network, "avg"), batch_size=size) for size in (1, 2, 4, 8)}


def largest_difference(features, expected):
    return np.abs(features - expected).max() / np.abs(expected).max()


def test_folding_changes_features_by_rounding_alone(folded, pictures, expected):
    assert largest_difference(runner_of(folded).start(pictures).result(), expected) < 2e-6


def test_folding_leaves_the_network_given_as_it_is(network, pictures):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    runner_of(FoldedEfficientNet(network, "none"), precision="bf16").start(pictures).result()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@settings(max_examples=30)
@given(size=st.sampled_from([1, 2, 4, 8]), order=st.lists(st.integers(0, 10), min_size=1, max_size=11))
def test_a_row_is_the_same_in_any_company_and_at_any_place(runners, pictures, size, order):
    together = runners[size].start(pictures).result()
    assert np.array_equal(runners[size].start(pictures[order]).result(), together[order])


@settings(max_examples=20)
@given(size=st.integers(1, 12), order=st.permutations(range(11)))
def test_at_any_batch_size_a_row_depends_on_others_by_rounding_alone(network, pictures, expected, size, order):
    runner = runner_of(FoldedEfficientNet(network, "avg"), batch_size=size)
    assert largest_difference(runner.start(pictures[order]).result(), expected[order]) < 1e-5


def test_results_outlive_the_batches_that_follow(folded, pictures):
    runner = runner_of(folded)
    first, second = runner.start(pictures[:4]), runner.start(pictures[4:8])
    together = runner.start(pictures[:8]).result()
    assert np.array_equal(np.concatenate([first.result(), second.result()]), together)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_features_are_the_same(folded, pictures, expected):
    runner = runner_of(folded, runtime="compile")
    features = runner.start(pictures).result()
    assert largest_difference(features, expected) < 1e-5
    assert np.array_equal(runner.start(pictures[6:9]).result(), features[6:9])


def test_openvino_features_are_the_same(network, pictures, expected):
    pytest.importorskip("openvino")
    for pool in ("avg", "none"):
        runner = runner_of(FoldedEfficientNet(network, pool), runtime="openvino")
        features = runner.start(pictures).result()
        assert np.array_equal(runner.start(pictures[6:9]).result(), features[6:9])
        pooled = features if pool == "avg" else features.mean(1)
        assert largest_difference(pooled, expected) < 1e-5


def test_openvinos_requests_are_used_again_and_results_come_in_any_order(folded, pictures):
    pytest.importorskip("openvino")
    runner = runner_of(folded, runtime="openvino", batch_size=2)
    assert runner.in_flight == 2
    runner.start(pictures[:2]).result()
    many = np.tile(pictures, (3 * len(runner._engine._requests), 1, 1, 1))
    pending = [runner.start(many[first : first + 2]) for first in range(0, len(many), 2)]
    features = np.concatenate([each.result() for each in reversed(pending)][::-1])
    assert np.array_equal(features, np.tile(features[:11], (3 * len(runner._engine._requests), 1)))


def test_a_runtime_that_fails_only_when_waited_for_says_what_works(folded, pictures, monkeypatch):
    def broken():
        raise RuntimeError("driver broke")

    monkeypatch.setattr(runner_module, "OpenVINOEngine", lambda *_: lambda images: broken)
    with pytest.raises(UserError, match=r"`runtime=openvino` failed \(driver broke\): use `runtime=eager`"):
        runner_of(folded, runtime="openvino").start(pictures)


def test_reversed_pictures_are_taken_too(folded, pictures):
    runner = runner_of(folded)
    assert np.array_equal(runner.start(pictures[::-1]).result(), runner.start(pictures[::-1].copy()).result())


def test_a_runtime_that_is_not_installed_says_how_to_get_it(folded, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="pip install openvino"):
        runner_of(folded, runtime="openvino").start(pictures)


def test_a_runtime_that_fails_says_what_works(folded, pictures, monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler\nlong story")

    monkeypatch.setattr(runner_module, "compiled_engine", broken)
    with pytest.raises(UserError, match=r"`runtime=compile` failed \(no compiler\): use `runtime=eager`"):
        runner_of(folded, runtime="compile").start(pictures)


def tf32():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def set_tf32(convolutions, products):
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


@pytest.fixture
def tf32_as_before():
    before = tf32()
    yield
    set_tf32(*before)


@pytest.mark.usefixtures("tf32_as_before")
def test_tf32_is_off_while_a_network_runs_on_a_gpu_and_as_it_was_afterwards():
    for before in ((True, True), (True, False), (False, True)):
        set_tf32(*before)
        with exact_products(torch.device("cuda")):
            assert tf32() == (False, False)
        assert tf32() == before
        with exact_products(torch.device("cpu")):
            assert tf32() == before


def test_whoever_chose_tf32_by_torch_s_newer_switches_keeps_that_choice():
    code = (
        "import torch; from frozenfusion.vision.engines import exact_products\n"
        "torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = 'tf32'\n"
        "with exact_products(torch.device('cuda')):\n"
        "    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == 'ieee'\n"
        "assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == 'tf32'\n"
    )
    run_python(code)


# --- low precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_close_and_says_how_close(folded, pictures, expected, precision, caplog):
    caplog.set_level("INFO", "frozenfusion")
    features = runner_of(folded, precision=precision).start(pictures).result()
    assert features.dtype == np.float32
    cosines = (features * expected).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999
    assert not np.array_equal(features, expected)
    assert caplog.text.count(f"{precision} agrees with float32: cosine at least") == 1


def test_low_precision_that_is_too_far_off_is_an_error(folded, pictures, monkeypatch):
    monkeypatch.setattr(runner_module, "LEAST_COSINE", 1.1)
    with pytest.raises(UserError, match="use `precision=float32`"):
        runner_of(folded, precision="bf16").start(pictures)


# --- memory


class Cramped(FoldedEfficientNet):
    """A network whose memory holds `room` images at a time."""

    def __init__(self, network, room, error):
        super().__init__(network, "avg")
        self.room, self.error, self.seen = room, error, []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.room:
            raise self.error
        return super().forward(images)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_batches_are_halved_when_memory_runs_out(network, pictures, expected, error, caplog):
    cramped = Cramped(network, room=1, error=error)
    runner = runner_of(cramped)
    features = runner.start(pictures).result()
    assert largest_difference(features, expected) < 2e-6
    assert runner.batch_size == 1
    assert cramped.seen == [4, 2, *[1] * 11]
    assert "batches of 2" in caplog.text
    runner.start(pictures[:2])
    assert cramped.seen[13:] == [1, 1]  # and stay small


def test_no_room_for_a_single_image_is_an_error(network, pictures):
    with pytest.raises(UserError, match="single image"):
        runner_of(Cramped(network, room=0, error=ERRORS[0])).start(pictures)


def test_other_errors_are_not_taken_for_a_lack_of_memory(network, pictures):
    with pytest.raises(RuntimeError, match="kernel"):
        runner_of(Cramped(network, room=0, error=RuntimeError("kernel"))).start(pictures)


# --- auto


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a second each time it is read: every batch takes one."""
    ticks = itertools.count()
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: float(next(ticks)))
    return ticks


@pytest.fixture
def pays_at_once(monkeypatch, clock):
    """As if preparing a runtime took no time, and only compiling were possible."""
    monkeypatch.setattr(runtime, "PREPARATION", {"openvino": 0.0, "compile": 0.0})
    monkeypatch.setattr(runtime, "is_available", lambda name, device: name == "compile")


def test_auto_stays_with_eager_for_few_images(folded, pictures, monkeypatch):
    monkeypatch.setattr(runner_module, "compiled_engine", lambda *_: pytest.fail("compiled for eleven images"))
    runner = runner_of(folded, runtime="auto", images_left=11)
    runner.start(pictures)
    assert runner.runtime == "eager"


def slower(engine, clock):
    """An engine that takes a second more, by the clock of the test."""

    def run(images):
        next(clock)
        return engine(images)

    return run


@pytest.mark.usefixtures("pays_at_once")
def test_auto_changes_to_what_is_measured_to_be_faster(folded, pictures, expected, monkeypatch, clock):
    fast = runner_of(folded)._engine_of("eager")
    monkeypatch.setattr(runner_module, "compiled_engine", lambda *_: fast)
    runner = runner_of(folded, runtime="auto", images_left=10**6)
    runner._engine = slower(fast, clock)
    features = runner.start(pictures).result()
    assert runner.runtime == "compile"
    assert largest_difference(features, expected) < 2e-6


@pytest.mark.usefixtures("pays_at_once")
def test_auto_stays_with_eager_where_that_is_faster(folded, pictures, monkeypatch, clock):
    fast = runner_of(folded)._engine_of("eager")
    monkeypatch.setattr(runner_module, "compiled_engine", lambda *_: slower(fast, clock))
    runner = runner_of(folded, runtime="auto", images_left=10**6)
    runner.start(pictures)
    assert runner.runtime == "eager"


@pytest.mark.usefixtures("pays_at_once")
def test_auto_goes_on_with_eager_where_compiling_fails(folded, pictures, expected, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(runner_module, "compiled_engine", broken)
    runner = runner_of(folded, runtime="auto", images_left=10**6)
    assert largest_difference(runner.start(pictures).result(), expected) < 2e-6
    assert "compile failed (no compiler): eager continues" in caplog.text
