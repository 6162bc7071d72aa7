"""`saga-ray doctor`: what this machine has, and what would stop a run."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from saga_ray.cli.options import RUNS
from saga_ray.cli.terminal import result
from saga_ray.machine import num_cpus

PACKAGES = ("saga-ray", "ray", "torch", "transformers", "optuna", "pyarrow")


@click.command("doctor")
@RUNS
def command(runs: str) -> None:
    """Check this machine: versions, devices, Ray, the demo MLLM, the run folder. Exit code 1 if something would stop a run."""
    problems = [check(runs) for check in (_versions, _device, _demo_model, _runs_folder, _ray)]
    if num := sum(problem is not None for problem in problems):
        result(f"{num} problem{'s' if num > 1 else ''} found.")
        raise click.exceptions.Exit(1)
    result("Nothing is in the way of `saga-ray train demo`.")


def _line(what: str, found: str, problem: str | None = None) -> str | None:
    result(f"{'PROBLEM' if problem else 'ok':8}{what:14}{problem or found}")
    return problem


def _versions(runs: str) -> str | None:
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    # Ray is optional: --local works without it.
    needed = [package for package in missing if package != "ray"]
    if "ray" in missing:
        found.append("no ray (only --local)")
    _line("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    return _line("packages", ", ".join(found), f"{', '.join(needed)} missing; run make setup" if needed else None)


def _device(runs: str) -> str | None:
    import torch

    cores = num_cpus()
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return _line(
            "device",
            f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {cores} cores",
        )
    return _line("device", f"no GPU, {cores} cores: enough for the demo")


def _demo_model(runs: str) -> str | None:
    from saga_ray.mllm.loading import check_folder
    from saga_ray.model_folder import model_folder

    try:
        folder = model_folder(None)
        check_folder(folder)
    except ValueError as error:
        return _line("demo MLLM", "", str(error))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return _line("demo MLLM", f"{size / 1e6:.1f} MB of weights in the package")


def _runs_folder(runs: str) -> str | None:
    from saga_ray.storage import Storage

    try:
        storage = Storage.open(runs)
        storage.check_writable()
    except ValueError as error:
        return _line("run folder", "", str(error))
    if not storage.is_local:
        return _line("run folder", f"{storage.uri} is writable")
    existing = next(path for path in (storage.local_path(), *storage.local_path().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < 2**30:
        return _line("run folder", "", f"{runs}: {free / 2**20:.0f} MiB free; make room, a run needs up to 1 GiB")
    return _line("run folder", f"{runs} is writable, {free / 2**30:.0f} GiB free")


def _ray(runs: str) -> str | None:
    """A cluster that is named must answer; without one, runs start their own."""
    address = os.environ.get("RAY_ADDRESS")
    token = (
        "RAY_AUTH_TOKEN" in os.environ
        or Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser().is_file()
    )
    token_words = "a token is at hand" if token else "no token yet, Ray makes one"
    if address is None:
        return _line("ray", f"no RAY_ADDRESS: every run starts a cluster of its own ({token_words})")
    host, _, port = address.removeprefix("ray://").removeprefix("http://").rpartition(":")
    if not port.isdigit():
        return _line("ray", f"RAY_ADDRESS is {address} ({token_words})")
    import socket

    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=5).close()
    except OSError as error:
        return _line(
            "ray", "", f"RAY_ADDRESS {address}: does not answer ({error}); start the cluster or unset the variable"
        )
    if not token:
        return _line(
            "ray", "", f"RAY_ADDRESS {address}: answers, but no token is here; copy ~/.ray/auth_token from the head"
        )
    return _line("ray", f"{address} answers, {token_words}")
