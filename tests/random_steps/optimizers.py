"""Optimizers: from the gradient and the states to what the weight is moved by, or to new weights.

Those in `MOVES` give what is multiplied by the learning rate and subtracted; those in `STEPS` give
the new weight themselves.
"""

from __future__ import annotations

from collections.abc import Callable

from .update import Update
from .writer import Number

__all__ = ["MATRICES_ONLY", "MOVES", "NEEDS_TIME", "ROUGH", "STEPS"]


def plain(u: Update, g: str) -> str:
    return g


def heavy_ball(u: Update, g: str) -> str:
    """m = mu * m + c * g, with c 1, its complement or any number."""
    kind = u.choose.choice(["1", "1", "complement", "0.5"])
    nesterov = u.choose.random() < 0.3
    u.note(f"dampening {kind}" + (", nesterov" if nesterov else ""))
    mu, old = u.number("mu", 0.9), u.old("m")
    part = g
    if kind == "complement":
        part = u.s.scale(g, u.s.rest(mu))
    elif kind != "1":
        part = u.s.scale(g, u.number("dampened", 0.5))
    m = u.s.add(u.s.scale(old, mu), part)
    if kind == "1" and u.choose.random() < 0.2:
        u.note("begins with the gradient")
        m = u.where(u.optimizer.flag("first"), g, m)
    u.new("m", m)
    return u.s.add(g, u.s.scale(m, mu)) if nesterov else m


def averaged(u: Update, g: str) -> str:
    return u.average("m", g, "share", 0.1)


def quasi_hyperbolic(u: Update, g: str) -> str:
    m = u.average("m", g, "share", 0.1)
    return u.s.average(g, m, u.number("nu", 0.7))


def two_momenta(u: Update, g: str) -> str:
    """AggMo: the mean of several velocities."""
    parts = []
    for key, mu in (("m", 0.0), ("n", 0.9)):
        old = u.old(key)
        parts.append(u.new(key, u.s.add(u.s.scale(old, u.number(f"mu_{key}", mu)), g)))
    return u.s.scale(u.s.add(*parts), 0.5)


def adam(u: Update, g: str) -> str:
    """Adam with AMSGrad, Nesterov or LaProp's order, with bias correction or not."""
    kind = u.choose.choice(["adam"] * 4 + ["amsgrad", "nadam", "no first"])
    correct = u.choose.random() < 0.7
    u.note(kind + (", corrected" if correct else ""))
    m = g if kind == "no first" else u.average("m", g, "share", 0.1)
    v = u.average("v", u.s.square(g), "share2", 0.01, positive=True)
    if kind == "nadam":
        m = u.s.add(u.s.scale(m, 0.9), u.s.scale(g, 0.1))
    if kind == "amsgrad":
        v = u.new("top", u.w.put("Max", u.old("top", positive=True), v))
    if correct:
        m = m if kind == "no first" else u.corrected(m, "share", 0.1)
        v = u.corrected(v, "share2", 0.01)
    return u.s.div(m, u.under_root(v))


def adamax(u: Update, g: str) -> str:
    m = u.average("m", g, "share", 0.1)
    kept = u.s.scale(u.old("top", positive=True), u.number("mu2", 0.99))
    top = u.new("top", u.w.put("Max", kept, u.w.put("Abs", g)))
    return u.s.div(m, u.s.add(top, u.w.use(u.number("eps", 1e-3))))


def adagrad(u: Update, g: str) -> str:
    total = u.new("v", u.s.add(u.old("v", positive=True), u.s.square(g)))
    return u.s.div(g, u.under_root(total))


