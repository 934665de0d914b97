"""`mizzle bench training`: a training iteration measured beside TorchDistributor's, on the same executors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from mizzle.bench.application import open_application
from mizzle.bench.training import TrainingPlan, TrainingRecord, bench_training
from mizzle.bench.training_plain import Workload
from mizzle.bench.training_systems import SYSTEMS, System
from mizzle.cli.java import require_java
from mizzle.cli.listed import listed, numbers, one_of
from mizzle.cli.output import JsonFile, check_writable, write_json
from mizzle.cli.telling import telling
from mizzle.errors import MizzleError
from mizzle.models import VGG16, InceptionV1, Mlp7M, inception_loss

_PICTURE = (3, 224, 224)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("mlp-7m", Mlp7M, functional.cross_entropy, (Mlp7M.width,), group_size=50),
        Workload("inception_v1", InceptionV1, inception_loss, _PICTURE, group_size=10),
        Workload("vgg16", VGG16, functional.cross_entropy, _PICTURE, group_size=4),
    )
}
_MODELS_HELP = f"What is trained, comma-separated: {', '.join(WORKLOADS)}."
_WORKERS_HELP = "Numbers of ranks, comma-separated; each rank has an executor process."
_SYSTEMS_HELP = f"Who takes part, comma-separated: {', '.join(SYSTEMS)}."
_REPEATS_HELP = "Timed iterations of each, over all rounds; mizzle does whole groups."
_WARMUP_HELP = "Untimed iterations before them, in every round; for mizzle at least one group."


def training(
    *,
    models: Annotated[str, typer.Option(help=_MODELS_HELP)] = "mlp-7m,inception_v1",
    workers: Annotated[str, typer.Option(help=_WORKERS_HELP)] = "2",
    systems: Annotated[str, typer.Option(help=_SYSTEMS_HELP)] = ",".join(SYSTEMS),
    batch: Annotated[int, typer.Option(min=1, help="Rows of a rank in an iteration.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch in each rank.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help=_REPEATS_HELP)] = 30,
    warmup: Annotated[int, typer.Option(min=0, help=_WARMUP_HELP)] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="How often the systems take turns.")] = 3,
    json: JsonFile = None,
) -> None:
    """Time one iteration of synchronous training: SGD with momentum, rows of noise of the model's usual shape.

    single: plain PyTorch in one Spark task, a batch of one rank, the other executors idle.
    torch_distributor: DistributedDataParallel (DDP) over gloo, torch's defaults, in the tasks of an unmodified
    TorchDistributor (local_mode=False). Its rows lie in memory.
    mizzle: the Trainer, from a DataFrame. Its rows are read from shard files, within compute_s; what that costs is
    printed. Launching groups and keeping boundaries are within iteration_s.

    All run in one Spark application of local-cluster[WORKERS,1,...] and take turns; times are medians. Losses must be
    finite, and in the end all ranks must hold the same weights to the last bit.

    The JSON is a list of {system, model, workers, iteration_s, samples_per_s, compute_s, exchange_s, hidden_s}.
    exchange_s is what the exchange adds to an iteration, hidden_s what of it ran beside compute. For DDP the first is
    how much longer forward and backward take than without exchange, the second torch's own figure.
    """
    check_writable(json)
    require_java()
    plan = TrainingPlan(
        workloads=tuple(WORKLOADS[one_of(name, tuple(WORKLOADS), "model")] for name in listed(models)),
        workers=tuple(numbers(workers, "number of workers")),
        systems=tuple(_system(name) for name in listed(systems)),
        batch=batch,
        threads=threads,
        repeats=repeats,
        warmup=warmup,
        rounds=rounds,
    )
    console = Console()
    with telling(console) as tell:
        result = bench_training(plan, open_application, tell)
    if result.wrong:
        raise MizzleError(f"the trainings went wrong: {'; '.join(result.wrong)}; nothing was written")
    write_json(json, [record.as_dict() for record in result.records])
    for table in tables(result.records, batch):
        console.print(table)
    for model, seconds in result.read_s.items():
        console.print(f"Reading a rank's {batch} rows of {model} from a shard file: {1e3 * seconds:.2f} ms")


def _system(name: str) -> System:
    return one_of(name, SYSTEMS, "system")


def tables(records: Sequence[TrainingRecord], batch: int) -> Iterator[Table]:
    """The records for people, a table a model: milliseconds, and how many times as fast as DDP each iteration is.

    They fit into the 80 columns that a file or a pipe is taken to have.
    """
    for model in dict.fromkeys(record.model for record in records):
        of_model = [record for record in records if record.model == model]
        ddp = {record.workers: record.iteration_s for record in of_model if record.system == "torch_distributor"}
        shown = Table(title=f"one iteration of {model}, {batch} rows a rank; ms")
        for name in ("ranks", "system", "iteration", "rows/s", "compute", "exchange", "hidden", "x DDP"):
            shown.add_column(name, justify="left" if name == "system" else "right")
        for record in of_model:
            seconds = (record.compute_s, record.exchange_s, record.hidden_s)
            shown.add_row(
                str(record.workers),
                "DDP" if record.system == "torch_distributor" else record.system,
                f"{1e3 * record.iteration_s:.1f}",
                f"{record.samples_per_s:.3g}",
                *(f"{1e3 * value:.1f}" for value in seconds),
                f"{ddp[record.workers] / record.iteration_s:.2f}" if record.workers in ddp else "-",
            )
        yield shown
