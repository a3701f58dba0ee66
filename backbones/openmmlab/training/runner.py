"""Extend mmengine's Runner: safe reading, atomic checkpoints, exact resumption, a readable log.

Importing it changes nothing of mmengine: what takes the place of mmengine's loops, hooks and
readers does so in this runner alone.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as MMEngineRunner
from torch import nn
from torch.utils.data import DataLoader

from backbones.atomic_write import atomic_path, write_atomically
from backbones.errors import InputError
from backbones.openmmlab.config.strategy import check_strategy
from backbones.openmmlab.mmengine_internals import copy_without_waiting, safe_checkpoint_loading
from backbones.openmmlab.precision import set_tf32, without_bfloat16_scaler
from backbones.weights import check_archive, load_strictly, read_checkpoint

from .checkpointing import VerifiedCheckpointHook, check_local, last_whole_checkpoint
from .compilation import compile_parts
from .data_workers import ignore_group_signals, raising_worker_deaths
from .environment import fix_cublas_workspace, start_process_group_on_cpus, write_environment
from .fine_tuning import fine_tune
from .interruption import InterruptHook
from .loops import AutocastTestLoop, AutocastValLoop, autocasting_loop, our_loop
from .non_finite import NonFiniteHook, check_finite
from .pinned import pin_data_samples
from .ranks import all_gather_object, lost_process_error, unwrapped
from .seeds import RepeatableStepHook
from .sharding import (
    WholeValidationHook,
    divide_loaded_state,
    is_sharded,
    shard,
    whole_states,
    will_be_sharded,
)
from .step_guard import guard_steps
from .training_state import DueValidationHook, TrainingState, check_resumable


class TrainLoop(Protocol):
    """What mmengine's training loops have that its `BaseLoop` does not."""

    epoch: int
    iter: int


