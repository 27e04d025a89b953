"""Diagrams, drawn from the real thing's own numbers; each function returns a matplotlib Figure."""

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from tinystories_lab.model import GPTConfig
from tinystories_lab.notebook.plots import BLUE, DPI, GREEN, GREY, ORANGE, WIDTH


def canvas(width: float, height: float, inches: float) -> tuple[Figure, Axes]:
    """A figure `inches` high with bare axes of `width` x `height` units."""
    figure = Figure(figsize=(WIDTH, inches), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, text: str, colour: str, height: float = 0.8) -> None:
    """A box around (x, y) with a text in it."""
    place = {"xy": (x - width / 2, y - height / 2), "boxstyle": "round,pad=0,rounding_size=0.12"}
    tint = [0.8 + 0.2 * part for part in to_rgb(colour)]
    axes.add_patch(FancyBboxPatch(**place, width=width, height=height, facecolor=tint, edgecolor=colour, zorder=2))
    axes.text(x, y, text, ha="center", va="center", fontsize=11, zorder=3)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style: str) -> None:
    """A straight arrow, or with a `connectionstyle` a bent one."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 0, **style})


def network(config: GPTConfig) -> Figure:
    """GPTMini from ids to logits, bottom to top, with the shapes and parameters of `config`."""
    figure, axes = canvas(10, 11.4, inches=5.6)
    C, middle, side = config.d_model, 3.2, 7.4
    embedding, attention, feed_forward = config.vocab_size * C, 4 * C**2, 3 * C * config.d_hidden
    axes.add_patch(Rectangle((0.3, 2.55), 9.4, 5.9, facecolor="none", edgecolor=GREY, linestyle="--"))
    axes.text(9.5, 2.75, f"× {config.n_layer} blocks", ha="right", va="bottom", fontsize=11)
    arrow(axes, (middle, 0.9), (middle, 10.5))  # the residual stream
    box(axes, middle, 0.5, 4, "ids  (B, T)", GREY)
    box(axes, middle, 1.8, 5.4, f"embedding  {embedding:,}", GREEN)
    for y, name, size in ((4.0, "attention", attention), (6.9, "feed-forward", feed_forward)):
        arrow(axes, (middle, y - 0.75), (side, y - 0.45), connectionstyle="angle,angleA=0,angleB=90")
        box(axes, side, y, 4.2, f"norm, then {name}\n{size:,}", BLUE, height=1.1)
        arrow(axes, (side, y + 0.55), (middle + 0.25, y + 1.05), connectionstyle="angle,angleA=90,angleB=0")
        axes.plot(middle, y + 1.05, "o", markersize=13, color="white", markeredgecolor=GREY, zorder=3)
        axes.text(middle, y + 1.02, "+", ha="center", va="center", fontsize=12, zorder=4)
    axes.text(middle - 0.15, 5.9, f"(B, T, {C})", ha="right", va="center", fontsize=11, color=GREY)
    box(axes, middle, 9.2, 5.4, "norm, then the embedding again", GREEN)
    box(axes, middle, 10.9, 4.6, f"logits  (B, T, {config.vocab_size:,})", ORANGE)
    return figure
