"""Where and in which arithmetic a run is computed: device, precision, CPU threads.

Convolutions and the last layer may run in bfloat16 under autocast; losses, statistics and gradient products
stay in float32.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import joblib
import torch
from torch import Tensor, nn

from fedbicross_flwr.config import RuntimeConfig
from fedbicross_flwr.errors import FedBiCrossError, MachineError, memory_is_full


@dataclass(frozen=True)
class Compute:
    """A device and an arithmetic.

    Parameters
    ----------
    device : torch.device
        Where models and images live.
    dtype : torch.dtype
        ``torch.float32``, or ``torch.bfloat16`` for autocast.
    compiled : bool, default False
        `logits` calls networks through ``torch.compile``. What calls a network otherwise is not compiled:
        teachers with their BatchNorm statistics, DAFL's teachers, generators, forward-mode passes.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    compiled: bool = False

    @classmethod
    def of(cls, runtime: RuntimeConfig) -> Compute:
        """Resolve ``auto`` for this machine.

        Raises
        ------
        FedBiCrossError
            For a device that PyTorch does not know or does not have here, or when networks are to be compiled
            on a CPU without a C++ compiler.
        """
        device = resolve_device(runtime.device)
        fast = bfloat16_is_fast(device) if runtime.precision == "auto" else runtime.precision == "bfloat16"
        compiled = runtime.compile == "on"
        if compiled and device.type == "cpu" and not has_cpp_compiler():
            raise FedBiCrossError(
                "runtime.compile = 'on' needs a C++ compiler on a CPU, and neither CXX nor g++ nor clang++ "
                "is there; install one or set runtime.compile = 'auto'"
            )
        return cls(device, torch.bfloat16 if fast else torch.float32, compiled)

    def autocast(self) -> torch.autocast:
        """Return the context in which networks are called."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network to the device, in the memory layout that its convolutions like best."""
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # no overload declares it

    def images(self, images: Tensor) -> Tensor:
        """Move images to the device, in the same layout."""
        return images.to(self.device, memory_format=torch.channels_last)

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Call a network under autocast and return its logits as float32, shape (n, C).

        Under bfloat16 they are what the last layer's product was rounded to.
        """
        call = compiled_call() if self.compiled else call_network
        with self.autocast():
            output = call(model, images)
        return output.float()

    @property
    def precision(self) -> str:
        """Return ``bfloat16`` or ``float32``."""
        return str(self.dtype).removeprefix("torch.")


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a small tensor to the device; on CUDA without waiting until its work so far is done.

    CUDA has read ordinary memory of the host by the time that the call returns. Others need not have.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def call_network(model: nn.Module, images: Tensor) -> Tensor:
    """Call a network."""
    output: Tensor = model(images)
    return output


@cache
def compiled_call() -> Callable[[nn.Module, Tensor], Tensor]:
    """Return `call_network`, compiled on first use; all networks of one architecture share the code."""
    return torch.compile(call_network)


def has_cpp_compiler() -> bool:
    """Return whether there is what PyTorch compiles with on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


def resolve_device(name: str, setting: str = "runtime.device") -> torch.device:
    """Return the device called `name`; ``auto`` is the first accelerator, else the CPU.

    Parameters
    ----------
    name : str
        As PyTorch has it, or ``auto``.
    setting : str, default "runtime.device"
        What it was given as.

    Raises
    ------
    FedBiCrossError
        When PyTorch does not know it, or this machine does not have it.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise FedBiCrossError(f"{setting} = {name!r} is not a PyTorch device; try auto or cpu") from error
    if device.type == "cpu":
        return device
    if accelerator is None or accelerator.type != device.type:
        raise FedBiCrossError(f"{setting} = {name!r} is not available on this machine; try auto or cpu")
    count = torch.accelerator.device_count()
    if (device.index or 0) >= count:
        raise FedBiCrossError(
            f"{setting} = {name!r}, but this machine has {count} of them, numbered from 0; try auto"
        )
    return device


def refuse_numbered_device(runtime: RuntimeConfig) -> None:
    """Refuse an accelerator by its number under Flower, whose Ray shows each client one of them as the first.

    Raises
    ------
    FedBiCrossError
        When it is not the first.
    """
    if resolve_device(runtime.device).index:
        raise FedBiCrossError(
            f"runtime.device = {runtime.device!r} names one of several accelerators, and Ray gives clients "
            "any of them; set runtime.device to auto and choose with CUDA_VISIBLE_DEVICES, or use "
            "fedbicross simulate --in-process"
        )


def bfloat16_is_fast(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # What oneDNN calls supported is also what it emulates with AVX-512 alone.
        native = torch.cpu._is_avx512_bf16_supported()
        return bool(native and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def server_threads(runtime: RuntimeConfig) -> int:
    """Return the CPU cores of the server's stages: all that this process may use unless fewer are set."""
    return runtime.server_threads or int(joblib.cpu_count())


@contextmanager
def client_work(runtime: RuntimeConfig) -> Iterator[None]:
    """Work as a client does: with its CPU threads, and one line where an accelerator's memory does not do."""
    with cpu_threads(runtime.client_threads), within_memory("lower client.batch_size"):
        yield


@contextmanager
def within_memory(advice: str) -> Iterator[None]:
    """Say in one line that memory did not do, an accelerator's or the machine's, with advice.

    Raises
    ------
    MachineError
        When it is full.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not memory_is_full(error):
            raise
        first = next(iter(str(error).splitlines()), "")
        whose, other = "the machine's", ""
        if isinstance(error, torch.OutOfMemoryError):
            whose, other = "the accelerator's", ", or set runtime.device = 'cpu'"
        raise MachineError(f"{whose} memory is full ({first}); {advice}{other}") from error


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Use `count` threads inside one PyTorch operation, and give back the former number.

    The order of floating-point sums depends on it, so each party of a run fixes its own.
    """
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)
