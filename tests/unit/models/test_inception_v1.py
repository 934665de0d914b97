"""Inception-v1 against table 1 of https://arxiv.org/abs/1409.4842. On torch's meta device, without arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mizzle.models import InceptionOutput, InceptionV1, inception_loss

# The column "params" of the table, in units of 1024, and the weights that the widths in the same row make. The paper's
# own numbers differ by up to 8 % from what its widths make; the widths are the network.
TABLE = {
    "inception_3a": (159, 163_328),
    "inception_3b": (380, 388_096),
    "inception_4a": (364, 375_552),
    "inception_4b": (437, 448_512),
    "inception_4c": (463, 509_440),
    "inception_4d": (580, 604_672),
    "inception_4e": (840, 867_328),
    "inception_5a": (1072, 1_042_432),
    "inception_5b": (1388, 1_442_816),
    "classifier": (1000, 1_024_000),
}
# The column "output size": side and channels.
SIZES = {
    "inception_3a": (28, 256), "inception_3b": (28, 480), "inception_4a": (14, 512), "inception_4b": (14, 512),
    "inception_4c": (14, 512), "inception_4d": (14, 528), "inception_4e": (14, 832), "inception_5a": (7, 832),
    "inception_5b": (7, 1024),
}  # fmt: skip


def on_meta(num_classes: int = 1000, *, aux_heads: bool = True) -> InceptionV1:
    with torch.device("meta"):
        return InceptionV1(num_classes, aux_heads=aux_heads)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def weights(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize(("name", "published", "exact"), [(name, *both) for name, both in TABLE.items()])
def test_every_module_has_the_weights_that_its_row_of_the_table_makes(name: str, published: int, exact: int) -> None:
    found = weights(on_meta().get_submodule(name))
    assert found == exact
    assert found / 1024 == pytest.approx(published, rel=0.08)


def test_the_stem_has_the_weights_of_its_rows() -> None:
    first, reduce, second = (weights(layer) for layer in on_meta().stem if isinstance(layer, nn.Conv2d))
    assert first == 7 * 7 * 3 * 64  # the paper says 2.7K, which no convolution of 7x7 from 3 to 64 channels has
    assert (reduce + second) / 1024 == 112


def test_there_are_seven_million_parameters_and_thirteen_with_the_heads() -> None:
    assert count(on_meta(aux_heads=False)) == 6_998_552
    assert count(on_meta()) == 13_378_280


def test_every_module_puts_out_the_size_of_its_row() -> None:
    model, found = on_meta(), {}
    for name in SIZES:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update({name: output.shape})
        )
    model(torch.empty(2, 3, 224, 224, device="meta"))
    assert found == {name: (2, channels, side, side) for name, (side, channels) in SIZES.items()}


def test_the_heads_answer_in_training_mode_only() -> None:
    model, pictures = on_meta(7), torch.empty(2, 3, 224, 224, device="meta")
    trained = model.train()(pictures)
    assert isinstance(trained, InceptionOutput)
    assert [logits.shape for logits in trained] == [(2, 7)] * 3
    assert model.eval()(pictures).shape == (2, 7)
    assert on_meta(7, aux_heads=False).train()(pictures).shape == (2, 7)


def test_the_loss_adds_three_tenths_of_each_heads() -> None:
    torch.manual_seed(0)
    targets = torch.tensor([1, 0, 3])
    logits = [torch.randn(3, 5) for _ in range(3)]
    main, first, second = (nn.functional.cross_entropy(one, targets) for one in logits)
    assert torch.isclose(inception_loss(InceptionOutput(*logits), targets), main + 0.3 * first + 0.3 * second)
    assert torch.equal(inception_loss(logits[0], targets), main)


def test_every_parameter_gets_a_gradient_of_a_sound_size() -> None:
    torch.manual_seed(0)
    model = InceptionV1(10)
    inception_loss(model(torch.randn(1, 3, 224, 224)), torch.tensor([3])).backward()  # type: ignore[no-untyped-call]
    largest = [float(p.grad.abs().max()) if p.grad is not None else 0.0 for p in model.parameters()]
    assert min(largest) > 1e-6
    assert max(largest) < 100
