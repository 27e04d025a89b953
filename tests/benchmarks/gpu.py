"""Measure a CUDA GPU in under five minutes: python -m tests.benchmarks.gpu, from the repository's root.

Parts: a training step beside the peers' own code, with its profile; generation; whether runs repeat and resume exactly;
whole runs of `book` and `fast`; recipes. Each part has a process of its own and prints what it finds, one fact per line.
On a CPU, everything shrinks to a dry run of the same code.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks import chapter, recipe
from tests.benchmarks.measure import hardware, in_turn, synchronize
from tests.benchmarks.stages import DEVICE, DTYPE, PEAK_TFLOPS, llama, product_seconds
from tinystories_lab import trainer
from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.config import TrainConfig
from tinystories_lab.data.toyland import generate_stories
from tinystories_lab.device import compile_model
from tinystories_lab.files import read_log
from tinystories_lab.generate import stream, stream_batch
from tinystories_lab.loader import BinLoader
from tinystories_lab.model import GPTConfig, new_model
from tinystories_lab.optim import set_lr
from tinystories_lab.run import PRESETS
from tinystories_lab.tokenizer import save_tokenizer, train_tokenizer, write_bin
from tinystories_lab.trainer import TrainState, train, train_step

GPU = DEVICE.type == "cuda"
B, T, STEPS, ROUNDS = (32, 512, 40, 4) if GPU else (2, 64, 1, 1)
MICRO = GPTConfig(vocab_size=2_048, n_layer=2, n_head=4, d_model=128, max_len=128)


def say(part: str, text: str) -> None:
    print(f"{part}: {text}", flush=True)


def make_data(folder: Path) -> None:
    """Write token files of built-in stories."""
    stories = list(generate_stories(40_000 if GPU else 2_000))
    tokenizer = train_tokenizer(stories[:20_000], 8_000)
    save_tokenizer(tokenizer, folder / "tokenizer.json")
    write_bin(folder / "train.bin", stories[200:], tokenizer)
    write_bin(folder / "val.bin", stories[:200], tokenizer)


# --- a training step


def our_steps(
    data: Path, preset: str, compiled: bool = True, graph: bool = True, dtype: torch.dtype = DTYPE
) -> partial:
    """Return a function that takes some of our training steps and returns the last loss."""
    config = replace(PRESETS[preset].train, batch_size=B, seq_len=T, seq_len_start=None)
    loader = BinLoader(data / "train.bin", B, T, device=DEVICE)
    shape = replace(PRESETS[preset].model, vocab_size=loader.info.vocab_size)
    state = TrainState.new(new_model(shape).to(DEVICE), config, dtype)

    def warm_up(forward: Callable) -> None:
        trainer._loss(forward, *loader.batch(0), dtype).backward()
        state.optimizer.zero_grad()

    if compiled and GPU:
        state.forward, seconds = compile_model(state.model, DEVICE, 1e18, warm_up)
        say("step", f"{preset} compiled in {seconds:.1f} s")
    if not graph:
        state.update = partial(trainer._forward_backward_update, state)

    def steps(count: int) -> float:
        for _ in range(count):
            set_lr(state.optimizer, 1e-4)
            loss, _ = train_step(state, loader.batch(state.step))
        return loss.item()

    steps(5)
    return partial(steps)


def their_steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Path, compiled: bool) -> partial:
    """Return a function that trains another project's model as its own script does: no wait for the loss."""
    forward, loader = torch.compile(model) if compiled and GPU else model, chapter.Loader(data / "train.bin", B, T)

    def steps(count: int) -> float:
        for _ in range(count):
            x, y = (part.pin_memory().to(DEVICE, non_blocking=True) if GPU else part for part in loader.batch())
            with torch.autocast(DEVICE.type, torch.bfloat16):
                returned = forward(x, y)
            loss = returned[1] if isinstance(returned, tuple) else model.last_loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    steps(3)
    return partial(steps)


def chapters_steps(data: Path) -> partial:
    model, loader = chapter.Model().to(DEVICE), chapter.Loader(data / "train.bin", B, T)
    optimizer = chapter.optimizer_of(model)

    def steps(count: int) -> float:
        return [chapter.step(model, optimizer, *loader.batch(), DTYPE) for _ in range(count)][-1]

    return partial(steps)


