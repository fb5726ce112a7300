"""What stands between a gradient and a new value: factors, signs, masks, projections, copies."""

import numpy as np
from expressions import Net, Step, Value


def factors() -> None:
    """Write plain descent with two factors, and with minus one as a factor."""
    step = Step("two_factors")
    net = Net(step, bias=True)
    rate, weeks = step.input("a", 0.3), step.input("m", 4.0)
    step.output(net.loss)
    for p, g, _ in net.pairs:
        step.update((p, p - (rate * g) / weeks))
    step.save()

    step = Step("minus_one_factor")
    net = Net(step, bias=True)
    rate = step.input("a", 0.1)
    step.output(net.loss)
    step.update((net.w, net.w + (rate * net.g) * -1.0))
    step.update((net.b, net.b + 0.5 * -(rate * net.gb))).save()


def masks() -> None:
    """Write sparse training: a mask on the new weight, on the gradient, in the net as well."""
    step = Step("masked_weight")
    net = Net(step)
    mask = step.input("q", (step.normal(6, 3) > 0) * 1.0)
    step.output(net.loss).update((net.w, mask * (net.w - 0.1 * net.g))).save()

    step = Step("masked_gradient")
    net = Net(step)
    mask, m = step.constant((step.normal(6, 3) > 0) * 1.0), step.noise("m 6 3")
    m_new = m * 0.9 + net.g * mask
    step.output(net.loss).update((net.w, net.w - 0.1 * m_new), (m, m_new)).save()

    step = Step("masked_where")
    net = Net(step)
    mask = step.input("q", step.normal(6, 3) > 0)
    w_new = step.op("Where", mask, net.w - 0.1 * net.g, 0.0)
    step.output(net.loss).update((net.w, w_new)).save()

    step = Step("masked_forward")
    w = step.noise("W 6 3")
    mask = step.input("q", (step.normal(6, 3) > 0) * 1.0)
    net = Net(step, w * mask)
    net.g.called("d2")
    g = (net.g * mask).called("d3")
    step.output(net.loss).update((w, w - 0.1 * g)).save()


def projections() -> None:
    """Write steps that end on a set, or in a proximal operator."""
    step = Step("projection_non_negative")
    net = Net(step)
    w_new = step.op("Relu", net.w - 0.1 * net.g.called("W_grad"))
    step.output(net.loss).update((net.w, w_new)).save()

    step = Step("proximal_l1")
    net = Net(step)
    far = net.w - 0.1 * net.g
    size = step.op("Max", step.op("Abs", far) - 0.01, 0.0)
    step.output(net.loss).update((net.w, step.op("Sign", far) * size)).save()

    step = Step("projection_max_norm")
    net = Net(step)
    far = net.w - 0.1 * net.g
    norm = (far * far).sum(0, keep=True).sqrt()
    w_new = far * step.op("Min", 1.0, 2.0 / (norm + 1e-7))
    step.output(net.loss).update((net.w, w_new)).save()


def soft_targets() -> None:
    """Write a target net that follows the trained one by `tau`, an input."""
    for name, blend in (
        ("soft_target", lambda target, new, tau: (1.0 - tau) * target + tau * new),
        ("soft_target_by_difference", lambda target, new, tau: target + tau * (new - target)),
        ("soft_target_kept_share", lambda target, new, tau: tau * target + (1.0 - tau) * new),
    ):
        step = Step(name)
        x, following, w, target = step.noise("x 8 6", "y 8 6", "W 6 3", "T 6 3")
        tau = step.input("tau", 0.99 if "kept" in name else 0.01)
        net = Net(step, w, x=x, t=step.op("Tanh", following @ target))
        w_new = w - 0.1 * net.g
        step.output(net.loss).update((target, blend(target, w_new, tau)), (w, w_new)).save()


def regularised() -> None:
    """Write terms of the loss beside the data's, and terms of the update alone."""
    step = Step("l2_in_loss")
    net = Net(step)
    loss = net.loss + (net.w * net.w).sum() * 0.05
    net.g.called("d2")
    g = (net.g + net.w * 0.1).called("d3")
    step.output(loss).update((net.w, net.w - 0.1 * g)).save()

    for name, in_loss in (("fedprox_loss", True), ("fedprox_update", False)):
        step = Step(name)
        net = Net(step)
        anchor = step.noise("A 6 3")
        far = net.w - anchor
        loss = net.loss + (far * far).sum() * 0.05 if in_loss else net.loss
        direction = net.g + far * 0.1
        if in_loss:
            net.g.called("d2")
            direction.called("d3")
        step.output(loss).update((net.w, net.w - 0.1 * direction)).save()


