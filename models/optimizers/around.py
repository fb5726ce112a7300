"""Updates with something around them: skipped steps, copies, averages, flat and late gradients."""

import numpy as np
from expressions import Net, Step


def descents() -> None:
    """Write ascent, Lion, AMSGrad and Muon."""
    step = Step("maximize")
    net = Net(step, bias=True)
    step.output(net.loss)
    for p, g, _ in net.pairs:
        step.update((p, p + 0.1 * g))
    step.save()

    step = Step("lion")
    net = Net(step)
    m = step.noise("m 6 3")
    sign = step.op("Sign", 0.9 * m + 0.1 * net.g)
    w_new = net.w * (1 - 0.01 * 0.1) - 0.01 * sign
    step.output(net.loss).update((net.w, w_new), (m, 0.99 * m + 0.01 * net.g)).save()

    step = Step("amsgrad")
    net = Net(step)
    m = step.noise("m 6 3")
    v, peak = step.noise("v 6 3", "q 6 3", at=0.1)
    m_new, v_new = m * 0.9 + net.g * 0.1, v * 0.999 + net.g * net.g * 0.001
    peak_new = step.op("Max", peak, v_new)
    w_new = net.w - 0.01 * (m_new / (peak_new.sqrt() + 1e-8))
    step.output(net.loss).update((m, m_new), (v, v_new), (peak, peak_new), (net.w, w_new)).save()

    step = Step("muon")
    net = Net(step)
    m = step.noise("m 6 3")
    m_new = m * 0.95 + net.g
    u = net.g + 0.95 * m_new
    u = u / ((u * u).sum().sqrt() + 1e-7)
    for _ in range(3):
        square = u @ u.transposed()
        u = 3.4445 * u + (-4.775 * square + 2.0315 * (square @ square)) @ u
    step.output(net.loss).update((net.w, net.w - 0.02 * u), (m, m_new)).save()


def skipped_steps() -> None:
    """Write steps that are skipped where a gradient is not finite, by Where and by If."""
    for name in ("skipped_step_where", "skipped_step_if"):
        step = Step(name)
        net = Net(step)
        m = step.noise("m 6 3")
        total = (net.g * 0.0).sum()
        finite = step.op("Not", step.op("IsNaN", total))
        if name.endswith("where"):
            m_new = m * 0.9 + net.g
            w_new = step.op("Where", finite, net.w - 0.1 * m_new, net.w)
            m_new = step.op("Where", finite, m_new, m)
        else:

            def apply(m=m, net=net):
                m_new = m * 0.9 + net.g
                return [net.w - 0.1 * m_new, m_new]

            w_new, m_new = step.branches(
                finite, apply, lambda m=m, net=net: [net.w, m], name="apply"
            )
        step.output(net.loss).update((net.w, w_new), (m, m_new)).save()

    step = Step("dynamic_loss_scale")
    scale = step.input("s", 512.0)
    net = Net(step, seed=scale)
    scaled = net.g.called("d2")
    g = (scaled * (1.0 / scale)).called("d3")
    infinite = step.op("IsInf", (scaled * scaled).sum())
    w_new = step.op("Where", infinite, net.w, net.w - 0.1 * g)
    scale_new = step.op("Where", infinite, scale * 0.5, scale * 1.001)
    step.output(net.loss).update((net.w, w_new), (scale, scale_new)).save()