class Runner(MMEngineRunner):
    """Run as mmengine's Runner does; write files atomically and load weights strictly."""

    _last: tuple[str, Mapping] | None  # the checkpoint to resume from, until it is loaded
    _resumed_state: dict | None = None

    def __init__(self, *args, **kwargs):
        given = signature(MMEngineRunner.__init__).bind(self, *args, **kwargs).arguments
        self._resuming, self._given_checkpoint = given.get("resume"), given.get("load_from")
        super().__init__(*args, **kwargs)

    def setup_env(self, env_cfg: dict) -> None:
        """Set TF32 and start the process group, without a GPU with gloo: mmengine requires CUDA."""
        if self.distributed and not torch.cuda.is_available():
            start_process_group_on_cpus(self._launcher)
        set_tf32(env_cfg)
        super().setup_env(env_cfg)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model, whose batches go to its device without a wait; files are read safely."""
        with safe_checkpoint_loading():
            return copy_without_waiting(super().build_model(model))

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several ranks, without a GPU on the CPU.

        A model that FSDP will divide stays as it is, on the CPU, until its weights are set; see
        `build_optim_wrapper`.
        """
        if will_be_sharded(self.cfg):
            check_strategy(self.cfg)
            return model
        if self.distributed and not torch.cuda.is_available() and model_wrapper_cfg is None:
            return MMDistributedDataParallel(module=model, broadcast_buffers=False)
        return super().wrap_model(model_wrapper_cfg, model)

    def set_randomness(self, seed: int | None, **kwargs) -> None:
        """Seed the run before anything random is built; a resumed run gets its original seed."""
        self._last = None
        if self._resuming:
            self._find_last()
        if self._last:
            resumed = self._last[1].get("meta", {}).get("seed")
            if resumed is not None and seed not in (None, resumed):
                print_log(f"resumed with the checkpoint's seed {resumed}, not {seed}", "current")
            seed = seed if resumed is None else resumed
            self._randomness_cfg = {**self._randomness_cfg, "seed": seed}
        if kwargs.get("deterministic"):
            fix_cublas_workspace()
        super().set_randomness(seed, **kwargs)

    def _find_last(self) -> None:
        """Find the checkpoint to resume from: the given one, or the last complete one there is."""
        path = self._given_checkpoint
        if path:
            self._last = path, read_checkpoint(path)
        elif found := last_whole_checkpoint(self._work_dir):
            self._last = str(found[0]), found[1]
        first, *others = all_gather_object(self._last and Path(self._last[0]).name)
        if other := [name for name in others if name != first]:
            raise InputError(
                f"--resume: {self._work_dir} holds {first or 'no checkpoint'} for the first "
                f"rank, {other[0] or 'none'} for another: give a folder that all machines share",
                code="not-found",
                where=self._work_dir,
            )
        if self._last:
            check_resumable(*self._last)

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        """Register a hook, with a verified checkpoint hook where mmengine's is named."""
        if isinstance(hook, dict):
            kind = hook.get("type")
            known = HOOKS.get(kind) if isinstance(kind, str) else kind
            if known is CheckpointHook:
                hook = {**hook, "type": VerifiedCheckpointHook}
        super().register_hook(hook, priority)

    def register_hooks(
        self, default_hooks: dict | None = None, custom_hooks: list | None = None
    ) -> None:
        """Register the config's hooks, and those that exact resumption and safe endings need."""
        super().register_hooks(default_hooks, custom_hooks)
        kinds = [InterruptHook, NonFiniteHook, RepeatableStepHook, DueValidationHook]
        if will_be_sharded(self.cfg):
            kinds.append(WholeValidationHook)
        for kind in kinds:
            if not any(isinstance(hook, kind) for hook in self.hooks):
                self.register_hook(kind())

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build the optimizer, which steps only if loss and gradients are finite.

        Under FSDP the weights are set and divided first, as it trains what each rank is left with.
        """
        built = isinstance(optim_wrapper, OptimWrapper)  # mmengine asks again when it resumes
        sharding = not built and will_be_sharded(self.cfg)
        if sharding:
            self._init_model_weights()
            shard(self.model)
        if isinstance(optim_wrapper, dict):
            optim_wrapper = without_bfloat16_scaler(optim_wrapper)
        wrapper = super().build_optim_wrapper(optim_wrapper)
        if sharding:
            divide_loaded_state(wrapper.optimizer)
        guard_steps(wrapper, unwrapped(self.model))
        return wrapper

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a DataLoader whose workers leave signals to the training process."""
        loader = MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        if loader is not dataloader:
            loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
            pin_data_samples(loader)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop: `loops` replaces mmengine's if the config names one of them.

        Raises:
            InputError: it has both of mmengine's `type` and `by_epoch`, or neither.
        """
        if isinstance(loop, dict):
            loop = dict(loop)
            if ("type" in loop) == ("by_epoch" in loop):
                raise InputError(
                    "config key train_cfg: give either type, the name of a loop, or by_epoch",
                    code="bad-config",
                    where="train_cfg",
                )
            if "by_epoch" in loop:
                by_epoch = loop.pop("by_epoch")
                loop["type"] = "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"
            loop["type"] = our_loop(loop["type"])
        return super().build_train_loop(loop)

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the validation loop, with the model in the config's `inference_dtype`.

        Raises:
            InputError: a loop of the user's own, which would compute in float32.
        """
        return super().build_val_loop(autocasting_loop(loop, AutocastValLoop, "val_cfg", self.cfg))

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the test loop, as `build_val_loop` does."""
        return super().build_test_loop(
            autocasting_loop(loop, AutocastTestLoop, "test_cfg", self.cfg)
        )

    @property
    def epoch(self) -> int:
        """Return the epoch of training; 0 without it, where mmengine's would build the data."""
        loop = self._train_loop
        return cast(TrainLoop, loop).epoch if isinstance(loop, BaseLoop) else 0

    @property
    def iter(self) -> int:
        """Return the iteration of training; 0 without it, where mmengine's would build the data."""
        loop = self._train_loop
        return cast(TrainLoop, loop).iter if isinstance(loop, BaseLoop) else 0

    def train(self) -> nn.Module:
        """Train the model.

        Raises:
            InputError: a DataLoader worker or another rank was lost.
        """
        if is_main_process():
            for part in Path(self.work_dir).glob(".*.part"):  # of a run that was killed
                part.unlink()
        with self._concluded():
            return super().train()

    def val(self) -> dict:
        """Evaluate on the validation set.

        Raises:
            InputError: as `train`.
        """
        with self._concluded():
            return super().val()

    def test(self) -> dict:
        """Evaluate on the test set.

        Raises:
            InputError: as `train`.
        """
        with self._concluded():
            return super().test()

    @contextmanager
    def _concluded(self) -> Iterator[None]:
        """Close the hooks that have a `close`, however the run ends."""
        hooks: list[Any] = [hook for hook in self.hooks if hasattr(hook, "close")]
        try:
            with raising_worker_deaths():
                yield
        except BaseException as error:
            for hook in hooks:
                with suppress(Exception):  # what ended the run is what has to be reported
                    hook.close(self)
            lost = lost_process_error(error) if isinstance(error, Exception) else None
            if lost:
                raise lost from error
            raise
        for hook in hooks:
            hook.close(self)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Save atomically, with the state of every rank; all of them call it at the same point.

        The file takes its name after it has been read back from the disk.

        Raises:
            InputError: it cannot be written, the folder is a remote one, or its weights are not
                finite; what was there is kept.
        """
        client = args[0] if args else kwargs.get("file_client_args")
        check_local(out_dir, kwargs.get("backend_args"), client)
        self._gathered = dict(training_state=TrainingState(self).collect())
        model = unwrapped(self.model)
        if is_sharded(model):
            assert isinstance(self.optim_wrapper, OptimWrapper)
            save_optimizer = kwargs.get("save_optimizer", True)
            self._gathered |= whole_states(model, self.optim_wrapper, save_optimizer)
        if not is_main_process():
            return
        final = Path(out_dir) / filename
        check_finite(self._gathered.get("state_dict") or model.state_dict(), final)
        try:
            with atomic_path(final) as part:
                super().save_checkpoint(out_dir, part.name, *args, **kwargs)
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
                    if hasattr(os, "posix_fadvise"):  # read back from the disk, not from memory
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                check_archive(part)
        except InputError as error:
            raise InputError(
                f"{error}: the checkpoint is not saved; earlier ones are kept",
                code=error.code,
                where=error.where or final,
            ) from error

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call this point of all hooks; a checkpoint about to be saved gets the ranks' states."""
        if fn_name == "before_save_checkpoint":
            kwargs["checkpoint"].update(self._gathered)
        super().call_hook(fn_name, **kwargs)

    @property
    def config_path(self) -> Path:
        """Return the path of the resolved config.

        An evaluation's lies beside its log, as the one in the work dir is the training's, to rerun
        it from.
        """
        name = Path(self.cfg.filename or f"{self.timestamp}.py").name
        return Path(self.work_dir if self.cfg.get("train_cfg") else self._log_dir) / name

    def dump_config(self) -> None:
        """Write the resolved config atomically."""
        if is_main_process():
            write_atomically(self.config_path, self.cfg.pretty_text)

    def load_checkpoint(self, filename: str, map_location: object = "cpu", **kwargs) -> Mapping:
        """Load the weights of a whole model; its ConvNeXt may be in any known layout.

        Args:
            filename: anything `read_checkpoint` reads.

        Raises:
            InputError: the file cannot be read, or its tensors are not exactly the model's.
        """
        held, self._last = self._last, None
        checkpoint = held[1] if held and held[0] == filename else read_checkpoint(filename)
        model: Any = unwrapped(self.model)
        model = getattr(model, "module", model)  # a TTA model holds the trained one
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self.logger.info(load_strictly(model, checkpoint, filename))
        self._has_loaded = True
        self._resumed_state = checkpoint.get("training_state")
        return checkpoint

    def _init_model_weights(self) -> None:
        """Initialise the weights; with `init_from`, from a model of other classes."""
        if is_sharded(self.model):
            return
        with safe_checkpoint_loading():
            super()._init_model_weights()
        fine_tune(self)

    def load_or_resume(self) -> None:
        """Load or resume as requested; log it if there is nothing to resume from."""
        if self._resume and not self._last and not self._has_loaded:
            self.logger.info(f"no checkpoint to resume in {self.work_dir}: starting from scratch")
            self._resume = False
        elif self._resume and self._last:
            self._load_from = self._last[0]
        super().load_or_resume()

    def _maybe_compile(self, target: str) -> None:
        """Compile the model's parts if the config's `compile` asks for it.

        mmengine's own way compiles `target`, the whole step, and breaks at every box.
        """
        options = self.cfg.get("compile")
        if options:
            kwargs: dict = {} if options is True else options
            parts = compile_parts(unwrapped(self.model), **kwargs)
            self.logger.info(f"compiled at their first use: {', '.join(parts)}")

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Continue from a checkpoint exactly as without a break; see `training_state`."""
        super().resume(filename, *args, **kwargs)
        TrainingState(self).restore(self._resumed_state)

    def _log_env(self, env_cfg: dict) -> None:
        """Log two lines about the environment; the full report goes to a file beside the log."""
        summary = write_environment(Path(self._log_dir) / "environment.txt")
        ranks = f"{self.world_size} rank{'s' * (self.world_size > 1)}"
        self.logger.info(f"{summary}, {ranks}, seed {self.seed}")
        self.logger.info(f"resolved config: {self.config_path}")

    def get_hooks_info(self) -> str:
        """Return the names of the hooks, without the table of every stage."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)


def _start_worker(seed_worker, worker_id: int) -> None:
    ignore_group_signals()
    if seed_worker:
        seed_worker(worker_id)
