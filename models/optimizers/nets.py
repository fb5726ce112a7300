"""Nets whose gradients lie elsewhere than usual: two nets, several steps, carried values."""

from expressions import Net, Step, Value


class Gan:
    """A generator `tanh(z @ W)` and a discriminator `x @ D`, with their losses and gradients.

    The discriminator's gradient is `d3`, the generator's `d5`. The generator is judged by the
    discriminator `judge` makes of the old weight and its gradient.
    """

    def __init__(self, step: Step, judge=lambda d, gradient: d) -> None:
        self.step = step
        real, z, self.w, self.d = step.noise("x 8 6", "z 8 4", "W 4 6", "D 6 1")
        fake = step.op("Tanh", z @ self.w)
        good, bad = real @ self.d, fake @ self.d
        self.loss_d = (self.softplus(-good) + self.softplus(bad)).mean()
        slope_good = (step.op("Sigmoid", good) - 1.0) * (1 / 8)
        slope_bad = step.op("Sigmoid", bad) * (1 / 8)
        uses = real.transposed() @ slope_good, fake.transposed() @ slope_bad
        self.g_d = (uses[0] + uses[1]).called("d3")
        judged_by = judge(self.d, self.g_d)
        score = fake @ judged_by
        self.loss_w = self.softplus(-score).mean()
        slope = (step.op("Sigmoid", score) - 1.0) * (1 / 8)
        back = (slope @ judged_by.transposed()) * (1.0 - fake * fake)
        self.g_w = (z.transposed() @ back).called("d5")
        self.loss_d.called("loss_d")
        self.loss_w.called("loss_g")

    def softplus(self, value: Value) -> Value:
        return self.step.op("Softplus", value)


def gans() -> None:
    """Write one step of both nets, and steps that take turns."""
    step = Step("gan")
    gan = Gan(step)
    step.output(gan.loss_d, gan.loss_w)
    step.update((gan.d, gan.d - 0.1 * gan.g_d), (gan.w, gan.w - 0.1 * gan.g_w)).save()

    step = Step("gan_sequential")
    made = []

    def updated(d: Value, gradient: Value) -> Value:
        made.append((d - 0.1 * gradient).called("D_1"))
        return made[0]

    gan = Gan(step, updated)
    step.output(gan.loss_d, gan.loss_w)
    step.update((gan.d, made[0]), (gan.w, gan.w - 0.1 * gan.g_w)).save()

    step = Step("gan_alternating_flag")
    turn = step.input("turn", True)
    gan = Gan(step)
    d_new = step.op("Where", turn, gan.d - 0.1 * gan.g_d, gan.d)
    w_new = step.op("Where", turn, gan.w, gan.w - 0.1 * gan.g_w)
    step.output(gan.loss_d, gan.loss_w).update((gan.d, d_new), (gan.w, w_new)).save()

    step = Step("gan_alternating_factor")
    turn = step.input("turn", 1.0)
    gan = Gan(step)
    step.output(gan.loss_d, gan.loss_w)
    step.update((gan.d, gan.d - turn * (0.1 * gan.g_d)))
    step.update((gan.w, gan.w - 0.1 * ((1.0 - turn) * gan.g_w))).save()

    step = Step("gan_alternating_if")
    turn = step.input("turn", False)
    gan = Gan(step)
    d_new, w_new = step.branches(
        turn,
        lambda: [gan.d - 0.1 * gan.g_d, gan.w],
        lambda: [gan.d, gan.w - 0.1 * gan.g_w],
        name="turn",
    )
    step.output(gan.loss_d, gan.loss_w).update((gan.d, d_new), (gan.w, w_new)).save()

    step = Step("gan_alternating_branches")
    turn = step.input("turn", True)
    real, z, w, d = step.noise("x 8 6", "z 8 4", "W 4 6", "D 6 1")
    fake = step.op("Tanh", z @ w)
    score = fake @ d

    def train_discriminator() -> list[Value]:
        good = real @ d
        loss = step.op("Softplus", -good) + step.op("Softplus", score)
        slope_good = (step.op("Sigmoid", good) - 1.0) * (1 / 8)
        slope_bad = step.op("Sigmoid", score) * (1 / 8)
        uses = real.transposed() @ slope_good, fake.transposed() @ slope_bad
        return [loss.mean(), d - 0.1 * (uses[0] + uses[1]).called("d3"), w]

    def train_generator() -> list[Value]:
        slope = (step.op("Sigmoid", score) - 1.0) * (1 / 8)
        back = (slope @ d.transposed()) * (1.0 - fake * fake)
        gradient = (z.transposed() @ back).called("d5")
        return [step.op("Softplus", -score).mean(), d, w - 0.1 * gradient]

    loss, d_new, w_new = step.branches(turn, train_discriminator, train_generator, name="turn")
    step.output(loss).update((d, d_new), (w, w_new)).save()


def unrolled() -> None:
    """Write three steps of momentum on three batches, and two of Adam on one."""
    step = Step("unrolled_momentum")
    w, m = step.noise("W 6 3", "m 6 3")
    w_new, m_new, losses = w, m, []
    for number in range(3):
        net = Net(step, w_new, tag=f"_{number}")
        m_new = m_new * 0.9 + net.g
        w_new = (w_new - 0.1 * m_new).called(f"W_{number + 1}")
        losses.append(net.loss.called(f"loss_{number}"))
    step.output(*losses).update((w, w_new), (m, m_new)).save()

    step = Step("unrolled_adam")
    x, t, w, m = step.noise("x 8 6", "t 8 3", "W 6 3", "m 6 3")
    v = step.noise("v 6 3", at=0.1)
    w_new, m_new, v_new, losses = w, m, v, []
    for number in range(2):
        net = Net(step, w_new, x=x, t=t, tag=f"_{number}")
        m_new, v_new = 0.9 * m_new + 0.1 * net.g, 0.999 * v_new + 0.001 * net.g * net.g
        w_new = (w_new - 0.1 * (m_new / (v_new.sqrt() + 1e-8))).called(f"W_{number + 1}")
        losses.append(net.loss.called(f"loss_{number}"))
    step.output(*losses).update((w, w_new), (m, m_new), (v, v_new)).save()