def centralized() -> None:
    """Write gradient centralization before SGD, and before momentum."""
    step = Step("centralized")
    net = Net(step)
    centered = net.g - net.g.mean(0, keep=True)
    step.output(net.loss).update((net.w, net.w - 0.1 * centered)).save()

    step = Step("centralized_momentum")
    net = Net(step)
    m = step.noise("m 6 3")
    m_new = m * 0.9 + (net.g - net.g.mean(0, keep=True))
    step.output(net.loss).update((m, m_new), (net.w, net.w - 0.1 * m_new)).save()


def unknown_operator() -> None:
    """Write an update by an operator that nobody knows and nothing runs."""
    step = Step("unknown_operator")
    net = Net(step, bias=True)
    step.output(net.loss)
    for p, g, _ in net.pairs:
        step.update((p, step.op("vendor::SGD", p, g)))
    step.save()


def embeddings() -> None:
    """Write tables whose rows alone are updated."""

    def table(
        name: str, ids: np.ndarray, constant: bool = False, unique: bool = False
    ) -> tuple[Step, Value, Value, Value]:
        """Return the step, its table, the indices of the rows and the gradient of these rows."""
        step = Step(name)
        e = step.noise("E 10 4")
        indices = step.constant(ids) if constant else step.input("i", ids)
        size = ids.size
        t = step.noise(f"t {size} 4")
        rows, places = indices, None
        if unique:
            rows, _, places, _ = step.op("Unique", indices, sorted=1, outputs=4)
            rows.called("rows")
        gathered = step.op("Gather", e, rows)
        y = step.op("Gather", gathered, places) if unique else gathered
        h = step.op("Tanh", y)
        error = h - t
        step.output((error * error).mean())
        d = error * (2 / t_size(size)) * (1.0 - h * h)
        if unique:  # the sum over the uses of each row
            zeros = gathered * 0.0
            index = step.op("Unsqueeze", places, step.integers(1))
            d = step.op("ScatterND", zeros, index, d, reduction="add")
        return step, e, rows, d.called("d3")

    def t_size(rows: int) -> int:
        return 4 * rows

    twice = np.array([3, 0, 3, 7, 5, 0])
    step, e, rows, d = table("embedding_scatter_nd_add", twice)
    index = step.op("Unsqueeze", rows, step.integers(1))
    step.update((e, step.op("ScatterND", e, index, -0.1 * d, reduction="add"))).save()

    step, e, rows, d = table("embedding_scatter_elements_add", twice)
    index = step.op("Unsqueeze", rows, step.integers(1))
    wide = step.op("Expand", index, step.integers(6, 4))
    change = d * -0.1
    e_new = step.op("ScatterElements", e, wide, change, axis=0, reduction="add")
    step.update((e, e_new)).save()

    step, e, rows, d = table("embedding_dense", twice)
    index = step.op("Unsqueeze", rows, step.integers(1))
    d.called("d2")
    g = step.op("ScatterND", e * 0.0, index, d, reduction="add").called("d3")
    step.update((e, e - 0.1 * g)).save()

    # rows that are distinct: by Unique, or because the indices are constants that are
    for name, ids, how in (
        ("embedding_unique_rows", twice, {"unique": True}),
        ("embedding_constant_rows", np.array([6, 0, 3, 9]), {"constant": True}),
        ("embedding_rows_replaced", np.array([6, 0, 3, 9]), {}),
    ):
        step, e, rows, d = table(name, ids, **how)
        v = step.noise("v 10 4", at=0.1)
        index = step.op("Unsqueeze", rows, step.integers(1))
        seen = step.op("Gather", v, rows) + d * d
        rows_new = step.op("Gather", e, rows) - 0.1 * (d / (seen.sqrt() + 1e-8))
        step.update((e, step.op("ScatterND", e, index, rows_new)))
        step.update((v, step.op("ScatterND", v, index, seen))).save()


def write() -> None:
    for kind in (
        factors, masks, projections, soft_targets, regularised, centralized, unknown_operator,
        embeddings,
    ):  # fmt: skip
        kind()
