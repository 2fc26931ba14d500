"""The training loop of pre-training: one step after another, until the recipe's last one or a signal."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor
from torch.overrides import TorchFunctionMode

from HiEndSegLib.errors import HiEndSegError, OutputError
from HiEndSegLib.networks.hi_end_mae import HiEndMAE

from . import pretrain_state as state_files
from .pretrain_crops import Batches, Crops
from .pretrain_log import TRAINING, VALIDATION, Board, Progress, Table, picture, tell, warn, write_png
from .pretrain_ranks import everywhere, gather_tensor, loader_ended, share
from .pretrain_state import Recipe


class FloatAttention(TorchFunctionMode):
    """Fused attention in float32 inside bf16 autocast. PyTorch 2.13's CPU kernel is slower backwards in bf16: with it a
    step of vit_tiny_12p takes 0.125 s per crop, this way 0.096 s (one core, 96^3)."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention and args[0].dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                return function(*(a.float() for a in args[:3]), *args[3:], **(kwargs or {})).to(torch.bfloat16)
        return function(*args, **(kwargs or {}))


@dataclass
class Pace:
    """How often things happen (steps), and the crops per held-out volume of the validation loss."""

    log: int = 10
    save: int = 500
    validate: int = 500
    crops: int = 8


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up over the first steps (the first one is not wasted on 0), then a cosine to 0."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    part = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * part))


