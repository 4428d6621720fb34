"""The contract that the two stages are the model of the reference, on a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.equivalence import compare, make_encoder, make_setting
from frozenfusion.vision.backbone import build_backbone

SMALL = {
    "vocab_size": 400,
    "embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module", params=[0.5, 0.0], ids=["dropout", "no dropout"])
def figures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    backbone = build_backbone("efficientnet-b0", "random", image_size=64)
    encoder: Path = make_encoder(tmp_path_factory.mktemp("encoder"), **SMALL)
    setting = make_setting(backbone, encoder, 12, max_length=48, batch_size=4, image_dropout=request.param)
    return compare(setting, epochs=3)


def test_two_stages_give_the_logits_of_the_end_to_end_network(figures: dict[str, Any]) -> None:
    assert figures["largest_logit"] > 0.1  # or the comparison would say nothing
    assert figures["two stages"]["logits_before"] < 1e-4


def test_two_stages_train_the_parameters_of_the_end_to_end_network(figures: dict[str, Any]) -> None:
    assert figures["parameters_moved"] > 5e-4  # nine steps of at most 1e-4
    assert figures["two stages"]["parameters"] < 1e-5
    assert figures["two stages"]["parameters_apart"] == 0
    assert figures["two stages"]["logits_after"] < 1e-4
