"""The stages. Each returns rows that compare the chapter's way with ours."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import datasets
import numpy as np
import torch

from tests.benchmarks import chapter
from tests.benchmarks.measure import Row, in_process, in_turn
from tinystories_lab.checkpoint import CheckpointWriter, load_model, save_checkpoint
from tinystories_lab.config import TrainConfig
from tinystories_lab.data.stories import StoryTexts, load_stories
from tinystories_lab.data.toyland import generate_stories
from tinystories_lab.device import choose_device, choose_dtype, compile_model
from tinystories_lab.generate import stream, stream_batch
from tinystories_lab.loader import BinLoader
from tinystories_lab.model import GPTConfig, GPTMini, new_model
from tinystories_lab.run import PRESETS
from tinystories_lab.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer, write_bin
from tinystories_lab.trainer import TrainState, train_step

DEVICE = choose_device()[0]
DTYPE = choose_dtype(DEVICE)[0]
# Dense bfloat16 or float16 matrix products with float32 accumulation, in TFLOP/s, as the makers state them.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L4": 121, "T4": 65}
CHAPTER_RUN = 200e6  # tokens


def megabytes_of(stories: datasets.Dataset, megabytes: float) -> datasets.Dataset:
    """Return the stories, repeated until they have this many megabytes of text."""
    size = sum(len(text.encode()) for text in stories[:2_000]["text"]) / min(2_000, len(stories))
    count = int(megabytes * 1e6 / size)
    often = datasets.concatenate_datasets([stories] * (count // len(stories) + 1))
    return often.select(range(count))


def corpus(folder: Path, source: str) -> datasets.Dataset:
    """Return stories to encode, and write a tokenizer to the folder."""
    stories, _ = load_stories(source, folder, max_stories=100_000)
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(stories["train"]["text"][:20_000], 8_000), folder / "tokenizer.json")
    return stories["train"]


def _encode(folder: Path, source: str, megabytes: float, ours: bool) -> float:
    """Return the seconds to encode this many megabytes of text."""
    warnings.simplefilter("ignore")
    stories, tokenizer = megabytes_of(corpus(folder, source), megabytes), load_tokenizer(folder / "tokenizer.json")
    started = time.perf_counter()
    if ours:
        write_bin(folder / "ours.bin", StoryTexts(stories), tokenizer)
    else:
        chapter.encode_to_bin(folder / "chapter.bin", stories["text"][:], tokenizer)
    return time.perf_counter() - started


def prepare(source: str, large: bool) -> list[Row]:
    """Encode text to a token file: speed and memory at growing sizes."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stories, tokenizer = corpus(folder, source), load_tokenizer(folder / "tokenizer.json")
        texts = megabytes_of(stories, 10)["text"][:]

        def library() -> None:
            for start in range(0, len(texts), 1_000):
                tokenizer.encode_batch_fast(texts[start : start + 1_000])

        reference = 10 / in_turn({"library": library}, 1)["library"]
        for megabytes in (5, 50, 500) if large else (5, 50):
            # The chapter's way would need minutes and 5 GB of memory for 500 MB.
            theirs = in_process(_encode, folder, source, megabytes, False) if megabytes < 500 else (None, None)
            ours = in_process(_encode, folder, source, megabytes, True)
            if megabytes < 500 and (folder / "ours.bin").read_bytes() != (folder / "chapter.bin").read_bytes():
                raise AssertionError("the two files differ")
            note = f"vocabulary {tokenizer.get_vocab_size():,}; the library's batches on all cores: {reference:.1f}"
            speed = theirs[0] and megabytes / theirs[0]
            what = f"encode {megabytes} MB of text"
            rows.append(Row("prepare", what, "MB/s", speed, megabytes / ours[0], None, theirs[1], ours[1], note))
    return rows


def _load(stories: int, ours: bool) -> float:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if ours:
            load_stories("toyland", folder, max_stories=stories)
        else:
            kept, seen = [], set()
            for story in generate_stories(stories):
                if story.strip() and story not in seen:
                    seen.add(story)
                    kept.append(story)
        return time.perf_counter() - started


