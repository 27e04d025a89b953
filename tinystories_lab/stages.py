"""The five stages of a run over its workspace, as the shell runs them: each starts from the files of the one before."""

from itertools import islice

import torch

from tinystories_lab.checkpoint import load_model
from tinystories_lab.compare import run_row
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.export import export_hugging_face
from tinystories_lab.generate import tell_samples
from tinystories_lab.mirror import DATA_FILES, Mirror
from tinystories_lab.model import GPTMini
from tinystories_lab.ranks import rank
from tinystories_lab.report import in_short, look_back, write_report
from tinystories_lab.review import save_samples
from tinystories_lab.runlog import read_log, read_rows, with_progress
from tinystories_lab.stories import load_stories, open_stories
from tinystories_lab.tokenizer import BinInfo, load_tokenizer, save_tokenizer, train_tokenizer, write_bin
from tinystories_lab.trainer import train
from tinystories_lab.words import prompts_for
from tinystories_lab.workspace import Workspace, save_config


def prepare(lab: Workspace) -> None:
    """stories -> cleaned and split"""
    _, report = load_stories(lab.source, lab.data_dir, max_stories=lab.preset.max_stories)
    print(report)


def tokenizer(lab: Workspace) -> None:
    """cleaned stories -> tokenizer.json, train.bin, val.bin"""
    stories, report = open_stories(lab.data_dir)
    made = lab.data_dir / "val.json"  # written last
    if not made.exists() or made.stat().st_mtime < (lab.data_dir / "stories" / "report.json").stat().st_mtime:
        learn_from = islice(stories["train"]["text"], lab.preset.tokenizer_stories)
        bpe = train_tokenizer(learn_from, lab.preset.model.vocab_size)
        save_tokenizer(bpe, lab.data_dir / "tokenizer.json")
        write_bin(lab.data_dir / "train.bin", stories["train"], bpe, lab.preset.max_tokens, report.source)
        write_bin(lab.data_dir / "val.bin", stories["validation"], bpe, source=report.source)
    for name in ("train.bin", "val.bin"):
        info = BinInfo.of(lab.data_dir / name)
        print(f"{name}: {info.tokens:,} tokens of {info.stories:,} stories, {info.bytes_per_token:.2f} bytes a token")


def train_stage(lab: Workspace) -> None:
    """train.bin -> last.pt, final.pt, loss.jsonl, samples from before and after"""
    model_config, config = lab.model_config, lab.preset.train
    device, why_device = choose_device()
    _, why_dtype = choose_dtype(device)
    rows = train(lab.run_dir, lab.data_dir, model_config, config, mirror_root=lab.mirror_root)
    bpe = load_tokenizer(lab.data_dir / "tokenizer.json")
    torch.manual_seed(config.seed)  # as `train` does, so these are the weights that the run starts from
    untrained = GPTMini(model_config)
    print(f"{untrained.count_parameters():,} parameters; {why_device}; {why_dtype}")
    if rank() == 0:
        if not read_rows(lab.run_dir / "samples.jsonl"):
            prompts = prompts_for(lab.data_dir / "val.bin", bpe)
            save_samples(lab.run_dir, "before", tell_samples(untrained, bpe, lab.preset.sample_tokens, prompts=prompts))
        save_config(lab)
        rows = with_progress(rows, config.total_steps)
    for _ in rows:
        pass
    print(f"finished: {lab.run_dir / 'final.pt'}")


def generate_stage(lab: Workspace) -> None:
    """final.pt -> ten stories in samples.jsonl"""
    model = load_model(lab.run_dir / "final.pt", choose_device()[0])
    bpe = load_tokenizer(lab.run_dir / "tokenizer.json")
    prompts = prompts_for(lab.data_dir / "val.bin", bpe)
    samples = tell_samples(model, bpe, lab.preset.sample_tokens, prompts=prompts)
    save_samples(lab.run_dir, "after", samples)
    print(f"{len(samples)} stories kept in {lab.run_dir / 'samples.jsonl'}")


def retrospective(lab: Workspace) -> None:
    """the run's files -> its curves and report.md"""
    from tinystories_lab.notebook.curves import loss_curve  # matplotlib is needed here only

    run_row(lab.run_dir)  # raises where there is nothing to look back on
    log = read_log(lab.run_dir / "loss.jsonl")
    for name, book in (("loss_curve.png", False), ("loss_by_tokens.png", True)):
        figure = loss_curve(log, lab.model_config.vocab_size, book)
        figure.savefig(lab.run_dir / name, dpi=120, bbox_inches="tight")
    back = look_back(lab)
    print(in_short(back))
    print(f"  report      {write_report(back)}")
    print(f"  files       {lab.run_dir.resolve()} and {lab.data_dir.resolve()}")


def export_stage(lab: Workspace) -> None:
    """final.pt -> hugging_face/ in the run's folder, which transformers loads"""
    folder = export_hugging_face(lab.run_dir, lab.run_dir / "hugging_face")
    for path in sorted(folder.iterdir()):
        print(f"  {path.stat().st_size:12,} bytes  {path}")
    print(f"to share it on the Hub: hf upload YOU/{lab.run_dir.name} {folder}")


STAGES = {
    "prepare": prepare,
    "tokenizer": tokenizer,
    "train": train_stage,
    "generate": generate_stage,
    "retrospective": retrospective,
}
COMMANDS = STAGES | {"export": export_stage}


def has_data(lab: Workspace) -> bool:
    """Whether the files that training reads are all there."""
    return all((lab.data_dir / name).exists() for name in DATA_FILES)


def fetch(lab: Workspace) -> None:
    """Bring back from the mirror what this machine lacks of run and data; a run that comes without data has it made again.

    Raises as `Mirror.fetch`. Whether data made again is the run's own is for `train` to say, by its hash.
    """
    if not lab.mirror_root:
        return
    mirror = Mirror(lab.run_dir, lab.data_dir, lab.mirror_root)
    if mirror.fetch():
        print(f"fetched the run from {mirror.mirror_dir}")
    if (lab.run_dir / "last.pt").exists() and not has_data(lab):
        print("its data is not on the mirror, and is made again")
        prepare(lab)
        tokenizer(lab)


def mirror(lab: Workspace) -> None:
    """Copy what has changed of run and data to the mirror, if there is one, and say how far it got."""
    if lab.mirror_root:
        try:
            with Mirror(lab.run_dir, lab.data_dir, lab.mirror_root) as copy:
                pass  # leaving waits for a whole pass
            print(f"{copy} in {copy.mirror_dir}")
        except BlockingIOError as error:  # whoever trains the run copies this too
            print(f"not copied now: {error}")
