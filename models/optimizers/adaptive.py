"""Optimizers with states: moments in every spelling, factored ones, scalars, iterates."""

import numpy as np
from expressions import Net, Step


def average(old, new, share):
    """Return ``(1 - share) * old + share * new``."""
    return (1 - share) * old + share * new


def lerp() -> None:
    """Write momentum by `torch.lerp` as its two decompositions write it."""
    step = Step("lerp_core")
    net = Net(step)
    m = step.noise("m 6 3")
    far = net.g - m
    m_new = 0.1 * far + step.op("Where", False, net.g, m)
    step.output(net.loss).update((net.w, net.w - 0.1 * m_new), (m, m_new)).save()

    step = Step("lerp_torchlib")
    net = Net(step, bias=True)
    step.output(net.loss)
    for p, g, shape in net.pairs:
        m = step.noise(f"{p.name}_m {shape}")
        far = g - m
        m_new = step.op("Where", True, m + 0.1 * far, g - far * 0.9)
        step.update((p, p + m_new * -0.01), (m, m_new))
    step.save()


def dampened() -> None:
    """Write SGD with momentum, dampening and L2 decay; the dampening is a constant of its own."""
    step = Step("sgd_dampened")
    net = Net(step, bias=True)
    step.output(net.loss)
    for p, g, shape in net.pairs:
        m = step.noise(f"{p.name}_m {shape}")
        m_new = m * 0.9 + (g + p * 0.1) * 0.5
        step.update((p, p - m_new * 0.1), (m, m_new))
    step.save()


def adafactor() -> None:
    """Write Adafactor: rows and columns of the second moment, an update clipped by its RMS."""
    step = Step("adafactor")
    net = Net(step)
    rows, columns = step.noise("r 6 1", "c 1 3", at=0.1)
    squares = net.g * net.g + 1e-30
    rows_new = average(rows, squares.mean(1, keep=True), 0.2)
    columns_new = average(columns, squares.mean(0, keep=True), 0.2)
    moment = rows_new * columns_new / rows_new.mean(0, keep=True)
    update = net.g / moment.sqrt()
    update = update / step.op("Max", 1.0, (update * update).mean().sqrt())
    rate = step.op("Max", 1e-3, (net.w * net.w).mean().sqrt()) * 0.01
    step.output(net.loss)
    step.update((net.w, net.w - rate * update), (rows, rows_new), (columns, columns_new)).save()


def sm3() -> None:
    step = Step("sm3")
    net = Net(step)
    rows, columns = step.noise("r 6 1", "c 1 3", at=0.1)
    seen = step.op("Min", rows, columns) + net.g * net.g
    w_new = net.w - 0.1 * (net.g / (seen.sqrt() + 1e-8))
    step.output(net.loss).update(
        (net.w, w_new),
        (rows, seen.sum(1, True, "ReduceMax")),
        (columns, seen.sum(0, True, "ReduceMax")),
    ).save()


def prodigy() -> None:
    """Write Prodigy: the step size `d` is estimated over all parameters and scales gradients."""
    step = Step("prodigy")
    net = Net(step, bias=True)
    d = step.input("d", 0.1)
    numerator = step.input("n", 0.2)
    step.output(net.loss)
    inner, total, held = [], [], []
    for p, g, shape in net.pairs:
        start, m, s = step.noise(*(f"{p.name}_{state} {shape}" for state in ("0", "m", "s")))
        v = step.noise(f"{p.name}_v {shape}", at=0.1)
        scaled = d * g
        s_new = s * 0.999 + d * scaled * 0.001
        held.append((p, m, average(m, scaled, 0.1), v, average(v, scaled * scaled, 0.001), s))
        held[-1] += (s_new,)
        inner.append((g * (start - p)).sum())
        total.append(step.op("Abs", s_new).sum())
    numerator_new = numerator * 0.999 + d * d * (inner[0] + inner[1]) * 0.001
    d_new = step.op("Max", d, numerator_new / (total[0] + total[1]))
    for p, m, m_new, v, v_new, s, s_new in held:
        update = m_new / (v_new.sqrt() + d * 1e-8)
        step.update((p, p - d_new * update), (m, m_new), (v, v_new), (s, s_new))
    step.update((d, d_new), (numerator, numerator_new)).save()