def load(source: str, large: bool) -> list[Row]:
    """Generate, clean and store built-in stories: in a list in memory (the chapter's way), or on disk (ours)."""
    count = 2_119_719 if large else 200_000
    theirs, ours = in_process(_load, count, False), in_process(_load, count, True)
    note = "generating the same stories alone takes most of the time"
    return [Row("load", f"{count:,} built-in stories", "s", theirs[0], ours[0], None, theirs[1], ours[1], note)]


def loader(source: str, large: bool) -> list[Row]:
    """Load a batch of 32 x 512 from a file of 200M tokens."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.random.default_rng(0).integers(0, 8_000, 200_000_000, np.uint16).tofile(path)
        theirs, ours = chapter.Loader(path, 32, 512), BinLoader(path, 32, 512, vocab_size=8_000, device=DEVICE)
        theirs.tokens.max()  # reads every token once, as ours has done, so that all pages are in memory
        steps = iter(range(10**9))
        seconds = in_turn(
            {
                "chapter": lambda: [part.to(DEVICE) for part in theirs.batch()],
                "ours": lambda: ours.batch(next(steps)),
            },
            400,
        )
    return [Row("loader", f"32 x 512 on {DEVICE.type}", "us", seconds["chapter"] * 1e6, seconds["ours"] * 1e6)]


def product_seconds(B: int, T: int, config: GPTConfig) -> float:
    """Return the seconds of a step's matrix products alone: one forward, two backward, in the dtype of training."""
    C, H, V, N = config.d_model, config.d_hidden, config.vocab_size, B * T
    shapes = [(C, 3 * C), (C, C), (C, H), (C, H), (H, C)] * config.n_layer + [(C, V)]
    tensors = [
        (torch.randn(N, a, device=DEVICE, dtype=DTYPE), torch.randn(b, a, device=DEVICE, dtype=DTYPE))
        for a, b in shapes
    ]
    outs = [torch.randn(N, b, device=DEVICE, dtype=DTYPE) for _, b in shapes]

    def products() -> None:
        for (x, weight), out in zip(tensors, outs, strict=True):
            x @ weight.t(), out @ weight, out.t() @ x

    return in_turn({"products": products}, 5)["products"]


def our_state(compiled: bool, B: int, T: int) -> tuple[TrainState, tuple[torch.Tensor, torch.Tensor]]:
    config = TrainConfig(batch_size=B, seq_len=T)
    state = TrainState.new(new_model(GPTConfig()).to(DEVICE), config, DTYPE)
    ids = torch.randint(8_000, (B, T + 1), device=DEVICE)
    batch = ids[:, :-1], ids[:, 1:]

    def warm_up(forward: Callable) -> None:
        with torch.autocast(DEVICE.type, DTYPE, enabled=DTYPE is not torch.float32):
            forward(*batch)[1].backward()
        state.optimizer.zero_grad()

    if compiled:
        state.forward, _ = compile_model(state.model, DEVICE, 1e18, warm_up)
    return state, batch


def their_step(model: torch.nn.Module, dtype: torch.dtype, B: int, T: int) -> partial:
    model = model.to(DEVICE)
    ids = torch.randint(8_000, (B, T + 1))
    return partial(chapter.step, model, chapter.optimizer_of(model), ids[:, :-1], ids[:, 1:], dtype)


def _two_steps(ours: bool, B: int, T: int) -> float:
    if ours:
        state, batch = our_state(True, B, T)
    for _ in range(2):
        if ours:
            train_step(state, batch)
        else:
            their_step(chapter.Model(), torch.float32, B, T)()
    return 0.0


