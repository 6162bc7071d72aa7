"""`saga-ray bench`: what this machine reaches."""

from __future__ import annotations

import statistics
from typing import Any

import click

from saga_ray.cli.terminal import print_json, progress, result


@click.group("bench")
def command() -> None:
    """Measure what this machine reaches, beside others and beside the limit."""


@command.command("data")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was measured, as JSON.")
@click.option("--quick", is_flag=True, help="A few small pictures: shows that it works, measures nothing of interest.")
def data(as_json: bool, quick: bool) -> None:
    """Decode photographs with torch's DataLoader, with the stream of a run, and in a bare loop on all cores.

    Takes some minutes. Everything is written into a temporary folder.
    """
    from saga_ray.bench.data import FULL, QUICK, bench_data

    with progress() as shown:
        report = bench_data(QUICK if quick else FULL, shown)
    if as_json:
        print_json(report)
    else:
        _print(report)


@command.command("serve")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was measured, as JSON.")
@click.option("--quick", is_flag=True, help="Two requests: shows that it works, measures nothing of interest.")
def serve(as_json: bool, quick: bool) -> None:
    """Ask the demo MLLM the same in this process and behind Ray Serve, in turn.

    Takes some minutes; requests take a second or more each, on one thread.
    """
    from saga_ray.bench.serve import FULL, QUICK, bench_serve

    with progress() as shown:
        report = bench_serve(QUICK if quick else FULL, shown)
    if as_json:
        print_json(report)
    else:
        _print_serve(report)


def _print_serve(report: dict[str, Any]) -> None:
    request, seconds = report["request"], report["seconds"]
    result(
        f"{report['num_cores']} cores, one thread, requests of {request['pairs']} pairs, {request['answers_per_pair']} answers each; "
        f"{request['bytes_sent'] / 1e6:.1f} MB there, {request['bytes_received'] / 1e6:.1f} MB back"
    )
    for place in ("local", "remote"):
        result(f"{place:7} {statistics.median(seconds[place]):8.3f} s")
    result(f"overhead of Ray Serve {100 * report['overhead']:.1f} % ({1000 * report['overhead_s']:.0f} ms)")


def _print(report: dict[str, Any]) -> None:
    rates = report["images_per_s_of"]
    loader = report["dataloader"]
    result(
        f"{report['num_cores']} cores, photographs of {report['images']['width']} x {report['images']['height']} pixels"
    )
    result(f"bare decoding  {rates['decode']:8.1f} images/s")
    result(
        f"DataLoader     {rates['dataloader']:8.1f} images/s  (item {loader['item']}, prefetch {loader['prefetch']})"
    )
    result(f"stream         {rates['stream']:8.1f} images/s  first micro-batch after {report['first_batch_s']:.1f} s")
    result(f"stream / DataLoader    {report['ratio_vs_dataloader']:.3f}")
    result(f"stream / bare decoding {report['ratio_vs_decode']:.3f}")
    draft = report["draft"]
    result(
        f"stream in draft / DataLoader {draft['ratio_vs_dataloader']:.3f}  ({draft['width']} x {draft['height']} pixels)"
    )
    for name, mb in report["rss_peak_mb"].items():
        result(f"memory, {name:3} files    " + ("not measured here" if mb is None else f"{mb:.0f} MB"))


@command.command("signals")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was measured, as JSON.")
@click.option(
    "--quick", is_flag=True, help="A few pairs and groups: shows that it works, measures nothing of interest."
)
def signals(as_json: bool, quick: bool) -> None:
    """Sample answers about the same pairs again and again: how much does the gradient of every signal vary?

    On the demo MLLM; takes some minutes. Scales differ between signals: compare noise / signal and the cosine.
    """
    from saga_ray.bench.signals import FULL, QUICK, bench_signals

    with progress() as shown:
        report = bench_signals(QUICK if quick else FULL, shown)
    if as_json:
        print_json(report)
        return
    size = report["size"]
    result(f"{size['num_pairs']} pairs, {size['group_size']} answers each, sampled {size['num_groups']} times")
    result(f"{'signal':24} {'length':>9} {'noise':>9} {'noise/signal':>12} {'cosine':>7} {'pairs':>6} {'tokens':>7}")
    for name, found in report["signals"].items():
        ratio = "drowned" if found["noise_to_signal"] is None else f"{found['noise_to_signal']:.2f}"
        result(
            f"{name:24} {found['length']:9.2e} {found['noise']:9.2e} {ratio:>12} {found['cosine']:7.3f} "
            f"{found['contributing']:6.2f} {found['tokens_per_answer']:7.1f}"
        )


@command.command("scorer")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was measured, as JSON.")
@click.option("--quick", is_flag=True, help="A tiny model: shows that it works, measures nothing of interest.")
def scorer(as_json: bool, quick: bool) -> None:
    """Turn pairs into token gradients with the scorer, with its public twin and with TRL, and compare with the products' rate.

    Takes up to 25 minutes. TRL takes part where `make bench-setup` was run; the model is random and is made here.
    """
    from saga_ray.bench.scorer import FULL, QUICK, bench_scorer

    with progress() as shown:
        report = bench_scorer(QUICK if quick else FULL, shown)
    if as_json:
        print_json(report)
    else:
        _print_scorer(report)


def _print_scorer(report: dict[str, Any]) -> None:
    for name, found in report.items():
        if name == "machine":
            continue
        shape = found["shape"]
        result(f"{name}: {shape['prompt']} prompt tokens, {shape['group_size']} answers of {shape['answer']}")
        for label, key in (
            ("naive / ours", "speedup_vs_naive"),
            ("TRL / ours", "speedup_vs_trl"),
            ("gradient / bound", "flop_bound_ratio"),
            ("memory / naive", "peak_memory_ratio"),
        ):
            value = found[key]
            result(f"  {label:18} " + ("not measured" if value is None else f"{value:8.3f}"))
        result(f"  {'gradient error':18} {found['gradient_error']:8.1e}")
        if "absent" in found["trl"]:
            result(f"  TRL: {found['trl']['absent']}")