def averages() -> None:
    """Write copies and averages of weights beside or behind the step."""
    step = Step("average_of_weights")
    net = Net(step)
    mean, count = step.noise("A 6 3"), step.input("n", 3.0)
    w_new = net.w - 0.1 * net.g
    count_new = count + 1.0
    mean_new = mean + (w_new - mean) / count_new
    step.output(net.loss).update((mean, mean_new), (net.w, w_new), (count, count_new)).save()

    step = Step("previous_weights")
    net = Net(step)
    previous = step.noise("P 6 3")
    kept = step.op("Identity", net.w)
    step.output(net.loss).update((previous, kept), (net.w, net.w - 0.1 * net.g)).save()

    step = Step("lookahead")
    net = Net(step)
    slow, sync = step.noise("S 6 3"), step.input("sync", True)
    fast = net.w - 0.1 * net.g
    blended = slow + 0.5 * (fast - slow)
    w_new = step.op("Where", sync, blended, fast)
    slow_new = step.op("Where", sync, blended, slow)
    step.output(net.loss).update((slow, slow_new), (net.w, w_new)).save()

    step = Step("reptile")
    w, inner, losses = step.noise("W 6 3"), None, []
    for number in range(2):
        net = Net(step, inner or w, tag=f"_{number}")
        inner = ((inner or w) - 0.1 * net.g).called(f"W_{number + 1}")
        losses.append(net.loss.called(f"loss_{number}"))
    step.output(*losses).update((w, w + 0.5 * (inner - w))).save()

    step = Step("scaffold_variates")
    net = Net(step)
    client, server = step.noise("c 6 3", "s 6 3")
    w_new = net.w - 0.1 * (net.g - client + server)
    client_new = client - server + (net.w - w_new) * 10.0
    step.output(net.loss).update((client, client_new), (net.w, w_new)).save()

    step = Step("momentum_contrast")
    x, y, w, target, queue = step.noise("x 8 6", "y 8 6", "W 6 3", "T 6 3", "Q 16 3")
    keys, q = y @ target, x @ w
    logits = step.op("Concat", (q * keys).sum(1, keep=True), q @ queue.transposed(), axis=1)
    loss = -step.op("Slice", step.op("LogSoftmax", logits, axis=1), *(
        step.integers(number) for number in (0, 1, 1)
    )).mean()  # fmt: skip
    first = step.constant(np.eye(17)[:1])
    slope = (step.op("Softmax", logits, axis=1) - first) * (1 / 8)
    of_key, of_queue = step.op("Split", slope, step.integers(1, 16), outputs=2, axis=1)
    g = (x.transposed() @ (of_key * keys + of_queue @ queue)).called("d3")
    kept = step.op("Slice", queue, *(step.integers(number) for number in (0, 8, 0)))
    step.output(loss).update((queue, step.op("Concat", keys, kept, axis=0)))
    step.update((target, 0.99 * target + 0.01 * w), (w, w - 0.1 * g)).save()


def joined() -> None:
    """Write gradients joined to one vector, and a step that takes the run before's gradient."""
    step = Step("flat_momentum")
    net = Net(step, bias=True)
    m = step.noise("m 21")
    flat = step.op("Concat", step.op("Reshape", net.g, step.integers(-1)), net.gb, axis=0)
    m_new = m * 0.9 + flat
    of_w, of_b = step.op("Split", m_new, step.integers(18, 3), outputs=2, axis=0)
    of_w = step.op("Reshape", of_w, step.integers(6, 3))
    step.output(net.loss).update((m, m_new))
    step.update((net.w, net.w - 0.1 * of_w), (net.b, net.b - 0.1 * of_b)).save()

    step = Step("late_gradient")
    net = Net(step)
    last = step.noise("p 6 3")
    kept = step.op("Identity", net.g)
    step.output(net.loss).update((net.w, net.w - 0.1 * last), (last, kept)).save()


def operators() -> None:
    """Write operators nobody knows that hold a state, and that read two values of the data."""
    step = Step("unknown_operator_with_state")
    net = Net(step)
    m, rate = step.noise("m 6 3"), step.input("a", 0.1)
    w_new, m_new = step.op("vendor::Momentum", net.w, m, net.g, rate, outputs=2)
    step.output(net.loss).update((net.w, w_new), (m, m_new)).save()

    step = Step("unknown_operator_with_curvature")
    net = Net(step)
    curvature = (net.x * net.x).transposed() @ (net.dz * net.dz)
    step.output(net.loss)
    step.update((net.w, step.op("vendor::Newton", net.w, net.g, curvature))).save()


def write() -> None:
    for kind in (descents, skipped_steps, averages, joined, operators):
        kind()