def train(source: str, large: bool) -> list[Row]:
    """Train the chapter's model: its loop, two other models compiled, and ours as in a long run."""
    cuda = DEVICE.type == "cuda"
    B, T = (32, 512) if cuda else (8, 512)
    their_dtype = DTYPE if cuda else torch.float32
    compiled = not cuda or torch.cuda.get_device_capability() >= (8, 0)
    compile_ = partial(torch.compile, dynamic=False) if compiled else lambda model: model
    state, batch = our_state(True, B, T)
    plain, plain_batch = our_state(False, B, T)
    peers = {
        "nanoGPT's form, compiled": their_step(compile_(chapter.GPT2()), DTYPE, B, T),
        "llama2.c's form, compiled": their_step(compile_(chapter.Model()), DTYPE, B, T),
    }
    contestants = {
        "chapter": their_step(chapter.Model(), their_dtype, B, T),
        **peers,
        "ours, not compiled": lambda: train_step(plain, plain_batch),
        "ours": lambda: train_step(state, batch),
    }
    seconds = in_turn(contestants, 40 if cuda else 5)
    speed = {name: B * T / of_one for name, of_one in seconds.items()}
    limit = B * T / product_seconds(B, T, GPTConfig())
    memory = (None, None) if cuda else tuple(in_process(_two_steps, ours, B, T)[1] for ours in (False, True))
    note = "; ".join(f"{name} {speed[name]:,.0f}" for name in contestants if name not in ("chapter", "ours"))
    if cuda:
        card = torch.cuda.get_device_name()
        peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in card), None)
        flops = 6 * GPTMini(GPTConfig()).count_parameters() * speed["ours"]
        note += f"; {flops / 1e12:.0f} TFLOP/s" + (f", {flops / peak / 1e12:.0%} of the card's" if peak else "")
        note += f"; 200M tokens in {CHAPTER_RUN / speed['ours']:.0f} s"
    what = f"step of {B} x {T}, {str(DTYPE).removeprefix('torch.')} on {DEVICE.type}"
    return [Row("train", what, "tok/s", speed["chapter"], speed["ours"], limit, *memory, note)]


def weights_seconds() -> float:
    """Return the seconds to multiply one row by every matrix in the faster layout: the least that a token costs."""
    config = GPTConfig()
    C, H, V = config.d_model, config.d_hidden, config.vocab_size
    shapes = [(C, 3 * C), (C, C), (C, H), (C, H), (H, C)] * config.n_layer + [(C, V)]
    pairs = [(torch.randn(1, a), torch.randn(a, b)) for a, b in shapes]
    with torch.inference_mode():
        return in_turn({"products": lambda: [x @ weight for x, weight in pairs]}, 100)["products"]