def peers(folder: Path | None, data: Path) -> dict[str, Callable]:
    """Return the peers: their own model.py if the folder has it, otherwise models of the same form."""
    found, kind = {}, DEVICE.type
    sizes = {
        "nanogpt_model": {"block_size": T, "n_embd": 320, "n_layer": 6, "n_head": 8, "dropout": 0.0, "bias": False}
    }
    sizes["llama2c_model"] = {"max_seq_len": T, "dim": 320, "n_layers": 6, "n_heads": 8, "hidden_dim": 856}
    classes = {"nanogpt_model": ("GPT", "GPTConfig"), "llama2c_model": ("Transformer", "ModelArgs")}
    for name, (model_class, config_class) in classes.items():
        path = folder and folder / f"{name}.py"
        if path and path.exists():
            spec = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
            with contextlib.redirect_stdout(io.StringIO()):
                model = getattr(module, model_class)(getattr(module, config_class)(vocab_size=8_000, **sizes[name]))
                optimizer = model.to(DEVICE).configure_optimizers(0.1, 6e-4, (0.9, 0.95), kind)
        else:
            say("step", f"no {name}.py was given with --peers: a model of its form takes its place")
            model = (chapter.GPT2() if name == "nanogpt_model" else chapter.Model()).to(DEVICE)
            optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=True)
        found[name.removesuffix("_model")] = their_steps(model, optimizer, data, compiled=True)
    return found


def step(options: argparse.Namespace, data: Path) -> None:
    """Take training steps in turn, with and without what makes them fast, and profile ours."""
    contestants = {"chapter": chapters_steps(data), **peers(options.peers, data)}
    contestants["ours, eager"] = our_steps(data, "book", compiled=False, graph=False)
    for preset in ("book", "fast"):
        contestants[f"{preset}, no graph"] = our_steps(data, preset, graph=False)
        contestants[preset] = our_steps(data, preset)
    seconds = in_turn({name: partial(steps, STEPS) for name, steps in contestants.items()}, ROUNDS)
    speed = {name: B * T * STEPS / taken for name, taken in seconds.items()}
    for name, tokens in speed.items():
        ratios = ", ".join(f"{speed[preset] / tokens:.2f}" for preset in ("book", "fast"))
        say("step", f"{name}: {tokens:,.0f} tok/s, {B * T / tokens * 1e3:.2f} ms (book and fast are {ratios} times it)")
    limit = B * T / product_seconds(B, T, GPTConfig())
    say("step", f"matrix products alone: {limit:,.0f} tok/s; book reaches {speed['book'] / limit:.0%}")
    if GPU:
        name = torch.cuda.get_device_name()
        peak = next((tflops for card, tflops in PEAK_TFLOPS.items() if card in name), None)
        used = 6 * 9_952_320 * speed["book"] / 1e12
        say("step", f"{used:.0f} TFLOP/s" + (f", {used / peak:.0%} of the {peak} of {name}" if peak else ""))
        say("step", f"largest memory {torch.cuda.max_memory_allocated() / 2**20:,.0f} MB")
    activity = torch.profiler.ProfilerActivity
    for preset in ("book", "fast"):
        with torch.profiler.profile(activities=[activity.CPU, *([activity.CUDA] if GPU else [])]) as profile:
            contestants[preset](5)
            synchronize()
        spent = {event.key: getattr(event, "self_device_time_total", 0) / 5e3 for event in profile.key_averages()}
        kernels = sum(event.count for event in profile.key_averages() if event.self_device_time_total) / 5
        say("profile", f"{preset}: the GPU works {sum(spent.values()):.2f} ms per step, in {kernels:.0f} kernels")
        for name in sorted(spent, key=spent.get, reverse=True)[:10] if GPU else []:
            say("profile", f"  {spent[name]:.3f} ms {name[:100]}")
    for preset in ("book", "fast"):
        losses = [our_steps(data, preset, compiled=False, graph=graph)(20) for graph in (True, False)]
        say("step", f"{preset}: loss after 25 steps {losses[0]:.6f} with a graph, {losses[1]:.6f} without")


# --- generation


