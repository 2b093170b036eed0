"""torch.fx sees our layers as single nodes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from favorcast.kernels import FavorAttention, MovingAverage, SeriesDecomposition


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.parts, self.average = FavorAttention(16, 4), SeriesDecomposition(5), MovingAverage(3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        output, weights = self.attention(x, x, x, key_padding_mask=padding, need_weights=True)
        seasonal, trend = self.parts(output)
        return seasonal * trend + self.average(x) + weights.sum()


def test_layers_are_leaves_of_a_traced_model():
    model, x, padding = Model(), torch.randn(6, 2, 16), torch.arange(6) >= torch.tensor([[6], [4]])
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["attention", "parts", "average"]
    assert torch.equal(traced(x, padding), model(x, padding))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_containers_of_pytorch_are_leaves_as_they_were():
    layer = nn.TransformerEncoderLayer(16, 4)
    layer.self_attn = FavorAttention(16, 4)  # pyright: ignore[reportAttributeAccessIssue]
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["0"]