def llama(model: GPTMini):
    """Return a model of the same size in transformers, or None if transformers is not installed."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    c = model.config
    sizes = {"hidden_size": c.d_model, "intermediate_size": c.d_hidden, "num_hidden_layers": c.n_layer}
    sizes |= {"num_attention_heads": c.n_head, "vocab_size": c.vocab_size, "max_position_embeddings": c.max_len}
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).eval()


def generate(source: str, large: bool) -> list[Row]:
    """Generate stories of 500 tokens on the CPU, one and 32 at a time, and the first token after loading."""
    rows, count = [], 500
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "final.pt"
        state = TrainState.new(new_model(GPTConfig()), TrainConfig(), torch.float32)
        save_checkpoint(path, state.model_checkpoint())

        def first() -> None:
            next(stream(load_model(path), [1, 2, 3], 1, seed=0))

        rows.append(Row("generate", "first token, from load_model", "s", None, in_turn({"ours": first}, 5)["ours"]))
        model = load_model(path)
    theirs = chapter.Model().eval()
    turns: dict[str, list[float]] = {"chapter": [], "ours": [], "many": [], "transformers": []}
    curve: list[float] = []
    transformer = llama(model)
    for turn in range(4):
        started = time.perf_counter()
        for _ in chapter.generate(theirs, [1, 2, 3, 4, 5], count if large else 200):
            pass
        turns["chapter"].append((count if large else 200) / (time.perf_counter() - started))
        times = [time.perf_counter()]
        for _ in stream(model, [1, 2, 3, 4, 5], count, seed=turn):
            times.append(time.perf_counter())
        turns["ours"].append(count / (times[-1] - times[0]))
        curve = [b - a for a, b in pairwise(times)]
        started = time.perf_counter()
        for _ in stream_batch(model, [[1, 2, 3, 4, 5]] * 32, count, seeds=range(32)):
            pass
        turns["many"].append(32 * count / (time.perf_counter() - started))
        if transformer is not None:
            ids = torch.tensor([[1, 2, 3, 4, 5]])
            sampled = {"do_sample": True, "temperature": 0.8, "top_k": 50, "pad_token_id": 0, "eos_token_id": None}
            started = time.perf_counter()
            with torch.inference_mode():
                generated = transformer.generate(ids, max_new_tokens=count, min_new_tokens=count, **sampled)
            turns["transformers"].append((generated.shape[1] - 5) / (time.perf_counter() - started))
    speed = {name: statistics.median(values) for name, values in turns.items() if values}
    note = (
        f"transformers {speed['transformers']:.0f}; " if "transformers" in speed else "transformers is not installed; "
    )
    early, late = (1 / statistics.median(part) for part in (curve[5:45], curve[-40:]))
    note += f"{early:.0f} around token 25, {late:.0f} around 480"
    if not large:
        note += "; the chapter's way over 200 tokens, at which it is faster"
    rows.append(
        Row(
            "generate",
            "one story of 500 tokens",
            "tok/s",
            speed["chapter"],
            speed["ours"],
            1 / weights_seconds(),
            note=note,
        )
    )
    rows.append(
        Row(
            "generate",
            "32 stories of 500 at once",
            "tok/s",
            speed["chapter"],
            speed["many"],
            note=f"{speed['many'] / speed['ours']:.1f} times one story",
        )
    )
    return rows


def imports(source: str, large: bool) -> list[Row]:
    """Import modules: the time beyond that of torch."""

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)

    rows = []
    for name in ("tinystories_lab", "tinystories_lab.generate", "tinystories_lab.__main__"):
        contestants = {"torch": lambda: start("import torch"), "ours": lambda name=name: start(f"import torch, {name}")}
        seconds = in_turn(contestants, 3)
        extra = seconds["ours"] - seconds["torch"]
        rows.append(
            Row("import", name, "s", None, seconds["ours"], seconds["torch"], note=f"{extra:.2f} s over torch's own")
        )
    return rows


def checkpoint(source: str, large: bool) -> list[Row]:
    """Save the chapter's model: how long the loop stops, with our saves on a CPU and on a GPU."""
    state, batch = our_state(False, 1, 32)
    train_step(state, batch)
    rows, stops = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for background in (False, True):
            writer, seconds = CheckpointWriter(folder, 0, background), []
            for _ in range(5):
                writer.wait()
                started = time.perf_counter()
                writer.save("last.pt", state.checkpoint())
                seconds.append(time.perf_counter() - started)
            writer.wait()
            stops[background] = statistics.median(seconds)
    config = PRESETS["book"].train
    saves = config.total_steps // config.save_every + 1 + config.total_steps // config.keep_every
    for background, where in ((False, "in the loop, as on a CPU"), (True, "by a thread, as on a GPU")):
        note = f"{saves} saves of a book run: {saves * stops[background]:.1f} s"
        rows.append(Row("checkpoint", where, "s", stops[False], stops[background], note=note))
    return rows


def growth(source: str, large: bool) -> list[Row]:
    """Do two and four times the work: the seconds per unit of work at 1x, divided by those at 4x."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stories, tokenizer = corpus(folder, source), load_tokenizer(folder / "tokenizer.json")
        parts = {factor: megabytes_of(stories, 5 * factor) for factor in (1, 2, 4)}
        encoded = in_turn(
            {str(n): partial(write_bin, folder / f"{n}.bin", part["text"][:], tokenizer) for n, part in parts.items()},
            2,
        )
    state, batch = our_state(False, 2, 128)
    trained = in_turn({str(n): lambda n=n: [train_step(state, batch) for _ in range(4 * n)] for n in (1, 2, 4)}, 2)
    model = GPTMini(GPTConfig()).eval()
    generated = in_turn(
        {str(n): lambda n=n: list(islice(stream(model, [1], 10**6, seed=0), 400 * n)) for n in (1, 2, 4)}, 2
    )
    for what, seconds in (
        ("prepare, 5 to 20 MB", encoded),
        ("training, 4 to 16 steps", trained),
        ("generating, 400 to 1,600 tokens", generated),
    ):
        times = ", ".join(f"{n}x {seconds[n]:.2f} s" for n in ("1", "2", "4"))
        rows.append(Row("growth", what, "of linear", None, 4 * seconds["1"] / seconds["4"], 1.0, note=times))
    return rows


STAGES = {
    "prepare": prepare,
    "load": load,
    "loader": loader,
    "train": train,
    "generate": generate,
    "imports": imports,
    "checkpoint": checkpoint,
    "growth": growth,
}
