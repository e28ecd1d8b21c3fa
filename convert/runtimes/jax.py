"""JAX, for functions of parameters and observations. Agents of one architecture share one compilation."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import flax
import jax
import numpy as np
from numpy.typing import NDArray

from convert.agents.agent import Agent
from convert.agents.architecture import erase_support
from convert.formats.parameter_trees import support_of
from convert.networks.linen import AgentNetwork
from convert.runtimes import Description, Runtime, Settings, choose_gpu

EXTRA = "flax"
PACKAGES = ("flax", "jax")


@dataclass(frozen=True)
class Function:
    """A network as a function: ``apply(architecture, params, obs_nhwc)`` returns its outputs by name.

    apply: a function of a module, not one made for each agent. architecture: what ``apply`` has to know besides the
    parameters, equal for agents whose arrays have the same shapes. params: a tree of NumPy arrays.
    """

    apply: Callable[[Any, Any, jax.Array], dict[str, jax.Array]]
    architecture: Hashable
    params: Any


def make_linen(agent: Agent, params: Any) -> Function:
    """Return the Linen module of an agent as a function of its parameters, and of its support where it has one."""
    return Function(_apply_linen, AgentNetwork(erase_support(agent.architecture)), (params, support_of(agent)))


def _apply_linen(module: AgentNetwork, params: Any, obs_nhwc: jax.Array) -> dict[str, jax.Array]:
    variables, support = params
    outputs: Any = module.apply(variables, obs_nhwc, support)
    return cast(dict[str, jax.Array], outputs)


def choose_device(settings: Settings) -> jax.Device:
    """Return the device, and set the precision of all of JAX's products.

    To be called before anything else that uses JAX, orbax too: the environment that is set here is read but once.

    Raises:
        RuntimeUnavailable: a GPU was asked for, and JAX sees none.
    """
    jax.config.update("jax_default_matmul_precision", _precision(settings))  # type: ignore[no-untyped-call]
    # Read when JAX first looks for devices: leave memory to the other runtimes, and choose no kernels at random.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if settings.device != "cpu" and "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    if choose_gpu(settings, "jax", has_gpu=bool(gpus)):
        return gpus[0]
    return jax.devices("cpu")[0]


def run(artefact: Function, device: jax.Device, settings: Settings) -> Runtime:
    """Run a function of uint8[N, size, size, frames] under ``jit``, with its parameters on the device."""
    params = jax.device_put(artefact.params, device)

    def answer(observation: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        obs_nhwc = jax.device_put(pad_batch(observation), device)
        outputs = _apply(artefact.apply, artefact.architecture, params, obs_nhwc)
        return {name: np.asarray(value)[: len(observation)] for name, value in outputs.items()}

    return Runtime(answer, describe(device, settings))


@partial(jax.jit, static_argnums=(0, 1))
def _apply(apply: Any, architecture: Any, params: Any, obs_nhwc: jax.Array) -> Any:
    return apply(architecture, params, obs_nhwc)


def describe(device: jax.Device, settings: Settings) -> Description:
    """Return what runs on JAX."""
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
