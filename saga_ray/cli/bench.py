"""`saga-ray bench`: what this machine reaches."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import click

from saga_ray.cli.terminal import print_json, progress, result

Report = dict[str, Any]


@click.group("bench")
def command() -> None:
    """Measure what this machine reaches, beside others and beside the limit."""


def _bench(
    name: str, short: str, quick: str, show: Callable[[Report], None]
) -> Callable[[Callable[[], tuple]], click.Command]:
    """A bench's command, from a function that imports (full size, quick size, bench) and whose docstring is the help."""

    def made(load: Callable[[], tuple]) -> click.Command:
        @command.command(name, help=load.__doc__, short_help=short)
        @click.option("--json", "as_json", is_flag=True, help="Print everything that was measured, as JSON.")
        @click.option(
            "--quick", "is_quick", is_flag=True, help=f"{quick}: shows that it works, measures nothing of interest."
        )
        def run(as_json: bool, is_quick: bool) -> None:
            full, small, bench = load()
            with progress() as shown:
                report = bench(small if is_quick else full, shown)
            if as_json:
                print_json(report)
            else:
                show(report)

        return run

    return made


def _show_data(report: Report) -> None:
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


@_bench("data", "Photographs to micro-batches, a second.", "A few small pictures", _show_data)
def data() -> tuple:
    """Decode photographs with torch's DataLoader, with the stream of a run, and in a bare loop on all cores.

    Takes some minutes. Everything is written into a temporary folder.
    """
    from saga_ray.bench.data import FULL, QUICK, bench_data

    return FULL, QUICK, bench_data


def _show_serve(report: Report) -> None:
    request, seconds = report["request"], report["seconds"]
    result(
        f"{report['num_cores']} cores, one thread, requests of {request['pairs']} pairs, {request['answers_per_pair']} answers each; "
        f"{request['bytes_sent'] / 1e6:.1f} MB there, {request['bytes_received'] / 1e6:.1f} MB back"
    )
    for place in ("local", "remote"):
        result(f"{place:7} {statistics.median(seconds[place]):8.3f} s")
    result(f"overhead of Ray Serve {100 * report['overhead']:.1f} % ({1000 * report['overhead_s']:.0f} ms)")


@_bench("serve", "What Ray Serve costs beside asking here.", "Two requests", _show_serve)
def serve() -> tuple:
    """Ask the demo MLLM the same in this process and behind Ray Serve, in turn.

    Takes some minutes; requests take a second or more each, on one thread.
    """
    from saga_ray.bench.serve import FULL, QUICK, bench_serve

    return FULL, QUICK, bench_serve


def _show_signals(report: Report) -> None:
    size = report["size"]
    result(f"{size['num_pairs']} pairs, {size['group_size']} answers each, sampled {size['num_groups']} times")
    result(f"{'signal':24} {'length':>9} {'noise':>9} {'noise/signal':>12} {'cosine':>7} {'pairs':>6} {'tokens':>7}")
    for name, found in report["signals"].items():
        ratio = "drowned" if found["noise_to_signal"] is None else f"{found['noise_to_signal']:.2f}"
        result(
            f"{name:24} {found['length']:9.2e} {found['noise']:9.2e} {ratio:>12} {found['cosine']:7.3f} "
            f"{found['contributing']:6.2f} {found['tokens_per_answer']:7.1f}"
        )


@_bench("signals", "How noisy each signal's gradient is.", "A few pairs and groups", _show_signals)
def signals() -> tuple:
    """Sample answers about the same pairs again and again: how much does the gradient of every signal vary?

    On the demo MLLM; takes some minutes. Scales differ between signals: compare noise / signal and the cosine.
    """
    from saga_ray.bench.signals import FULL, QUICK, bench_signals

    return FULL, QUICK, bench_signals


def _show_scorer(report: Report) -> None:
    for name, found in report.items():
        if name == "machine":
            continue
        shape = found["shape"]
        result(f"{name}: {shape['prompt']} prompt tokens, {shape['group_size']} answers of {shape['answer']}")
        for label, key in (
            ("naive / ours", "speedup_vs_naive"),
            ("TRL / ours", "speedup_vs_trl"),
            ("ours / template", "speedup_template"),
            ("gradient / bound", "flop_bound_ratio"),
            ("memory / naive", "peak_memory_ratio"),
        ):
            value = found[key]
            result(f"  {label:18} " + ("not measured" if value is None else f"{value:8.3f}"))
        result(f"  {'gradient error':18} {found['gradient_error']:8.1e}")
        result(f"  {'differing answers':18} {found['differing_completions']:8.3f}")
        if "absent" in found["trl"]:
            result(f"  TRL: {found['trl']['absent']}")


@_bench("scorer", "Pairs to token gradients, beside TRL.", "A tiny model", _show_scorer)
def scorer() -> tuple:
    """Turn pairs into token gradients with the scorer, with its public twin and with TRL, and compare with the products' rate.

    Takes up to 25 minutes. TRL takes part where `make bench-setup` was run; the model is random and is made here.
    """
    from saga_ray.bench.scorer import FULL, QUICK, bench_scorer

    return FULL, QUICK, bench_scorer
