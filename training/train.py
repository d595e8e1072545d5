"""Train the embedded model: ``python -m training.train``.

Progress goes to the terminal and to ``log.jsonl`` in the run's folder. A run that was
killed resumes from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from .export import VOCABULARY, WEIGHTS
from .losses import augment, step_losses
from .model import Axis, build_model, model_config, normalise_pixels, whiten_patches
from .pool import Pool, generate, shards_done
from .settings import RUNS, SMOKE, Settings
from .vocabulary import Tokenizer, write_vocabulary


class Average:
    """Exponential moving average of the weights."""

    EVERY = 4  # steps

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {k: v.clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        if self.steps % self.EVERY:
            return
        decay = min(self.decay, self.steps / (self.steps + 10)) ** self.EVERY
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)


def make_optimizers(
    model: nn.Module, axis: Axis, settings: Settings
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformers, AdamW for the rest."""
    matrices, others, vectors = [], [], list(axis.parameters())
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "resblocks" in name:
            matrices.append(parameter)
        else:
            (others if parameter.ndim >= 2 else vectors).append(parameter)
    rate, decay = settings.learning_rate, settings.weight_decay
    adam = torch.optim.AdamW(
        [
            {"params": others, "weight_decay": decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.98),
    )
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, muon]


def learning_rate(progress: float, settings: Settings) -> float:
    """Warm up, stay, then fall to zero over the last part of the run."""
    rising = min(1.0, (progress + 1e-4) / settings.warmup)
    falling = min(1.0, max(0.0, 1 - progress) / settings.decay)
    return settings.learning_rate * min(rising, falling)


class Trainer:
    """One process of a run."""

    def __init__(
        self,
        folder: Path,
        pool: Path,
        settings: Settings,
        *,
        rank: int = 0,
        minutes: float | None = None,
        start_from: Path | None = None,
    ) -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        torch.manual_seed(settings.seed)
        self.folder, self.settings = folder, settings
        self.rank, self.minutes = rank, minutes
        self.tokenizer = Tokenizer(folder / "bpe_merges.txt.gz")
        self.config = model_config(settings, self.tokenizer.size)
        self.model = build_model(self.config)
        self.pool = Pool(pool)
        self.step, self.images, self.seconds = 0, 0, 0.0
        self.progress = 0.0
        rng = np.random.default_rng(settings.seed)
        count = min(256, settings.pairs_per_shard)
        views = augment(self.pool.batch(rng, count), 0)
        whiten_patches(
            self.model,
            normalise_pixels(views.images[:, 0]),
            torch.Generator().manual_seed(settings.seed),
        )
        # Several processes are for CPUs; on a GPU one is enough.
        gpu = settings.processes == 1 and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        self.model.to(self.device)
        self.axis = Axis(settings.embed_dim).to(self.device)
        self.optimizers = make_optimizers(self.model, self.axis, settings)
        self.parameters = [*self.model.parameters(), *self.axis.parameters()]
        self.average = Average(self.model, settings.ema)
        own = folder / "checkpoint.pt"
        if own.exists():
            self.load(own)
        elif start_from is not None and start_from.is_dir():
            self.model.load_state_dict(load_file(start_from / WEIGHTS), strict=False)
            self.average = Average(self.model, settings.ema)
        elif start_from is not None:
            self.load(start_from)
            self.step, self.images, self.seconds, self.progress = 0, 0, 0.0, 0.0

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.axis.load_state_dict(state["axis"])
        self.average.weights = state["average"]
        self.average.steps = state["average_steps"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.images = state["step"], state["images"]
        self.seconds, self.progress = state["seconds"], state["progress"]

    def save(self, name: str) -> None:
        """Write a checkpoint so that a kill leaves the old or the new one."""
        partial = self.folder / f"{name}.partial"
        torch.save(
            {
                "config": self.config,
                "model": self.model.state_dict(),
                "axis": self.axis.state_dict(),
                "average": self.average.weights,
                "average_steps": self.average.steps,
                "optimizers": [o.state_dict() for o in self.optimizers],
                "step": self.step,
                "images": self.images,
                "seconds": self.seconds,
                "progress": self.progress,
            },
            partial,
        )
        os.replace(partial, self.folder / name)

    def log(self, **values: Any) -> None:
        values = {
            "step": self.step,
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "progress": round(self.progress, 4),
            **values,
        }
        line = json.dumps(values)
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def validate(self) -> dict[str, float]:
        from .evaluate import validate  # imports the whole library

        return validate(self.average.weights, self.config, self)

    def _own_progress(self) -> float:
        """Share of the run that is done; the clock of the first process counts."""
        if self.minutes is not None:
            return self.seconds / (60 * self.minutes)
        step = 2 * self.settings.pairs_per_step * self.settings.processes
        return (self.images + step) / self.settings.images

    def _share_gradients(self) -> None:
        """Average the gradients of all processes, and agree on the progress."""
        if self.settings.processes == 1:
            self.progress = self._own_progress()
            return
        mine = torch.tensor([self._own_progress() if self.rank == 0 else 0.0])
        flat = torch.cat([*(p.grad.flatten() for p in self.parameters), mine])
        dist.all_reduce(flat)
        self.progress = flat[-1].item()
        flat /= self.settings.processes
        at = 0
        for parameter in self.parameters:
            size = parameter.numel()
            parameter.grad.copy_(flat[at : at + size].view_as(parameter))
            at += size

    def run_step(self) -> dict[str, float]:
        settings = self.settings
        # Every step has its own generator, so that a resumed run repeats nothing.
        rng = np.random.default_rng([settings.seed, self.rank, self.step])
        shared = np.random.default_rng([settings.seed, self.step])
        rows = self.pool.batch(rng, settings.pairs_per_step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=False)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.progress, settings)
        loss, parts = step_losses(
            self.model, self.axis, self.tokenizer, rows, settings, rng, shared
        )
        loss.backward()
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._share_gradients()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.model)
        self.step += 1
        self.images += 2 * settings.pairs_per_step * settings.processes
        return parts

    def run(self) -> None:
        settings = self.settings
        sums: dict[str, list[float]] = {}
        means: dict[str, float] = {}
        clock = time.monotonic()
        since_log = since_save = since_validation = self.seconds
        decaying = self.progress >= 1 - settings.decay
        while self.progress < 1:
            for name, value in self.run_step().items():
                sums.setdefault(name, []).append(value)
            now = time.monotonic()
            self.seconds += min(now - clock, 10.0)  # less when it was suspended
            clock = now
            if self.step % 50 == 0:
                self.pool.refresh()
            if self.rank > 0:
                continue
            if not decaying and self.progress >= 1 - settings.decay:
                decaying = True
                self.save("before_decay.pt")
            if settings.smoke or self.seconds - since_log > 60:
                means = {k: round(float(np.mean(v)), 4) for k, v in sums.items()}
                self.log(shards=len(self.pool.files), **means)
                sums, since_log = {}, self.seconds
            if self.seconds - since_save > settings.checkpoint_seconds:
                self.save("checkpoint.pt")
                since_save = self.seconds
            if self.seconds - since_validation > settings.validation_seconds:
                self.log(validation=self.validate())
                since_validation = self.seconds
                clock = time.monotonic()
        if self.rank == 0:
            if sums:  # or else the last step has just been logged
                means = {k: round(float(np.mean(v)), 4) for k, v in sums.items()}
            self.save("checkpoint.pt")
            self.log(finished=True, **means)
            if not settings.smoke:
                self.log(validation=self.validate())


