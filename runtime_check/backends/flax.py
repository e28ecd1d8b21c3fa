"""JAX, on the Flax Linen parameters in ``params.msgpack``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from flax import serialization
from numpy.typing import NDArray

from convert.agent import Agent
from convert.linen import make_module
from runtime_check.backends import Description, Runtime, Settings, choose_gpu, to_nhwc

TARGET = "flax"
EXTRA = "flax"
PACKAGES = ("flax", "jax", "msgpack")


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Open Flax parameters, for the Linen module that users get with them.

    Raises:
        BackendUnavailable: a GPU was asked for, and JAX sees none.
        Exception: msgpack's and Flax's own.
    """
    device = choose_device(settings, "flax")
    return run_linen(serialization.msgpack_restore(path.read_bytes()), agent, device, settings)


def run_linen(params: Any, agent: Agent, device: jax.Device, settings: Settings) -> Runtime:
    """Run the agent's Linen module on parameters that a backend has read.

    Raises:
        Exception: Flax's own, where the parameters are not the module's.
    """
    module, arguments = make_module(agent)

    def apply(params: Any, obs_nhwc: jax.Array) -> dict[str, jax.Array]:
        outputs: Any = module.apply(params, obs_nhwc, *arguments)
        return {field: getattr(outputs, field) for field in outputs._fields if field != "probabilities"}

    return run_jax(apply, params, device, settings)


def run_jax(
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]], params: Any, device: jax.Device, settings: Settings
) -> Runtime:
    """Run a function of parameters and uint8[N, 84, 84, 4] under ``jit``."""
    params = jax.device_put(params, device)
    compiled = jax.jit(apply)

    def answer(obs_nchw: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        obs_nhwc = jax.device_put(to_nhwc(pad_batch(obs_nchw)), device)
        outputs = compiled(params, obs_nhwc)
        return {field: np.asarray(value)[: len(obs_nchw)] for field, value in outputs.items()}

    return Runtime(answer, describe(device, settings))


def choose_device(settings: Settings, name: str) -> jax.Device:
    """Return the device on which JAX is to run, and set the precision of all its products.

    To be called before anything else that uses JAX, orbax too: the environment that is set here is read but once.

    Raises:
        BackendUnavailable: a GPU was asked for, and JAX sees none.
    """
    jax.config.update("jax_default_matmul_precision", _precision(settings))  # type: ignore[no-untyped-call]
    # Read when JAX first looks for devices: leave memory to the other runtimes, and choose no kernels at random.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if settings.device != "cpu" and "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    if choose_gpu(settings, name, has_gpu=bool(gpus)):
        return gpus[0]
    return jax.devices("cpu")[0]


def describe(device: jax.Device, settings: Settings) -> Description:
    """Return what a backend that runs on JAX says of itself."""
    return Description(
        "flax",
        f"{flax.__version__}, jax {jax.__version__}",
        device.device_kind,
        f"default_matmul_precision={_precision(settings)}",
        "jit (XLA)",
        None,
        settings.batch,
    )


def _precision(settings: Settings) -> str:
    return "tensorfloat32" if settings.tf32 else "highest"


def pad_batch(obs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Add zeros up to the next power of two, so that XLA compiles for few sizes and not for each that comes."""
    missing = (1 << (len(obs) - 1).bit_length()) - len(obs)
    return np.concatenate([obs, np.zeros((missing, *obs.shape[1:]), obs.dtype)]) if missing else obs