def parameter_groups(network: torch.nn.Module, recipe: Recipe) -> list[dict]:
    """One group decayed whole, as the paper's code really does; or only matrices and kernels, as it meant to."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if recipe.decay_all:
        return [{"params": parameters, "weight_decay": recipe.weight_decay}]
    tokens = {id(p) for name, p in network.named_parameters() if name.endswith("_token")}
    plain = [p for p in parameters if p.dim() <= 1 or id(p) in tokens]
    chosen = {id(p) for p in plain}
    return [{"params": [p for p in parameters if id(p) not in chosen], "weight_decay": recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0}]


class Training:
    """A run in progress. `run()` trains; everything it needs was checked before."""

    def __init__(self, fabric: Fabric, network: HiEndMAE, crops: Crops, held_out: Crops | None, recipe: Recipe,
                 run: Path, pace: Pace, *, micro: int, workers: int, state: dict | None, origin: Path | None):
        self.fabric, self.crops, self.held_out = fabric, crops, held_out
        self.recipe, self.folder, self.pace, self.micro, self.workers = recipe, run, pace, micro, workers
        shapes = state_files.shapes_of(network)
        self.network = fabric.setup_module(network)
        # A fused optimiser takes the scaler's factor out of the gradients itself, too late for cutting their norm.
        fused = fabric.device.type in ("cpu", "cuda") and not (recipe.clip and recipe.precision == "16-mixed")
        self.optimizer = fabric.setup_optimizers(torch.optim.AdamW(
            parameter_groups(self.network, recipe), lr=recipe.lr, betas=(0.9, 0.95), fused=fused))
        self.step, self.seconds = 0, 0.0
        if state is not None:
            state_files.restore(self.network.module, self.optimizer.optimizer, state, origin, shapes)
            self.step, self.seconds = state["step"], float(state.get("seconds", 0.0))
            if state.get("precision"):
                fabric.strategy.precision.load_state_dict(state["precision"])
        slow = fabric.device.type == "cpu" and recipe.precision == "bf16-mixed"
        self.attention = FloatAttention if slow else nullcontext
        self.losses: list[Tensor] = []                      # (micro-batches of one step,), since the last flush
        self.stopping = self.agreed = False                 # a signal came here; a signal came to any rank
        first = fabric.is_global_zero
        self.log = Table(run / "log.csv", TRAINING, keep=self.step) if first else None
        self.validations = Table(run / "validation.csv", VALIDATION, keep=self.step if state else -1) if first else None
        self.board = Board(run / "tensorboard", self.step) if first else None
        self.saved = self.step if state is not None else -1

    # ------------------------------------------------------------------------------------------------------ steps

    def run(self) -> bool:
        """Train to the end, or to the step at which a signal was noticed. Returns whether the recipe is done."""
        recipe, pace = self.recipe, self.pace
        progress = Progress(self.step, recipe.steps, recipe.batch)
        began = last = time.monotonic()
        earlier = self.seconds
        if self.step == 0:
            self._validate()
        with self._signals():
            for micro_batches in self._batches():
                with self.attention():
                    self.optimizer_step(micro_batches)
                done = self.step = self.step + 1
                finished = done == recipe.steps
                if done % pace.log and done % pace.save and done % pace.validate and not finished \
                        and not (self.stopping and self.fabric.world_size == 1):
                    continue
                now = time.monotonic()
                self.seconds = earlier + now - began
                rows = self._flush()
                if rows and self.fabric.is_global_zero and (done % pace.log == 0 or finished):
                    self._say(progress.line(done, float(np.mean([loss for _, loss in rows])),
                                            learning_rate(done - 1, recipe), now - last))
                    last = now
                if done % pace.validate == 0 or finished:
                    self._validate()
                if done % pace.save == 0 or finished or self.agreed:
                    self._save(final=finished or self.agreed)
                if self.agreed:
                    break
        if self.board is not None:
            self.board.close()
        return self.step >= recipe.steps

    def optimizer_step(self, micro_batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """One update from this rank's micro-batches; its losses wait on the device until the next flush."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        losses = []
        for turn, (crops, shuffle) in enumerate(micro_batches):
            with self.fabric.no_backward_sync(self.network, enabled=turn + 1 < len(micro_batches)):
                output = self.network(crops, shuffle, full_prediction=False)
                self.fabric.backward(output.loss / len(micro_batches))
            losses.append(output.loss.detach())
        if self.recipe.clip:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(torch.stack(losses))

    def _batches(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """For every step left, this rank's micro-batches on the device."""
        fabric = self.fabric
        sampler = Batches(batch=self.recipe.batch, micro=self.micro, first_step=self.step, steps=self.recipe.steps,
                          rank=fabric.global_rank, processes=fabric.world_size)
        loader = torch.utils.data.DataLoader(
            self.crops, batch_sampler=sampler, num_workers=self.workers, pin_memory=fabric.device.type == "cuda",
            prefetch_factor=4 if self.workers else None)
        waiting = []
        batches = iter(loader)
        while True:
            try:
                batch = next(batches, None)
            except (ConnectionError, EOFError, FileNotFoundError) as error:     # killed while it handed over a batch
                if not self.workers:
                    raise
                raise loader_ended(self.checkpoint_words()) from error
            if batch is None:
                return
            waiting.append(fabric.to_device(tuple(batch)))
            if len(waiting) == sampler.per_step:
                yield waiting
                waiting = []

    def _flush(self) -> list[tuple[int, float]]:
        """Losses of the steps since the last flush from all ranks, logged by rank 0; a collective call.

        The mean is taken in double precision over the micro-batches in their own order, so it does not depend on who
        computed which. Raises HiEndSegError where a loss is not finite: before a checkpoint could hold such weights.
        """
        mine = torch.stack([*self.losses]).float() if self.losses else torch.zeros(0, 1, device=self.fabric.device)
        stop = torch.tensor(float(self.stopping), device=self.fabric.device)
        count, self.losses = len(self.losses), []
        every = gather_tensor(self.fabric, mine)
        self.agreed = bool(gather_tensor(self.fabric, stop).max() > 0)
        values = every.cpu().double().permute(1, 2, 0).flatten(1).numpy()      # (steps, micro-batches in order)
        first = self.step - count + 1
        rows = [(first + i, math.fsum(row) / len(row)) for i, row in enumerate(values)]
        for step, loss in rows:
            if not math.isfinite(loss):
                raise everywhere(HiEndSegError(
                    f"The loss of step {step} is {loss}, so training has diverged; start anew, in another --run, with "
                    f"a lower --lr, --clip 1 or a longer --warmup ({self.checkpoint_words()})."))
        if self.log is not None:
            for step, loss in rows:
                self.log.add(step, loss, learning_rate(step - 1, self.recipe), round(self.seconds, 2))
                self.board.scalar("loss/training", loss, step)
                self.board.scalar("learning rate", learning_rate(step - 1, self.recipe), step)
            self.log.flush()
        return rows

    # ---------------------------------------------------------------------------------------- validation and pictures

    @torch.no_grad()
    def _validate(self) -> None:
        """Loss on the held-out volumes' fixed crops and masks, and pictures; a collective call."""
        self.network.eval()
        if self.held_out is not None:
            pairs = [(v, c) for v in range(len(self.held_out.volumes)) for c in range(self.pace.crops)]
            chunks = [pairs[i:i + self.micro] for i in range(0, len(pairs), self.micro)]
            # All ranks make as many passes, as sharded networks need; a pass too many counts nothing.
            turns = -(-len(chunks) // self.fabric.world_size)
            mine = share(chunks, self.fabric)
            sums = torch.zeros(turns, 2, dtype=torch.float64)
            for turn in range(turns):
                chunk = mine[turn] if turn < len(mine) else chunks[0]
                output = self.network(*self._fixed(self.held_out, chunk), full_prediction=False)
                if turn < len(mine):
                    sums[turn] = torch.tensor([float(output.loss) * len(chunk), len(chunk)], dtype=torch.float64)
            sums = gather_tensor(self.fabric, sums.to(self.fabric.device)).cpu().flatten(0, 1)
            total, count = (math.fsum(column) for column in sums.T.tolist())
            if self.fabric.is_global_zero:
                self.validations.add(self.step, total / count)
                self.validations.flush()
                self.board.scalar("loss/validation", total / count, self.step)
                self._say(f"step {self.step} of {self.recipe.steps}  validation loss {total / count:.4f}")
        self._pictures()
        self.network.train()

    def _pictures(self) -> None:
        """Reconstructions of the first crop of two volumes (held-out ones, where there are)."""
        source = self.held_out or self.crops
        crops, shuffle = self._fixed(source, [(v, 0) for v in range(min(2, len(source.volumes)))])
        output = self.network(crops, shuffle)
        if not self.fabric.is_global_zero:
            return
        network = self.network.module
        rebuilt = network.reconstruct(crops, output, keep_visible=True).float().cpu().numpy()
        visible = hide(network, crops, shuffle, output.num_visible).cpu().numpy()
        originals = crops.cpu().numpy()
        for i in range(len(originals)):
            pixels = picture(originals[i, 0], visible[i, 0], rebuilt[i, 0])
            name = source.volumes[i].name
            self.board.image(f"reconstruction/{name}", pixels, self.step)
            try:
                folder = self.folder / "reconstructions"
                folder.mkdir(exist_ok=True)
                write_png(folder / f"step-{self.step:07d}-{name.replace('/', '_')}.png", pixels)
            except (OutputError, OSError, ImportError) as error:
                warn(f"A picture could not be written ({error}); training goes on.")
        self.board.flush()

    def _fixed(self, source: Crops, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        samples = [source.held_out(volume, number) for volume, number in pairs]
        return self.fabric.to_device(tuple(torch.stack(part) for part in zip(*samples)))

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _save(self, *, final: bool) -> None:
        """Checkpoint; a collective call. One that cannot be written is said, and only the last one is an error."""
        content = state_files.collect(self.network.module, self.optimizer.optimizer)
        if not self.fabric.is_global_zero:
            return
        try:
            state_files.save(self.folder, {
                "recipe": self.recipe.plain(), "step": self.step, "seconds": self.seconds,
                "precision": self.fabric.strategy.precision.state_dict(), **content})
            self.saved = self.step
        except OutputError as error:
            if final:
                raise OutputError(f"{error.sentence.removesuffix('.')}. What was trained since is lost; "
                                  f"{self.checkpoint_words()}.") from error
            warn(f"{error.sentence} Training goes on from memory and saves again at the next turn; "
                 f"{self.checkpoint_words()}.")

    def checkpoint_words(self) -> str:
        """What a person has in hand if this ends now."""
        path = self.folder / state_files.LAST
        if not path.exists():
            return "no checkpoint has been written yet"
        which = f" of step {self.saved}" if self.saved >= 0 and self.fabric.is_global_zero else ""
        return f"the checkpoint{which} in {path} is whole, and the same command goes on from it"

    def _say(self, line: str) -> None:
        tell(line)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM (a cluster's warning) and the first Ctrl-C: finish the step, save, end.

        Of several processes none ends before the others do: a launcher that hands on a signal says it twice."""
        def stop(number, frame):
            if self.stopping and number == signal.SIGINT and self.fabric.world_size == 1:
                raise KeyboardInterrupt
            self.stopping = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def hide(network: HiEndMAE, crops: Tensor, shuffle: Tensor, visible: int) -> Tensor:
    """The crops with the masked patches grey: what the encoder saw."""
    embed = network.encoder.patch_embed
    patches = embed.patchify(crops)
    masked = shuffle[:, visible:, None].expand(-1, -1, patches.shape[-1])
    return embed.unpatchify(patches.scatter(1, masked, 0.3), network.encoder.grid)