def _worker(rank: int, rendezvous: str, arguments: dict[str, Any]) -> None:
    settings: Settings = arguments["settings"]
    if settings.processes > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=settings.processes,
        )
    Trainer(rank=rank, **arguments).run()


def _generator(
    folder: Path, settings: Settings, worker: int, workers: int, limit: int | None
) -> None:
    # Generation takes what the training leaves of the processors.
    os.nice(0 if limit is not None else 19)
    generate(folder, settings, worker, workers, limit)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default=None, help="name of the run (a folder)")
    parser.add_argument("--smoke", action="store_true", help="a tiny run, for CI")
    parser.add_argument("--minutes", type=float, help="limit by time, not by images")
    parser.add_argument("--images", type=int, help="number of images to see")
    parser.add_argument("--processes", type=int, help="number of processes")
    parser.add_argument("--pool", type=Path, help="folder of generated pairs")
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="PATH",
        help="checkpoint of another run, or the folder of an exported model",
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=NUMBER",
        help="change one number of the settings",
    )  # fmt: skip
    options = parser.parse_args(argv)
    settings = SMOKE if options.smoke else Settings()
    changes: dict[str, Any] = {}
    for name in ("images", "processes", "seed"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    for item in options.set:
        name, _, number = item.partition("=")
        changes[name] = type(getattr(settings, name))(float(number))
    settings = dataclasses.replace(settings, **changes)
    folder = RUNS / (options.run or ("smoke" if options.smoke else "main"))
    folder.mkdir(parents=True, exist_ok=True)
    pool = options.pool or (folder if options.smoke else RUNS) / "pool"
    (folder / "settings.json").write_text(
        json.dumps(dataclasses.asdict(settings), indent=1)
    )
    vocabulary = folder / "bpe_merges.txt.gz"
    start = options.start_from
    if not vocabulary.exists() and start:
        folder_of_start = start if start.is_dir() else start.parent
        shutil.copyfile(folder_of_start / VOCABULARY, vocabulary)
    elif not vocabulary.exists():
        write_vocabulary(vocabulary, settings.merges)

    context = multiprocessing.get_context("spawn")
    if shards_done(pool) < settings.first_shards:
        workers = settings.processes
        makers = [
            context.Process(
                target=_generator,
                args=(pool, settings, k, workers, settings.first_shards),
            )
            for k in range(workers)
        ]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
    arguments = {
        "folder": folder,
        "pool": pool,
        "settings": settings,
        "minutes": options.minutes,
        "start_from": options.start_from,
    }
    rendezvous = str(folder / f"rendezvous_{os.getpid()}")
    helpers = [
        context.Process(target=_worker, args=(rank, rendezvous, arguments), daemon=True)
        for rank in range(1, settings.processes)
    ]
    if not options.smoke:
        helpers.append(
            context.Process(
                target=_generator, args=(pool, settings, 0, 1, None), daemon=True
            )
        )
    for helper in helpers:
        helper.start()
    _worker(0, rendezvous, arguments)
    Path(rendezvous).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