def laprop() -> None:
    """Write LaProp: the gradient is normalised before the moment, which holds the rate."""
    step = Step("laprop")
    net = Net(step)
    m, v = step.noise("m 6 3"), step.noise("v 6 3", at=0.1)
    v_new = average(v, net.g * net.g, 0.001)
    m_new = m * 0.9 + net.g / (v_new / 0.002).sqrt() * 0.0004
    step.output(net.loss).update((net.w, net.w - m_new * 5.0), (m, m_new), (v, v_new)).save()


def adopt() -> None:
    """Write ADOPT: the gradient over the root of the old second moment, clipped."""
    step = Step("adopt")
    net = Net(step)
    m, v = step.noise("m 6 3"), step.noise("v 6 3", at=0.01)
    normed = step.op("Clip", net.g / step.op("Max", v.sqrt(), 1e-6), -1.5, 1.5)
    m_new = m + (normed - m) * 0.1
    v_new = v * 0.9999 + net.g * net.g * 1e-4
    step.output(net.loss).update((net.w, net.w - 0.01 * m_new), (m, m_new), (v, v_new)).save()


def ftrl() -> None:
    """Write FTRL: the new weight is made of the new states alone."""
    step = Step("ftrl")
    net = Net(step)
    z, n = step.noise("z 6 3"), step.noise("n 6 3", at=0.1)
    n_new = n + net.g * net.g
    sigma = (n_new.sqrt() - n.sqrt()) / 0.5
    z_new = z + net.g - sigma * net.w
    shrunk = step.op("Sign", z_new) * 0.01 - z_new
    w_new = step.op(
        "Where",
        step.op("LessOrEqual", step.op("Abs", z_new), 0.01),
        0.0,
        shrunk / ((n_new.sqrt() + 1.0) / 0.5 + 0.1),
    )
    step.output(net.loss).update((z, z_new), (n, n_new), (net.w, w_new)).save()


def schedule_free() -> None:
    """Write schedule-free SGD: y is trained, z the iterate behind it."""
    step = Step("schedule_free")
    net = Net(step)
    z, share = step.noise("z 6 3"), step.input("c", 0.1)
    y_new = net.w + share * (z - net.w) + net.g * (0.1 * (0.9 - share * 0.9 - 1.0))
    step.output(net.loss).update((z, z - 0.1 * net.g), (net.w, y_new)).save()


def logarithmic_scale() -> None:
    """Write a scale stored as its logarithm: its gradient is a reduction times exp(W)."""
    step = Step("logarithmic_scale")
    x, t, w = step.noise("x 8 6", "t 8 3", "W 6 3")
    s = step.input("s", 0.3 * step.normal(3))
    m, v = step.noise("m 3"), step.noise("v 3", at=0.1)
    scale = step.op("Exp", s)
    z = x @ w
    error = z * scale - t
    loss = (error * error).mean()
    dy = error * (2 / 24)
    d_scale = (dy * z).sum(0)
    d_s = (d_scale * scale).called("d7")
    d_w = (x.transposed() @ (dy * scale)).called("d3")
    m_new, v_new = average(m, d_s, 0.1), average(v, d_s * d_s, 0.001)
    step.output(loss)
    step.update((w, w - 0.1 * d_w), (s, s - 0.01 * (m_new / (v_new.sqrt() + 1e-8))))
    step.update((m, m_new), (v, v_new)).save()


def galore() -> None:
    """Write GaLore: Adam on the gradient projected to two dimensions, and back."""
    step = Step("galore")
    net = Net(step)
    columns = [1, 1, 0, 0, 1, 1], [1, -1, 1, 1, 0, 0]  # orthonormal once they are halved
    project = step.input("p", 0.5 * np.array(columns, np.float64).T)
    m, v = step.noise("m 2 3"), step.noise("v 2 3", at=0.1)
    low = project.transposed() @ net.g
    m_new, v_new = average(m, low, 0.1), average(v, low * low, 0.001)
    update = project @ (m_new / (v_new.sqrt() + 1e-8))
    step.output(net.loss)
    step.update((net.w, net.w - 0.01 * (update * 0.25)), (m, m_new), (v, v_new)).save()