def generation(options: argparse.Namespace, data: Path) -> None:
    """Generate one story and many at once, on the GPU and on the CPU, beside transformers."""
    count, many = (400, 64) if GPU else (20, 2)
    for device in dict.fromkeys([DEVICE, torch.device("cpu")]):
        model = new_model(GPTConfig()).to(device).eval()
        for parameter in model.parameters():
            parameter.data *= 3  # so that the most likely token is far ahead of the second
        ids = list(stream(model, [1, 2, 3], 50, temperature=0))
        uncached = [1, 2, 3]
        with torch.inference_mode():
            for _ in range(50):
                uncached.append(model(torch.tensor([uncached], device=device))[0][0, -1].argmax().item())
        same = sum(one == other for one, other in zip(ids, uncached[3:], strict=True))
        say("generate", f"{device}: {same} of 50 greedy tokens equal those without a cache")
        one, batch = [], []
        for _ in range(3):
            started = time.perf_counter()
            list(stream(model, [1, 2, 3], count, seed=0))
            one.append(count / (time.perf_counter() - started))
            started = time.perf_counter()
            list(stream_batch(model, [[1, 2, 3]] * many, count, seeds=range(many)))
            batch.append(many * count / (time.perf_counter() - started))
        say("generate", f"{device}: one story {statistics.median(one):,.0f} tok/s ({min(one):,.0f} to {max(one):,.0f})")
        say("generate", f"{device}: {many} at once {statistics.median(batch):,.0f} tok/s")
        if (theirs := llama(model)) is not None:
            settings = {"do_sample": True, "temperature": 0.8, "top_k": 50, "pad_token_id": 0, "eos_token_id": None}
            settings |= {"max_new_tokens": count, "min_new_tokens": count}
            prompt, theirs = torch.tensor([[1, 2, 3]], device=device), theirs.to(device)
            theirs.generate(prompt, **settings)
            started = time.perf_counter()
            theirs.generate(prompt, **settings)
            say("generate", f"{device}: transformers {count / (time.perf_counter() - started):,.0f} tok/s")


# --- laws


def laws(options: argparse.Namespace, data: Path) -> None:
    """Two runs are equal, a killed and resumed one too, and a GPU with too little memory splits the batch."""
    total = 300 if GPU else 40
    for dtype in ("bfloat16", "float16") if GPU else ("float32",):
        for optimizer in ("adamw", "muon") if dtype != "float16" else ("muon",):
            runs = [data / f"{dtype}-{optimizer}-{name}" for name in ("one", "two", "killed")]
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.gpu",
                "--session",
                dtype,
                optimizer,
                str(total),
                str(data),
            ]
            sessions = [subprocess.Popen([*command, str(run)], stdout=subprocess.DEVNULL) for run in runs[:2]]
            for session in sessions:
                session.wait()
            kills, log = 0, runs[2] / "loss.jsonl"
            while kills < (3 if GPU else 1):
                before = len(read_log(log))
                session = subprocess.Popen([*command, str(runs[2])], stdout=subprocess.DEVNULL)
                while session.poll() is None and len(read_log(log)) < before + random.randint(5, 9):
                    time.sleep(0.005)
                if session.poll() is not None:
                    break
                session.send_signal(signal.SIGKILL)
                session.wait()
                kills += 1
            subprocess.run([*command, str(runs[2])], check=True, stdout=subprocess.DEVNULL)
            resumed = [row["resumed_from"] for row in read_log(log) if "resumed_from" in row]
            models = [load_checkpoint(run / "final.pt", {"model"})["model"] for run in runs]
            apart = [max((m[k] - models[0][k]).abs().max().item() for k in m) for m in models[1:]]
            found = (
                f"two runs differ by {apart[0]:.1e}; one killed {kills} times, resumed at {resumed}, by {apart[1]:.1e}"
            )
            say("laws", f"{dtype}, {optimizer}: {found}")
    if GPU:
        torch.cuda.set_per_process_memory_fraction(900 * 2**20 / torch.cuda.get_device_properties(0).total_memory)
        state = TrainState.new(new_model(GPTConfig()).to(DEVICE), TrainConfig(), DTYPE)
        ids = torch.randint(8_000, (32, 513), device=DEVICE)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses = [train_step(state, (ids[:, :-1], ids[:, 1:]))[0].item() for _ in range(6)]
        parts = state.config.grad_accum_steps
        say("laws", f"with 900 MB: {parts} micro-batches, losses {losses[0]:.3f} to {losses[-1]:.3f}")
        for warning in caught:
            say("laws", f"  {warning.message}")


