"""Train small copies of real architectures on ONNX Runtime, clipped, beside PyTorch.

    python examples/pytorch/architectures.py           # all, and a table in Markdown
    python examples/pytorch/architectures.py gpt2 lstm

Each is exported as a whole training step, clipped by onnx-clip without a run and without naming a
gradient, verified, and trained for 20 steps on the data that PyTorch trains it on with
`clip_grad_norm_`. Exits with 1 if one of these fails. Needs transformers, beside what
torch_to_onnx.py needs, onnx-clip and onnxruntime.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch_to_onnx import export_step

from onnx_clip_pass import GradientClipByGlobalNorm, clip_gradients, find_gradients
from onnx_clip_pass.cli import main as onnx_clip

STEPS = 20
TOLERANCE = 1e-5
"""Of the largest element of a parameter: 20 steps, in each of which sums over up to a thousand
elements are added up in another order than in PyTorch: some ten roundings of 6e-8 a step."""

WORDS, LENGTH = 64, 12
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """A module, its loss, and batches of any size."""

    make: Callable[[], nn.Module]
    loss: Callable[..., Tensor]
    batch: Callable[[int], Tensors]
    note: str = ""


class Lstm(nn.Module):
    """Two layers between an embedding and a classifier of the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.lstm = nn.LSTM(16, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.words(tokens))
        return self.head(hidden)


def _tokens(size: int) -> Tensors:
    return {"tokens": torch.randint(2, WORDS, (size, LENGTH))}


def _pairs(size: int) -> Tensors:
    return {
        "tokens": torch.randint(2, WORDS, (size, LENGTH)),
        "labels": torch.randint(2, WORDS, (size, 7)),
    }


def _images(size: int) -> Tensors:
    return {"pixels": torch.randn(size, 3, 32, 32), "labels": torch.randint(5, (size,))}


def _next_word(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


def _next_word_of_lstm(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _translation(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    # T5 shifts labels by assigning to an element, of which the exporter makes an invalid model.
    shifted = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
    logits = model(input_ids=tokens, decoder_input_ids=shifted, use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _class(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(pixel_values=pixels).logits, labels)


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=WORDS,
            n_positions=LENGTH,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def _llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=WORDS,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def _t5() -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=WORDS,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
        )
    )


def _resnet() -> nn.Module:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            num_labels=5,
        )
    )


ARCHITECTURES = {
    "gpt2": Architecture(_gpt2, _next_word, _tokens, "2 blocks, tied embeddings"),
    "llama": Architecture(
        _llama, _next_word, _tokens, "2 blocks, grouped queries, rotary positions"
    ),
    "t5": Architecture(_t5, _translation, _pairs, "encoder and decoder, 1 block each"),
    "resnet": Architecture(_resnet, _class, _images, "2 stages, BatchNorm, max pooling"),
    "lstm": Architecture(Lstm, _next_word_of_lstm, _tokens, "2 layers over 11 words"),
}


def trained_by_torch(
    module: nn.Module,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    batches: list[Tensors],
    clip_norm: float,
) -> list[float]:
    """Train in place; return the norms of all gradients before clipping."""
    norms = []
    for batch in batches:
        optimizer.zero_grad()
        loss(module, **batch).backward()
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), clip_norm)))
        optimizer.step()
    return norms


def row(name: str, architecture: Architecture) -> Iterator[str]:
    """Yield the cells of an architecture's row; what is wrong is in capitals."""
    torch.manual_seed(0)
    module, loss = architecture.make().train(), architecture.loss
    batches = [architecture.batch(4 + place % 3) for place in range(STEPS + 1)]
    rate = {"lr": 0.05, "momentum": 0.9}
    optimizer = torch.optim.SGD(module.parameters(), **rate)
    (norm,) = trained_by_torch(module, loss, optimizer, batches[:1], np.inf)
    clip_norm = float(f"{norm / 4:.2g}")
    began = time.perf_counter()
    exported = export_step(module, loss, batches[0], optimizer)
    seconds = time.perf_counter() - began
    clipped = clip_gradients(exported.model, GradientClipByGlobalNorm(clip_norm))
    names = [parameter for parameter, _ in module.named_parameters()]
    yield f"{name} ({architecture.note})"
    yield f"{len(names)}, {sum(p.numel() for p in module.parameters()):,}"
    yield f"{len(exported.model.graph.node):,} in {seconds:.0f} s"
    known = {gradient.parameter.name for gradient in find_gradients(exported.model)}
    found = len(known.intersection(names))
    yield f"{found} of {len(names)}" if found == len(names) else f"ONLY {found} of {len(names)}"
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / "step.onnx"), str(Path(folder) / "clipped.onnx")]
        onnx.save(exported.model, paths[0])
        onnx.save(clipped, paths[1])
        yield "yes" if onnx_clip(["verify", *paths]) == 0 else "NOT VERIFIED"
    ends = {}
    for limit in (clip_norm, np.inf):
        trial = copy.deepcopy(module)
        other = torch.optim.SGD(trial.parameters(), **rate)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        norms = trained_by_torch(trial, loss, other, batches[1:], limit)
        ends[limit] = {k: v.detach().numpy() for k, v in trial.named_parameters()}
        if limit == clip_norm:
            acted = sum(norm > clip_norm for norm in norms)
    session = ort.InferenceSession(clipped.SerializeToString(), providers=["CPUExecutionProvider"])
    state, outputs = exported.state, [value.name for value in session.get_outputs()]
    for batch in batches[1:]:
        feeds = state | {key: value.numpy() for key, value in batch.items()}
        values = dict(zip(outputs, session.run(None, feeds), strict=True))
        state = {key: values[f"{key}.new"] for key in state}
    off = max(map(_distance, [state[k] for k in names], ends[clip_norm].values()))
    apart = max(map(_distance, ends[np.inf].values(), ends[clip_norm].values()))
    yield f"{acted} of {STEPS}"
    yield f"{apart:.0%}"
    yield f"{off:.0e}" if off <= TOLERANCE else f"{off:.0e} TOO FAR"


def _distance(value: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(value - wanted).max() / np.abs(wanted).max())


def main(names: list[str]) -> int:
    """Print the table; return 1 if something in it is wrong."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    rows = [
        "| architecture | tensors, parameters | nodes, exported | found without a run | verified "
        "| steps clipped | clipping changes | off from PyTorch |",
        "|---" * 8 + "|",
    ]
    for name in names or ARCHITECTURES:
        rows.append(f"| {' | '.join(row(name, ARCHITECTURES[name]))} |")
        print(rows[-1], flush=True)
    print("\n".join(rows))
    return int(any(word in "".join(rows) for word in ("ONLY", "NOT VERIFIED", "TOO FAR")))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