def sophia() -> None:
    """Write Sophia-G: a second backward pass, of sampled labels, gives the curvature."""
    step = Step("sophia")
    x, t, w = step.noise("x 8 6", "t 8 3", "W 6 3")
    gumbel = step.noise("u 8 3")
    m, h = step.noise("m 6 3"), step.noise("h 6 3", at=0.1)
    labels = step.op("Softmax", t, axis=1)
    logits = x @ w
    probabilities = step.op("Softmax", logits, axis=1)
    loss = -(labels * step.op("LogSoftmax", logits, axis=1)).sum(1).mean()
    g = (x.transposed() @ ((probabilities - labels) * (1 / 8))).called("d3")
    best = step.op("ArgMax", logits + gumbel, axis=1, keepdims=0)
    depth, marks = step.integers(3), step.constant(np.array([0.0, 1.0]))
    sampled = step.op("OneHot", best, depth, marks)
    second = x.transposed() @ ((probabilities - sampled) * (1 / 8))
    m_new, h_new = average(m, g, 0.04), average(h, 8.0 * (second * second), 0.01)
    ratio = step.op("Clip", m_new / step.op("Max", h_new * 0.05, 1e-12), -1.0, 1.0)
    step.output(loss).update((w, w * 0.999 - 0.01 * ratio), (m, m_new), (h, h_new)).save()


def kfac() -> None:
    """Write K-FAC with inverses made elsewhere, and with inverses refined in the graph."""
    for name, refined in (("kfac", False), ("kfac_inverses_in_graph", True)):
        step = Step(name)
        net = Net(step)
        left, right = step.input("a", 0.5 * np.eye(6)), step.input("g", 0.1 * np.eye(3))
        left_inverse = step.input("ai", 1.8 * np.eye(6))
        right_inverse = step.input("gi", 9 * np.eye(3))
        left_new = average(left, net.x.transposed() @ net.x * (1 / 8), 0.05)
        right_new = average(right, net.dz.transposed() @ net.dz * 8.0, 0.05)
        step.output(net.loss)
        if refined:  # one iteration of Newton and Schulz: A <- A (2 - F A)
            inverses = []
            for inverse, factor, size in (
                (left_inverse, left_new, 6),
                (right_inverse, right_new, 3),
            ):
                twice = step.constant(2 * np.eye(size))
                inverses.append(inverse @ (twice - factor @ inverse))
            step.update((left_inverse, inverses[0]), (right_inverse, inverses[1]))
            left_inverse, right_inverse = inverses
        update = left_inverse @ net.g @ right_inverse
        step.update((left, left_new), (right, right_new), (net.w, net.w - 0.01 * update)).save()


def scaffold() -> None:
    """Write SCAFFOLD: control variates of the client and the server beside the gradient."""
    step = Step("scaffold")
    net = Net(step, bias=True)
    step.output(net.loss)
    for p, g, shape in net.pairs:
        client, server = step.noise(f"{p.name}_c {shape}", f"{p.name}_s {shape}")
        step.update((p, p - 0.1 * (g - client + server)))
    step.save()


def master_weights() -> None:
    """Write a half-precision pass whose weights are casts of float masters."""
    step = Step("master_weights")
    x, t, master = step.noise("x 8 6", "t 8 3", "M 6 3")
    w = step.input("W", step.inputs[master].astype(np.float16))
    step.inputs[master] = step.inputs[w].astype(np.float32)
    x16 = step.op("Cast", x, to=10)
    y = step.op("Cast", x16 @ w, to=1)
    error = y - t
    loss = (error * error).mean()
    dy16 = step.op("Cast", error * (2 / 24) * 64.0, to=10)
    g = (step.op("Cast", x16.transposed() @ dy16, to=1) * (1 / 64)).called("d3")
    m = step.noise("m 6 3")
    m_new = m * 0.9 + g
    master_new = master - 0.1 * m_new
    step.output(loss).update((master, master_new), (m, m_new))
    step.update((w, step.op("Cast", master_new, to=10))).save()


def write() -> None:
    for kind in (
        lerp, dampened, adafactor, sm3, prodigy, laprop, adopt, ftrl, schedule_free,
        logarithmic_scale, galore, sophia, kfac, scaffold, master_weights,
    ):  # fmt: skip
        kind()