def rmsprop(u: Update, g: str) -> str:
    centered = u.choose.random() < 0.4
    momentum = u.choose.random() < 0.4
    if centered or momentum:
        u.note("centered" * centered + " with " * (centered and momentum) + "momentum" * momentum)
    v = u.average("v", u.s.square(g), "share", 0.1, positive=True)
    if centered:
        mean = u.average("mean", g, "share", 0.1)
        v = u.w.put("Max", u.w.put("Sub", v, u.s.square(mean)), u.w.constant(0.0))
    move = u.s.div(g, u.under_root(v))
    if momentum:
        move = u.new("m", u.s.add(u.s.scale(u.old("m"), u.number("mu", 0.9)), move))
    return move


def adadelta(u: Update, g: str) -> str:
    v = u.average("v", u.s.square(g), "share", 0.1, positive=True)
    before = u.old("d", positive=True)
    move = u.s.mul(u.s.div(u.under_root(before), u.under_root(v)), g)
    u.new("d", u.s.average(before, u.s.square(move), u.number("share", 0.1)))
    return move


def sign(u: Update, g: str) -> str:
    return u.w.put("Sign", g)


def lion(u: Update, g: str) -> str:
    old = u.old("m")
    move = u.w.put("Sign", u.s.average(old, g, u.number("share", 0.1)))
    u.new("m", u.s.average(old, g, u.number("share2", 0.01)))
    return move


def tiger(u: Update, g: str) -> str:
    return u.w.put("Sign", u.average("m", g, "share", 0.1))


def yogi(u: Update, g: str) -> str:
    m = u.average("m", g, "share", 0.1)
    old, square = u.old("v", positive=True), u.s.square(g)
    toward = u.s.mul(u.w.put("Sign", u.w.put("Sub", old, square)), square)
    v = u.new("v", u.s.sub(old, u.s.scale(toward, u.number("share2", 0.01))))
    return u.s.div(m, u.under_root(u.w.put("Abs", v)))


def adabelief(u: Update, g: str) -> str:
    m = u.average("m", g, "share", 0.1)
    apart = u.s.square(u.w.put("Sub", g, m))
    v = u.average("v", apart, "share2", 0.01, positive=True)
    return u.s.div(m, u.under_root(v))


def laprop(u: Update, g: str) -> str:
    """The gradient is normalised before it is averaged."""
    v = u.average("v", u.s.square(g), "share2", 0.01, positive=True)
    return u.average("m", u.s.div(g, u.under_root(v)), "share", 0.1)


def adopt(u: Update, g: str) -> str:
    """Normalised by the second moment of the steps before, clipped, then averaged."""
    old = u.old("v", positive=True)
    low, high = u.w.constant(-2.0), u.w.constant(2.0)
    normal = u.s.div(g, u.w.put("Max", u.s.sqrt(old), u.w.use(u.number("eps", 1e-3, plain=True))))
    move = u.w.put("Clip", normal, low, high, shape=u.shape)
    u.new("v", u.s.average(old, u.s.square(g), u.number("share2", 0.01)))
    return u.average("m", move, "share", 0.1)


def adafactor(u: Update, g: str) -> str:
    """Second moments kept as those of rows and columns."""
    w, (rows, columns) = u.w, u.shape
    square = u.s.add(u.s.square(g), w.use(u.number("eps", 1e-3, plain=True)))
    share = u.number("share", 0.1, plain=True)
    means = []
    for key, axis, shape in (("row", 1, (rows, 1)), ("column", 0, (1, columns))):
        mean = w.reduce("ReduceMean", square, [axis], keep=True)
        means.append(u.new(key, u.s.average(u.old(key, positive=True, shape=shape), mean, share)))
    row, column = means
    v = u.s.div(u.s.mul(row, column), w.reduce("ReduceMean", row, [0], keep=True))
    move = u.s.div(g, u.s.sqrt(v))
    if u.choose.random() < 0.5:
        size = u.s.sqrt(w.reduce("ReduceMean", u.s.square(move), None, keep=False))
        move = u.s.div(move, w.put("Max", size, w.constant(1.0)))
    if u.choose.random() < 0.5:
        move = u.average("m", move, "share_m", 0.1)
    return move


