"""Steps that are more than one network and one loss: a GAN, a target network, micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch_networks import _batches, mlp, of_module, of_pair, squared
from torch_steps import Data, Network, by_autograd

Backward = tuple[Tensor, list[Tensor], list[Tensor]]


def vae() -> Network:
    """A variational autoencoder with its noise as an input."""

    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.mean, self.spread = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(5, 2)
            self.decoder, self.out = nn.Linear(2, 5), nn.Linear(5, 6)

        def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            hidden = torch.relu(self.encoder(x))
            mean, spread = self.mean(hidden), self.spread(hidden)
            code = mean + noise * torch.exp(0.5 * spread)
            return self.out(torch.relu(self.decoder(code))), mean, spread

    def loss(call: object, data: Data) -> Tensor:
        back, mean, spread = call(*data)  # type: ignore[operator]
        divergence = -0.5 * (1 + spread - mean * mean - torch.exp(spread)).sum(1).mean()
        return squared(back, data[0]) + 0.1 * divergence

    batches = _batches(lambda: [torch.randn(8, 6), torch.randn(8, 2)])
    return of_module("vae", Vae(), loss, batches, ["x", "noise"])


def l2_in_loss() -> Network:
    """An MLP whose loss adds the squares of its matrices."""
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

    def value(weights: list[Tensor], buffers: list[Tensor], data: Data) -> tuple[Tensor, Data]:
        named = dict(zip(parameters, weights, strict=True))
        squares = sum((w * w).sum() for w in weights if w.ndim == 2)
        return squared(functional_call(module, named, (data[0],)), data[1]) + 0.05 * squares, []

    parameters = {name: value.detach() for name, value in module.named_parameters()}
    batches = _batches(lambda: [torch.randn(8, 5), torch.randn(8, 3)])
    return Network("l2-in-loss", parameters, by_autograd(value), batches, ["x", "wanted"])


def siamese() -> Network:
    """One network used for two inputs: each gradient is a sum over the uses."""
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

    def loss(call: object, data: Data) -> Tensor:
        difference = call(data[0]) - call(data[1])  # type: ignore[operator]
        distance = (difference * difference).sum(1)
        return (data[2] * distance + (1 - data[2]) * torch.relu(2 - distance)).mean()

    batches = _batches(
        lambda: [torch.randn(8, 5), torch.randn(8, 5), torch.randint(2, (8,)).float()]
    )
    return of_module("siamese", module, loss, batches, ["left", "right", "alike"])


def gan() -> Network:
    """Generator and discriminator, each with its own loss, in one step."""
    torch.manual_seed(2)
    generator = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4))
    critic = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1))
    made = {f"generator.{name}": p.detach() for name, p in generator.named_parameters()}
    judging = {f"critic.{name}": p.detach() for name, p in critic.named_parameters()}
    first = len(made)

    def backward(parameters: list[Tensor], buffers: list[Tensor], data: Data) -> Backward:
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        own = dict(zip((n for n, _ in generator.named_parameters()), leaves[:first], strict=True))
        its = dict(zip((n for n, _ in critic.named_parameters()), leaves[first:], strict=True))
        real, noise = data
        fake = functional_call(generator, own, (noise,))
        on_real = functional_call(critic, its, (real,))
        on_fake = functional_call(critic, its, (fake.detach(),))
        judged = (torch.log1p(torch.exp(-on_real)) + torch.log1p(torch.exp(on_fake))).mean()
        fooled = torch.log1p(torch.exp(-functional_call(critic, its, (fake,)))).mean()
        of_generator = torch.autograd.grad(fooled, leaves[:first], retain_graph=True)
        of_critic = torch.autograd.grad(judged, leaves[first:])
        return (fooled + judged).detach(), [*of_generator, *of_critic], []

    batches = _batches(lambda: [torch.randn(8, 4), torch.randn(8, 2)])
    return Network("gan", made | judging, backward, batches, ["real", "noise"])


def micro_batches() -> Network:
    """An MLP whose gradients are means over two micro-batches in one graph."""
    network = mlp()

    def backward(parameters: list[Tensor], buffers: list[Tensor], data: Data) -> Backward:
        first = network.backward(parameters, buffers, data[:2])
        second = network.backward(parameters, buffers, data[2:])
        mean = [(a + b) / 2 for a, b in zip(first[1], second[1], strict=True)]
        return (first[0] + second[0]) / 2, mean, []

    def batch() -> Data:
        return [torch.randn(8, 5), torch.randn(8, 3), torch.randn(8, 5), torch.randn(8, 3)]

    data = ["x", "wanted", "x_2", "wanted_2"]
    return Network("micro-batches", network.parameters, backward, _batches(batch), data)


def loss_scale() -> Network:
    """An MLP whose loss is scaled by an input, and whose gradients are divided by it again."""
    network = mlp()
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    names = [name for name, _ in module.named_parameters()]

    def backward(parameters: list[Tensor], buffers: list[Tensor], data: Data) -> Backward:
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        x, wanted, scale = data
        got = functional_call(module, dict(zip(names, leaves, strict=True)), (x,))
        loss = squared(got, wanted)
        gradients = torch.autograd.grad(loss * scale, leaves)
        return loss.detach(), [gradient * (1 / scale) for gradient in gradients], []

    batches = _batches(lambda: [torch.randn(8, 5), torch.randn(8, 3), torch.tensor(1024.0)])
    return Network("loss-scale", network.parameters, backward, batches, ["x", "wanted", "scale"])


def half_precision() -> Network:
    """An MLP in float16 with float32 weights, a constant scale, and gradients cast back."""
    network = mlp()
    names = list(network.parameters)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

    def backward(parameters: list[Tensor], buffers: list[Tensor], data: Data) -> Backward:
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        halves = {name: leaf.half() for name, leaf in zip(names, leaves, strict=True)}
        got = functional_call(module, halves, (data[0].half(),))
        loss = squared(got.float(), data[1])
        gradients = torch.autograd.grad(loss * 64.0, leaves)
        return loss.detach(), [gradient / 64.0 for gradient in gradients], []

    network.name, network.backward = "half-precision", backward
    # Float16 has 1e-3, and runtimes sum in different orders.
    network.tolerance = 2e-3
    return network


def double_precision() -> Network:
    """The MLP in float64."""
    network = mlp()
    network.name = "double-precision"
    network.parameters = {name: value.double() for name, value in network.parameters.items()}
    network.batches = [[tensor.double() for tensor in batch] for batch in network.batches]
    return network


def inner_step() -> Network:
    """MAML: the loss after a step of the parameters themselves, differentiated through it."""
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))

    def value(weights: list[Tensor], buffers: list[Tensor], data: Data) -> tuple[Tensor, Data]:
        named = dict(zip(parameters, weights, strict=True))
        inner = squared(functional_call(module, named, (data[0],)), data[1])
        gradients = torch.autograd.grad(inner, weights, create_graph=True)
        moved = {
            name: weight - 0.1 * gradient
            for (name, weight), gradient in zip(named.items(), gradients, strict=True)
        }
        return squared(functional_call(module, moved, (data[2],)), data[3]), []

    parameters = {name: value.detach() for name, value in module.named_parameters()}
    batches = _batches(
        lambda: [torch.randn(6, 4), torch.randn(6, 2), torch.randn(6, 4), torch.randn(6, 2)]
    )
    data = ["x", "wanted", "x_2", "wanted_2"]
    return Network("inner-step", parameters, by_autograd(value), batches, data)


def physics() -> Network:
    """A physics-informed network: its loss holds the derivative by its input."""
    module = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))

    def value(weights: list[Tensor], buffers: list[Tensor], data: Data) -> tuple[Tensor, Data]:
        named = dict(zip(parameters, weights, strict=True))
        x = data[0].detach().requires_grad_()
        u = functional_call(module, named, (x,))
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return squared(slope, -u) + squared(
            functional_call(module, named, (x * 0,)), 1.0 + 0 * u
        ), []

    parameters = {name: value.detach() for name, value in module.named_parameters()}
    # The last bias is read by values alone, not by the slope.
    return Network(
        "physics", parameters, by_autograd(value), _batches(lambda: [torch.rand(8, 1)]), ["x"]
    )


def target_network() -> Network:
    """Q-learning with a target network, which follows the online one behind the update."""
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    copies = {f"target.{name}": value * 0.9 for name, value in parameters.items()}

    def value(weights: list[Tensor], buffers: list[Tensor], data: Data) -> tuple[Tensor, Data]:
        state, action, reward, after = data
        named = dict(zip(parameters, weights, strict=True))
        target = dict(zip(parameters, buffers, strict=True))
        chosen = (functional_call(module, named, (state,)) * action).sum(1)
        best = functional_call(module, target, (after,)).max(1).values
        return squared(chosen, reward + 0.9 * best.detach()), list(buffers)

    def follow(weights: list[Tensor], buffers: list[Tensor]) -> list[Tensor]:
        return [0.05 * w + 0.95 * b for w, b in zip(weights, buffers, strict=True)]

    def batch() -> Data:
        action = functional.one_hot(torch.randint(3, (8,)), 3).float()
        return [torch.randn(8, 4), action, torch.randn(8), torch.randn(8, 4)]

    data = ["state", "action", "reward", "after"]
    backward = by_autograd(value)
    return Network(
        "target-network", parameters, backward, _batches(batch), data, copies, follow=follow
    )


def average_of_weights() -> Network:
    """An MLP with a moving average of its weights, which nothing reads."""
    network = mlp()
    network.name = "average-of-weights"
    network.buffers = {f"average.{name}": value * 1.0 for name, value in network.parameters.items()}
    plain = network.backward

    def backward(parameters: list[Tensor], buffers: list[Tensor], data: Data) -> Backward:
        loss, gradients, _ = plain(parameters, [], data)
        return loss, gradients, list(buffers)

    network.backward = backward
    network.follow = lambda weights, buffers: [
        torch.lerp(b, w, 0.01) for w, b in zip(weights, buffers, strict=True)
    ]
    return network


def graph_network() -> Network:
    """Two graph convolutions with the adjacency as an input."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor, near: Tensor) -> Tensor:
            return near @ self.second(torch.relu(near @ self.first(x)))

    def batch() -> Data:
        near = (torch.rand(7, 7) > 0.6).float() + torch.eye(7)
        return [torch.randn(7, 4), near / near.sum(1, keepdim=True), torch.randn(7, 2)]

    return of_module(
        "graph-network",
        Graph(),
        lambda f, d: squared(f(d[0], d[1]), d[2]),
        _batches(batch),
        ["x", "near", "wanted"],
    )


def experts() -> Network:
    """A soft mixture of two experts with a gate."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(5, 2)
            self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            shares = torch.softmax(self.gate(x), -1)
            outputs = torch.stack([expert(x) for expert in self.experts], 1)
            return torch.einsum("be,beo->bo", shares, outputs)

    return of_pair("experts", Mixture(), (8, 5), (8, 3))


ARCHITECTURES = (
    vae,
    l2_in_loss,
    siamese,
    gan,
    micro_batches,
    loss_scale,
    half_precision,
    double_precision,
    inner_step,
    physics,
    target_network,
    average_of_weights,
    graph_network,
    experts,
)
