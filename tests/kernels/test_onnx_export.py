"""Exported to ONNX and run by onnxruntime, layers compute what they do in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from favorcast.kernels import FavorAttention, MovingAverage, SeriesDecomposition

pytest.importorskip("onnxscript", reason='pip install "favorcast[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "favorcast[onnx]"')


class Attention(nn.Module):
    def __init__(self, call: dict[str, Any], made: dict[str, Any]) -> None:
        super().__init__()
        self.attention, self.call = FavorAttention(16, 4, batch_first=True, **made), call

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, **self.call)[0]


class OfObserved(nn.Module):
    """A decomposition of a series with gaps: one within windows, one wider than they are, one at either end."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        observed = torch.rand(2, 24, 16, generator=torch.Generator().manual_seed(0)) > 0.3
        observed[:, 8:17, 2:], observed[:, :7, 3], observed[:, -7:, 4], observed[:, :, 5] = False, False, False, False
        self.register_buffer("observed", observed)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x.repeat(1, 4, 1), mask=self.observed)


PADDING = torch.arange(6) >= torch.tensor([[6], [4]])
MODELS = {
    "full": lambda: Attention({}, {}),
    "padded": lambda: Attention({"key_padding_mask": PADDING}, {"qk_norm": True}),
    "causal": lambda: Attention({"is_causal": True}, {}),
    "step-causal": lambda: Attention({"is_causal": True}, {"tokens_per_step": 2, "features": "favor++"}),
    "extra keys": lambda: Attention({}, {"add_bias_kv": True, "add_zero_attn": True}),
    "moving average": lambda: MovingAverage(5),
    "decomposition": lambda: SeriesDecomposition(4, causal=True),
    "several sizes": lambda: SeriesDecomposition([3, 9]),
    "masked average": lambda: OfObserved(MovingAverage(4)),
    "masked, causal": lambda: OfObserved(SeriesDecomposition(3, causal=True)),
    "masked, several sizes": lambda: OfObserved(SeriesDecomposition([3, 9])),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_layer_computes_the_same(name, tmp_path):
    model, x = MODELS[name]().eval(), torch.randn(2, 6, 16)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    program.save(str(tmp_path / "layer.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-5, atol=1e-5)