def sm3(u: Update, g: str) -> str:
    w, (rows, columns) = u.w, u.shape
    row = u.old("row", positive=True, shape=(rows, 1))
    column = u.old("column", positive=True, shape=(1, columns))
    v = u.s.add(w.put("Min", row, column), u.s.square(g))
    u.new("row", w.reduce("ReduceMax", v, [1], keep=True))
    u.new("column", w.reduce("ReduceMax", v, [0], keep=True))
    return u.s.div(g, u.under_root(v))


def prodigy(u: Update, g: str) -> str:
    """A scalar state, the estimated distance, stands in front of the gradient."""
    w = u.w
    d = u.old("d", positive=True, shape=())
    scaled = u.s.mul(g, d)
    m = u.average("m", scaled, "share", 0.1)
    v = u.average("v", u.s.square(scaled), "share2", 0.01, positive=True)
    along = w.reduce("ReduceSum", u.s.mul(scaled, u.weight), None, keep=False)
    u.new("d", w.put("Max", d, u.s.mul(along, w.constant(0.01))))
    return u.s.div(m, u.s.add(u.s.sqrt(v), u.s.scale(d, u.number("eps", 1e-3, plain=True))))


def lars(u: Update, g: str) -> str:
    """The gradient times |W| / |g|, then momentum."""
    return heavy_ball(u, _trusted(u, g))


def lamb(u: Update, g: str) -> str:
    return _trusted(u, adam(u, g))


def _trusted(u: Update, move: str) -> str:
    w = u.w
    eps = w.use(u.number("eps", 1e-3, plain=True))
    size = u.norm(u.weight)
    ratio = u.s.div(size, u.s.add(u.norm(move), eps))
    if u.choose.random() < 0.4:
        positive = u.compare("Greater", size, w.constant(0.0))
        ratio = u.where(positive, ratio, w.constant(1.0))
    return u.s.mul(move, ratio)


def normalised(u: Update, g: str) -> str:
    return u.s.div(g, u.s.add(u.norm(g), u.w.use(u.number("eps", 1e-3, plain=True))))


def adan(u: Update, g: str) -> str:
    """The gradient of the step before is a state."""
    apart = u.w.put("Sub", g, u.old("last"))
    u.new("last", u.w.put("Identity", g))
    m = u.average("m", g, "share", 0.1)
    n = u.average("n", apart, "share2", 0.01)
    return u.s.add(m, u.s.scale(n, 0.9))


def rprop(u: Update, g: str) -> str:
    w, zero = u.w, u.w.constant(0.0)
    along = u.s.mul(g, u.old("last"))
    u.new("last", w.put("Identity", g))
    up, down = w.use(u.number("up", 1.2)), w.use(u.number("down", 0.5))
    grown = u.where(u.compare("Greater", along, zero), up, w.constant(1.0))
    factor = u.where(u.compare("Less", along, zero), down, grown)
    size = u.new("size", u.s.mul(u.old("size", positive=True), factor))
    return u.s.mul(w.put("Sign", g), size)


def cautious(u: Update, g: str) -> str:
    """The average, where its sign is that of the gradient."""
    w, m = u.w, u.average("m", g, "share", 0.1)
    agree = u.compare("Greater", u.s.mul(m, g), w.constant(0.0))
    if u.choose.random() < 0.5:
        return u.where(agree, m, w.constant(0.0))
    mask = w.put("Cast", agree, to=w.working, dtype=w.working)
    return u.s.mul(m, mask)


def muon(u: Update, g: str) -> str:
    """A velocity, made nearly orthogonal by two steps of Newton and Schulz."""
    w, m = u.w, heavy_ball(u, g)
    x = u.s.div(m, u.s.add(u.norm(m), w.use(u.number("eps", 1e-3, plain=True))))
    for _ in range(2):
        cubed = w.matmul(w.matmul(x, w.transpose(x)), x)
        x = u.s.sub(u.s.scale(x, 1.5), u.s.scale(cubed, 0.5))
    return x