def constant_data() -> None:
    """Write steps whose data are initializers, with the weights as inputs and as initializers."""
    for name, fed in (("no_data_input", True), ("no_input_but_states", False)):
        step = Step(name)
        x, t = step.constant(step.normal(8, 6)), step.constant(step.normal(8, 3))
        w = step.noise("W 6 3") if fed else step.constant(step.normal(6, 3), "W")
        m = step.noise("m 6 3")
        net = Net(step, w, x=x, t=t)
        m_new = m * 0.9 + net.g
        step.output(net.loss).update((net.w, net.w - 0.1 * m_new), (m, m_new)).save()


def batch_one() -> None:
    """Write a batch of one example with one target: the loss's slope is one element."""
    step = Step("batch_one")
    x, t, w, b = step.noise("x 1 6", "t 1 1", "W 6 1", "b 1")
    net = Net(step, w, b, x=x, t=t, size=1)
    step.output(net.loss).update((w, w - 0.1 * net.g), (b, b - 0.1 * net.gb)).save()

    step = Step("batch_one_adam")
    x, t, w, m = step.noise("x 1 6", "t 1 1", "W 6 1", "m 6 1")
    v = step.noise("v 6 1", at=0.1)
    net = Net(step, w, x=x, t=t, size=1)
    m_new, v_new = m * 0.9 + net.g * 0.1, v * 0.999 + net.g * net.g * 0.001
    w_new = w - 0.01 * (m_new / (v_new.sqrt() + 1e-8))
    step.output(net.loss).update((w, w_new), (m, m_new), (v, v_new)).save()


def weight_norm() -> None:
    """Write a weight as a length times a direction: ``W = s * V / |V|``, by columns."""
    step = Step("weight_norm")
    v = step.noise("V 6 3")
    s = step.input("s", 1 + abs(step.normal(1, 3)))
    norm = (v * v).sum(0, keep=True).sqrt()
    unit = v / norm
    net = Net(step, unit * s)
    net.g.called("d2")
    along = (net.g * unit).sum(0, keep=True).called("d5")
    across = ((net.g - unit * along) * (s / norm)).called("d3")
    step.output(net.loss).update((v, v - 0.1 * across), (s, s - 0.1 * along)).save()


def hidden_states() -> None:
    """Write recurrent layers whose state goes on to the next run, replaced and averaged."""
    for name, leaky in (("carried_hidden_state", False), ("carried_leaky_state", True)):
        step = Step(name)
        x, t, w, u, h = step.noise("x 8 6", "t 8 3", "W 6 3", "U 3 3", "h 8 3")
        made = step.op("Tanh", x @ w + h @ u)
        h_new = 0.9 * h + 0.1 * made if leaky else made
        error = h_new - t
        dz = error * (2 / 24) * (1.0 - made * made)
        if leaky:
            dz = dz * 0.1
        g_w, g_u = (x.transposed() @ dz).called("d3"), (h.transposed() @ dz).called("d5")
        step.output((error * error).mean())
        step.update((h, h_new), (w, w - 0.1 * g_w), (u, u - 0.1 * g_u)).save()


def mezo() -> None:
    """Write MeZO: two runs of the net at shifted weights, a step along the shift."""
    step = Step("mezo")
    x, t, w, z = step.noise("x 8 6", "t 8 3", "W 6 3", "z 6 3")

    def loss(weight: Value) -> Value:
        error = step.op("Tanh", x @ weight) - t
        return (error * error).mean()

    shift = z * 1e-3
    plus, minus = loss(w + shift), loss(w - shift)
    slope = (plus - minus) / 2e-3
    step.output(plus).update((w, w - 0.1 * (slope * z))).save()


def batch_norm() -> None:
    """Write a batch normalization in training: its running statistics are averages."""
    step = Step("batch_norm_statistics")
    x, t, w, shift = step.noise("x 8 6", "t 8 3", "W 6 3", "b 3")
    scale = step.input("s", 1 + 0.1 * step.normal(3))
    running_mean, running_var = step.noise("p 3"), step.noise("q 3", at=0.1)
    z = x @ w
    mean = z.mean(0)
    far = z - mean
    variance = (far * far).mean(0)
    inverse = 1.0 / (variance + 1e-5).sqrt()
    unit = far * inverse
    error = unit * scale + shift - t
    dy = error * (2 / 24)
    g_scale, g_shift = (dy * unit).sum(0).called("d5"), dy.sum(0).called("d7")
    dz = (8.0 * dy - g_shift - unit * g_scale) * (scale * inverse * (1 / 8))
    g_w = (x.transposed() @ dz).called("d3")
    step.output((error * error).mean())
    step.update((w, w - 0.1 * g_w), (scale, scale - 0.1 * g_scale), (shift, shift - 0.1 * g_shift))
    step.update((running_mean, running_mean * 0.9 + mean * 0.1))
    step.update((running_var, running_var + (variance * (8 / 7) - running_var) * 0.1)).save()


def write() -> None:
    for kind in (
        gans, unrolled, constant_data, batch_one, weight_norm, hidden_states, mezo, batch_norm,
    ):  # fmt: skip
        kind()
