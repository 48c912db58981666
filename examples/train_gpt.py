"""Train a small GPT on Shakespeare, character by character, in a minute or two on two cores.

    python examples/train_gpt.py                    # 4,000 steps, then what it would write
    python examples/train_gpt.py --steps 50         # a try
    python examples/train_gpt.py --resume           # go on where a run was interrupted
    python examples/train_gpt.py --config medium    # a bigger one, for an hour

It reads the text beside this file, and keeps a checkpoint in examples/out/gpt.safetensors: at each
evaluation, at the end, and when it is interrupted. A resumed run ends with the same bits as one
that was not interrupted.

The loss to reach is that of PyTorch 2.13 eager with the same recipe, `benchmarks/gpt_torch.py`:
after 4,000 steps 1.653 on the validation windows, the last tenth of each hundredth of the text.
This one reaches 1.650.
"""

from __future__ import annotations

import argparse
import math
import signal
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

import tinyc
from tinyc import compiler, data, nn
from tinyc.models import GPT, GPTConfig

OUT = Path(__file__).parent / "out" / "gpt.safetensors"
SIZES = {
    "small": {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128, "bias": False},
    "medium": {"block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384, "bias": False},
}
BATCH = {"small": 12, "medium": 8}
WARM_UP, CLIP = 100, 1.0
# What a resumed run takes from its checkpoint, because it decides about every bit.
KEPT = ("config", "steps", "batch", "lr", "dropout", "seed")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a GPT on the characters of Shakespeare.")
    parser.add_argument("--config", choices=SIZES, default="small", help="how large the model is")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, help="windows in a step (small: 12, medium: 8)")
    parser.add_argument("--lr", type=float, default=1e-3, help="the highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--windows", type=int, help="validation windows to judge by (all)")
    parser.add_argument("--stop-after", type=int, metavar="STEP", help="as an interrupt there")
    parser.add_argument("--checkpoint", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--sample", type=int, default=400, help="characters to write at the end")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--data", help="a text file to learn instead of Shakespeare")
    args = parser.parse_args()
    args.batch = args.batch or BATCH[args.config]
    for name in ("steps", "batch", "evaluate_every", "windows", "stop_after"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not args.lr > 0 or not 0 <= args.dropout < 1:
        parser.error("--lr must be above 0, --dropout at least 0 and below 1")
    if args.sample < 0 or not args.temperature >= 0:
        parser.error("--sample and --temperature must be at least 0")
    return args


def learning_rate(step: int, steps: int, highest: float) -> float:
    """A warm-up, then half a cosine down to a tenth."""
    if step < WARM_UP:
        return highest * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return highest * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


class Interrupts:
    """Lets Ctrl-C end the run between two steps, so that what is saved is whole."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self.ask)

    def ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second ends it at once


def programs(model: GPT, optimizer: tinyc.optim.Optimizer):
    """Return the step of training and the loss without one, each of them one native program."""

    @tinyc.jit
    def step(x: tinyc.Tensor, y: tinyc.Tensor) -> tinyc.Tensor:
        _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss

    @tinyc.jit
    def loss(x: tinyc.Tensor, y: tinyc.Tensor) -> tinyc.Tensor:
        with tinyc.no_grad():
            return model(x, y)[1]

    return step, loss


class Training:
    """A model, its optimizer and how many steps they have behind them."""

    def __init__(self, args: argparse.Namespace, vocabulary: str) -> None:
        self.args, self.vocabulary, self.done = args, vocabulary, 0
        tinyc.manual_seed(args.seed)
        sizes = SIZES[args.config]
        self.config = GPTConfig(vocab_size=len(vocabulary), dropout=args.dropout, **sizes)
        self.model = GPT(self.config)
        self.optimizer = self.model.configure_optimizer(0.1, args.lr, betas=(0.9, 0.99))
        self.step, self.loss = programs(self.model, self.optimizer)

    def advance(self, windows: data.TokenWindows) -> float:
        """Take one step; its batch depends on the seed and the number of the step alone."""
        args = self.args
        random = np.random.default_rng([args.seed, self.done])
        x, y = windows.batch(random.integers(len(windows), size=args.batch))
        self.optimizer.lr = learning_rate(self.done, args.steps, args.lr)  # compiles nothing
        loss = self.step(tinyc.Tensor(x), tinyc.Tensor(y)).item()
        self.done += 1
        return loss

    def validate(self, windows: data.TokenWindows) -> float:
        """Return the mean loss over all windows."""
        self.model.eval()
        total = sum(self.loss(x, y).item() * len(x) for x, y in data.DataLoader(windows, 50))
        self.model.train()
        return total / len(windows)

    def save(self) -> None:
        """Write the checkpoint in one go: a crash leaves the last one whole."""
        self.args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": tinyc.get_rng_state(),
            "done": self.done,
            "vocabulary": self.vocabulary,
            "sizes": asdict(self.config),
            "options": {name: getattr(self.args, name) for name in KEPT},
        }
        tinyc.save(state, self.args.checkpoint)

    def restore(self, state: dict) -> None:
        """Take over all that `save` wrote."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        tinyc.set_rng_state(state["random"])
        self.done = state["done"]


def begin(args: argparse.Namespace, vocabulary: str) -> Training:
    """Return a training at its start, or where its checkpoint left off."""
    if not args.resume:
        return Training(args, vocabulary)
    try:
        state = tinyc.load(args.checkpoint)
        vars(args).update(state["options"])
    except FileNotFoundError:
        sys.exit(f"--resume: there is no checkpoint {args.checkpoint}; run without --resume first")
    except (KeyError, TypeError, ValueError) as error:
        sys.exit(f"--resume: {args.checkpoint} is no checkpoint of this example: {error}")
    if state["vocabulary"] != vocabulary:
        sys.exit(f"--resume: {args.checkpoint} was trained on a text of other characters")
    training = Training(args, vocabulary)
    training.restore(state)
    print(f"resumed {args.checkpoint} after step {training.done}")
    return training


def progress(start: int, steps: int):
    """Return a function that shows the step and its loss: a tqdm bar, or a line now and then."""
    try:
        from tqdm import tqdm
    except ImportError:
        return lambda i, loss: i % 100 or print(f"step {i:5d} of {steps}: loss {loss:.4f}")
    bar = tqdm(total=steps, initial=start, unit="step")

    def show(i: int, loss: float) -> None:
        bar.update(i - bar.n)
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if i == steps:
            bar.close()

    return show


def train(
    training: Training,
    windows: data.TokenWindows,
    held_out: data.TokenWindows,
    interrupts: Interrupts,
) -> dict:
    """Run the steps that are left; return what there is to report."""
    args = training.args
    show = progress(training.done, args.steps)
    losses, times, validation = [], [], math.nan
    while training.done < args.steps:
        before = time.perf_counter()
        losses.append(training.advance(windows))
        times.append(time.perf_counter() - before)
        show(training.done, losses[-1])
        if not math.isfinite(losses[-1]):
            sys.exit(
                f"the loss is {losses[-1]} at step {training.done}: training has diverged; try a "
                f"learning rate below {args.lr:g} with --lr"
            )
        if interrupts.asked or training.done == args.stop_after:
            training.save()
            sys.exit(
                f"stopped after step {training.done}, saved {args.checkpoint}; --resume goes on"
            )
        if training.done % args.evaluate_every == 0 or training.done == args.steps:
            training.save()
            validation = training.validate(held_out)
            recent = statistics.fmean(losses[-100:])
            print(f"\nstep {training.done}: loss {recent:.4f}, validation {validation:.4f}")
    return {"losses": losses, "times": times, "validation": validation}


def main() -> None:
    args = arguments()
    start = time.perf_counter()
    try:
        text = data.shakespeare(args.data)
        tokenizer = data.CharTokenizer(text)
        training = begin(args, tokenizer.vocabulary)
        tokens, length = tokenizer.encode(text), training.config.block_size
        windows, held_out = data.split_windows(tokens, length)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"--data: {error}")
    if args.windows:
        held_out = data.TokenWindows(tokens, held_out.starts[: args.windows], length)
    interrupts = Interrupts()
    count = sum(p.numel() for p in training.model.parameters())
    print(f"{count:,} parameters, {len(tokenizer)} characters, {args.steps} steps", flush=True)
    found = train(training, windows, held_out, interrupts)
    seconds = time.perf_counter() - start
    print(f"\n{sample(training, tokenizer)}\n")
    table = {"checkpoint": str(args.checkpoint)}
    if found["losses"]:
        losses, times = found["losses"][-100:], found["times"]
        table |= {
            "training": f"loss {statistics.fmean(losses):.4f} over the last {len(losses)} steps",
            "validation": f"loss {found['validation']:.4f} over {len(held_out)} windows",
            "time": f"{seconds:.1f} s in all, {times[0]:.1f} s for the first step and its compile",
            "a step": f"{statistics.median(times) * 1e3:.1f} ms (median), {args.batch} windows of "
            f"{length} characters",
            "programs": f"{compiler.compilations} compiled or loaded",
        }
    for name, line in table.items():
        print(f"{name:12}{line}")


def sample(training: Training, tokenizer: data.CharTokenizer) -> str:
    """Return what the model writes after an empty line."""
    args = training.args
    prompt = tinyc.Tensor(tokenizer.encode("\n")[None])
    found = training.model.generate(prompt, args.sample, args.temperature, seed=args.seed)
    return tokenizer.decode(found[0]).strip("\n")


if __name__ == "__main__":
    main()