def asgd(u: Update, g: str) -> str:
    """Descent; the weights' average is kept beside it."""
    u.new("mean", u.s.average(u.old("mean"), u.weight, u.number("share", 0.1)))
    return g


MOVES: dict[str, Callable[[Update, str], str]] = {
    "sgd": plain, "heavy ball": heavy_ball, "average": averaged, "qhm": quasi_hyperbolic,
    "aggmo": two_momenta, "adam": adam, "adamax": adamax, "adagrad": adagrad, "rmsprop": rmsprop,
    "adadelta": adadelta, "sign": sign, "lion": lion, "tiger": tiger, "yogi": yogi,
    "adabelief": adabelief, "laprop": laprop, "adopt": adopt, "adafactor": adafactor, "sm3": sm3,
    "prodigy": prodigy, "lars": lars, "lamb": lamb, "normalised": normalised, "adan": adan,
    "rprop": rprop, "cautious": cautious, "muon": muon, "asgd": asgd,
}  # fmt: skip
MATRICES_ONLY = {"adafactor": "rmsprop", "sm3": "adagrad", "muon": "heavy ball"}
NEEDS_TIME = {"adam", "lamb"}
ROUGH = {"sgd", "heavy ball", "average", "sign", "tiger"}  # half precision is enough for them


# -- optimizers that give the new weight -------------------------------------------------------


def velocity(u: Update, g: str, rate: Number, more: list[Number]) -> str:
    """Keras: the velocity holds the learning rate."""
    mu = u.number("mu", 0.9)
    v = u.new("v", u.s.step(u.s.scale(u.old("v"), mu), g, rate, more))
    if u.choose.random() < 0.4:
        u.note("nesterov")
        return u.s.step(u.s.add(u.weight, u.s.scale(v, mu)), g, rate, more)
    return u.s.add(u.weight, v)


def schedule_free(u: Update, g: str, rate: Number, more: list[Number]) -> str:
    """W is where the gradient is taken; z descends."""
    z, share = u.old("z"), u.number("share", 0.2)
    moved = u.s.average(u.weight, z, share)
    u.new("z", u.s.step(z, g, rate, more))
    less = u.w.number(rate.value * 0.72, "rate_of_w")
    return u.s.step(moved, g, less, more)


def averaged_behind(u: Update, g: str, rate: Number, more: list[Number]) -> str:
    """Schedule-free in its other form: W = (1 - b) z + b x from the new z and x."""
    z = u.new("z", u.s.step(u.old("z"), g, rate, more))
    x = u.new("x", u.s.average(u.old("x"), z, u.number("share", 0.2)))
    return u.s.average(z, x, u.number("beta", 0.9))


def ftrl(u: Update, g: str, rate: Number, more: list[Number]) -> str:
    """W is computed from the new z and n alone."""
    w, old = u.w, u.old("n", positive=True)
    n = u.new("n", u.s.add(old, u.s.square(g)))
    apart = w.put("Sub", u.s.sqrt(n), u.s.sqrt(old))
    sigma = u.s.div(apart, w.use(rate))
    z = u.new("z", u.s.add(u.old("z"), u.s.sub(g, u.s.mul(sigma, u.weight))))
    low = w.use(u.number("l1", 0.05))
    below = u.s.div(u.s.add(u.s.sqrt(n), w.constant(1.0)), w.use(rate))
    pulled = w.put("Sub", u.s.mul(w.put("Sign", z), low), z)
    moved = u.s.div(pulled, below)
    return u.where(u.compare("LessOrEqual", w.put("Abs", z), low), w.constant(0.0), moved)


STEPS: dict[str, Callable[[Update, str, Number, list[Number]], str]] = {
    "velocity": velocity,
    "schedule-free": schedule_free,
    "schedule-free of z and x": averaged_behind,
    "ftrl": ftrl,
}