def session(dtype: str, optimizer: str, total: str, data: str, run: str) -> None:
    """Train a micro run to its end, in whatever random state this process has."""
    sizes = {"batch_size": 8, "seq_len": 128, "seq_len_start": 32, "total_steps": int(total), "warmup_steps": 20}
    every = {"log_every": 5, "eval_every": 100, "eval_batches": 4, "save_every": 15, "keep_every": 10**6}
    config = TrainConfig(**sizes, **every, peak_lr=2e-3, optimizer=optimizer)
    shape = replace(MICRO, vocab_size=BinLoader(f"{data}/train.bin", 1, 8).info.vocab_size)
    torch.manual_seed(os.getpid())
    list(train(run, data, shape, config, DEVICE, getattr(torch, dtype)))


# --- whole runs


def whole(options: argparse.Namespace, data: Path) -> None:
    """Train `book` and `fast` from the command to final.pt: first with an empty compiler cache, then a short second run."""
    stories = data / "stories.txt"
    stories.write_text("<|endoftext|>\n".join(generate_stories(40_000 if GPU else 2_000)))
    preset = ("book", "fast") if GPU else ("tiny",)
    base = [sys.executable, "-m", "tinystories_lab", "--source", str(stories), "--data", "whole"]
    for stage in ("prepare", "tokenizer"):
        subprocess.run([*base, stage, "--preset", preset[0]], check=True, cwd=data, stdout=subprocess.DEVNULL)
    for name in preset:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(data / f"cache-{name}")}
        started = time.perf_counter()
        command = [*base, "train", "--preset", name, "--run", name]
        subprocess.run(command, check=True, cwd=data, env=environment, stdout=subprocess.DEVNULL)
        taken, rows = time.perf_counter() - started, read_log(data / "runs" / name / "loss.jsonl")
        found = f"{rows[-1]['tokens'] / 1e6:.0f}M tokens in {taken:.0f} s, {rows[-1]['seconds']:.0f} s of them steps"
        say(
            "whole",
            f"{name}: {found}; loss {rows[-1]['val_loss']:.3f}; {rows[-1]['tokens_per_second']:,} tok/s at the end",
        )
        if GPU:  # a second run finds the compiled model in the cache; its first row comes after that
            started = time.perf_counter()
            again = subprocess.Popen([*command[:-1], "again"], cwd=data, env=environment, stdout=subprocess.DEVNULL)
            while again.poll() is None and not read_log(data / "runs" / "again" / "loss.jsonl"):
                time.sleep(0.05)
            again.kill()
            again.wait()
            say("whole", f"{name}: a second run reaches its first step after {time.perf_counter() - started:.1f} s")
            (data / "runs" / "again").rename(data / f"again-{name}")


def recipes(options: argparse.Namespace, data: Path) -> None:
    """Compare `fast` with `book`, and with a `book` of a better learning rate, on the stories of --stories."""
    if options.stories is None:
        return say("recipes", "left out: give real stories with --stories FILE")
    names = ["fast", "book, 2e-3", "book", "fast, NorMuon", "fast, NorMuon and high rates"]
    sizes = {"steps": 900} if GPU else {"steps": 4, "tokens": 128, "seq_len": 64}
    recipe.compare(options.stories, names, data, seeds=[0], say=partial(say, "recipes"), **sizes)


PARTS = {"step": step, "generate": generation, "laws": laws, "whole": whole, "recipes": recipes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--peers", type=Path, help="folder with nanogpt_model.py and llama2c_model.py, their model.py")
    parser.add_argument("--stories", type=Path, help="file of real stories for the recipes")
    parser.add_argument("--seconds", type=float, default=290, help="time for all parts (default: %(default)s)")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--session", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.session:
        return session(*options.session)
    if options.data:
        return PARTS[options.parts[0]](options, options.data)
    deadline = time.monotonic() + options.seconds
    say("machine", json.dumps(hardware()))
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        for part in options.parts or PARTS:
            given = [f"--{name}={path.resolve()}" for name in ("peers", "stories") if (path := getattr(options, name))]
            command = [sys.executable, "-m", "tests.benchmarks.gpu", part, f"--data={folder}", *given]
            started, left = time.perf_counter(), deadline - time.monotonic()
            try:
                status = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=max(1, left))
                for line in status.stderr.splitlines():
                    if "UserWarning" in line:
                        say(part, f"warning: {line.partition('UserWarning: ')[2]}")
                for line in status.stderr.strip().splitlines()[-3:] if status.returncode else []:
                    say(part, f"failed: {line}")
            except subprocess.TimeoutExpired:
                say(part, "stopped: no time is left (--seconds)")
            say(part, f"took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
