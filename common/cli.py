"""Command line built from a dataclass: options, presets, and the options common to all methods."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common.files import UserError, read_json, show_anything
from common.run import ON_RESUME, Stopped, jsonable

PANELS = ("Run", "Data", "Search", "Train", "Eval")


def opt(default: Any, help: str, panel: str = "", **limits: float) -> Any:
    """Declare an option, a field of Args.

    help: ends with its source in brackets. panel: one of PANELS. limits: min, max. An override with
    only a source, as in `opt(80, "[authors' code]")`, inherits help text, panel and limits.
    """
    return dataclasses.field(default=default, metadata={"help": help, "panel": panel, "limits": limits})


@dataclasses.dataclass(frozen=True)
class CommonArgs:
    """Options common to all methods. Each script overrides defaults and adds its own options."""

    preset: Literal["paper", "quick", "smoke"] = opt(
        "paper", "Set of defaults; explicit flags win. quick: minutes on a GPU; smoke: two CPU cores. [ours]", "Run"
    )
    phase: Literal["all", "search", "train", "eval", "sample"] = opt(
        "all", "Phase to run; train needs --genotype, eval and sample need --weights. [ours]", "Run"
    )
    genotype: str | None = opt(None, "Skip the search and train this genotype: a name or file. [paper]", "Run")
    weights: Path | None = opt(None, "weights.pt of a run, for --phase eval or sample. [ours]", "Run")
    sample_n: int = opt(50_000, "Images that --phase sample writes. [ours]", "Run", min=1)
    out: Path | None = opt(None, "Where --phase sample writes: a new folder, an .npz, or G as .onnx. [ours]", "Run")
    resume: Path | None = opt(None, "Resume this run directory. [ours]", "Run")
    auto_resume: Path | None = opt(
        None, "Resume this run directory, or start it if there is none: for jobs that are queued again. [ours]", "Run"
    )
    dry_run: bool = opt(False, "Print schedule, memory and estimated time, then exit. [ours]", "Run")
    seed: int = opt(0, "Random seed. [ours]", "Run", min=0)
    device: str = opt("auto", "Device: auto, cpu, cuda or cuda:N. [ours]", "Run")
    runs_dir: Path = opt(Path("runs"), "Parent directory of the runs. [ours]", "Run")
    save_minutes: float = opt(5.0, "Minutes between checkpoints. [ours]", "Run", min=0)
    log_every: int = opt(50, "G updates between rows in metrics.jsonl. [ours]", "Run", min=1)
    sample_every: int = opt(2500, "G updates between sample grids. [ours]", "Run", min=1)

    dataset: str = opt("cifar10", "shapes, cifar10, stl10, celeba, a folder, .zip or .npz. [paper]", "Data")
    data_dir: Path = opt(Path("data"), "Directory for downloads and cached statistics. [ours]", "Data")
    size: int = opt(0, "Image side in pixels; 0: the data set's own. [paper]", "Data", min=0)

    epoch_batches: int = opt(0, "D batches per epoch; 0: all images once. [ours]", "Search", min=0)

    g_ch: int = opt(256, "Channels of G. [authors' code]", "Train", min=1)
    d_ch: int = opt(128, "Channels of D. [authors' code]", "Train", min=1)
    z_dim: int = opt(128, "Latent dimension. [authors' code]", "Train", min=1)
    g_batch: int = opt(128, "Latents per G step, over all processes. [paper]", "Train", min=1)
    d_batch: int = opt(64, "Real images per D step, over all processes. [paper]", "Train", min=1)
    g_lr: float = opt(2e-4, "Adam learning rate of G. [paper]", "Train", min=0)
    d_lr: float = opt(2e-4, "Adam learning rate of D. [paper]", "Train", min=0)
    adam_b1: float = opt(0.0, "Adam beta1 of G and D. [authors' code]", "Train", min=0, max=1)
    adam_b2: float = opt(0.9, "Adam beta2 of G and D. [authors' code]", "Train", min=0, max=1)
    n_critic: int = opt(5, "D steps per G step. [authors' code]", "Train", min=1)
    ema: float = opt(0.999, "EMA decay of G; 0: no EMA. [authors' code]", "Train", min=0, max=1)
    amp: bool = opt(False, "bfloat16 autocast for G and D. [ours]", "Train")
    compile: bool = opt(False, "Use torch.compile when training from scratch. [ours]", "Train")
    graph: bool = opt(False, "CUDA graphs: launch the kernels of an update at once; one GPU. [ours]", "Train")

    evaluator: Literal["inception", "compact"] = opt(
        "inception", "compact: a small classifier trained on the data set's labels. [ours]", "Eval"
    )
    inception_weights: Path | None = opt(None, "Inception weights file; default: download. [ours]", "Eval")
    fid_dims: Literal["64", "192", "768", "2048"] = opt("2048", "Inception feature dimensions. [pytorch-fid]", "Eval")
    fid_precision: Literal["float32", "tf32"] = opt(
        "float32", "tf32: faster scores on a GPU, named apart. [ours]", "Eval"
    )
    metrics: str = opt(
        "fid,is", "Scores of the last and the best weights: any of kid,pr,dc,fid-inf,nearest as well. [ours]", "Eval"
    )
    fid_stats: Path | None = opt(None, "Compute the FID against the mu and sigma of this .npz. [ours]", "Eval")
    eval_data: str | None = opt(
        None, "Score the last and the best weights against these images, too; as --dataset. [ours]", "Eval"
    )
    ref_n: int = opt(0, "Real images in the reference; 0: all. [authors' code]", "Eval", min=0)
    eval_n: int = opt(50_000, "Generated images per evaluation. [paper]", "Eval", min=2)
    eval_every: int = opt(5, "Epochs between evaluations. [authors' code]", "Eval", min=1)
    eval_after: int = opt(0, "Epochs before periodic evaluation starts. [ours]", "Eval", min=0)

    @classmethod
    def script(cls) -> Path:
        """The script that defines this class: runs are named after it, and resumed by it."""
        return Path(inspect.getfile(cls))

    @property
    def g_shape(self) -> tuple[int, int, int]:
        """Generator arguments after the genotype: channels, latent dimension, image side."""
        return self.g_ch, self.z_dim, self.size


def options(args_class: type) -> list[tuple[dataclasses.Field, dict]]:
    """(field, metadata) of every option, ordered by panel; missing metadata is inherited."""
    found = []
    for field in dataclasses.fields(args_class):
        about: dict = {}
        for base in reversed(args_class.__mro__):  # base classes first
            given = getattr(base, "__dataclass_fields__", {}).get(field.name)
            about = combined(about, given.metadata) if given else about
        found.append((field, about))
    return sorted(found, key=lambda x: PANELS.index(x[1]["panel"]))


def combined(base: dict, given: dict) -> dict:
    """Metadata of an overridden field."""
    if not given or not base or given["panel"]:  # not overridden, or overridden in full
        return dict(given or base)
    words = given["help"]
    if words.startswith("["):  # only a source
        words = re.sub(r"\[[^\]]*\]$", words.replace("\\", r"\\"), base["help"])
    return {"help": words, "panel": base["panel"], "limits": {**base["limits"], **given["limits"]}}


def cli(main: Callable, args_class: type[CommonArgs], presets: dict[str, dict], argv: list[str] | None = None) -> int:
    """Parse the command line into `args_class`, run `main(args)` and return the exit code.

    Explicit flags override `--preset`, which overrides the defaults. `--resume DIR` reads all values
    from the run's config.json and rejects changes to flags that affect training. `--auto-resume DIR`
    acts as `--resume DIR` once that run exists; the command must be the same. Exit code 2: bad input, one line on
    stderr; 130: stopped on request. Other exceptions propagate.
    """
    argv = sys.argv[1:] if argv is None else argv
    show_anything()
    fields = options(args_class)
    asked: dict[str, str | None] = {"--preset": None, "--resume": None, "--auto-resume": None}
    for flag in asked:  # read before parsing: --preset quick --help shows its defaults
        for i, word in enumerate(argv):
            if word == flag and i + 1 < len(argv):
                asked[flag] = argv[i + 1]
            elif word.startswith(flag + "="):
                asked[flag] = word.split("=", 1)[1]
    try:
        defaults = {field.name: field.default for field, _ in fields}
        folders = (asked["--resume"], asked["--auto-resume"])
        resume, again = (None if folder is None else Path(folder).expanduser() for folder in folders)
        preset, as_started = asked["--preset"], set()
        if resume and again:
            raise UserError(f"--auto-resume {again}: conflicts with --resume {resume}; omit one of them")
        if again and (again / "config.json").exists():
            resume, preset, as_started = again, None, flags_of_start(again, argv)
        if resume:
            defaults |= resumed_defaults(resume, preset, args_class.script().name)
        else:
            defaults |= presets.get(asked["--preset"] or "", {})

        def command(ctx: typer.Context, **values: Any) -> None:
            values = {name: home(value) for name, value in values.items()}
            if resume:
                values["resume"] = resume
            for name, value in values.items() if resume else ():
                flag, explicit = "--" + name.replace("_", "-"), "COMMANDLINE" in str(ctx.get_parameter_source(name))
                changed = explicit and flag not in as_started and jsonable(value) != defaults[name]
                if changed and name not in ON_RESUME - {"preset"}:
                    raise UserError(f"{flag} {value}: this run has {defaults[name]}; omit the flag, or start a new run")
            main(args_class(**values))

        parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        for field, about in fields:
            text = about["help"].replace("[", r"\[")  # not rich markup
            option = typer.Option(help=text, rich_help_panel=about["panel"], **about["limits"])
            kind, default = Annotated[field.type, option], defaults[field.name]
            parameters.append(inspect.Parameter(field.name, parameters[0].kind, default=default, annotation=kind))
        vars(command)["__signature__"] = inspect.Signature(parameters)
        command.__doc__ = (inspect.getmodule(args_class).__doc__ or "").strip().split("\n\n")[0]
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        app.command()(command)
        return app(argv, standalone_mode=False) or 0
    except (Stopped, KeyboardInterrupt):
        return 130
    except Exception as e:
        if not isinstance(e, UserError) and not hasattr(e, "format_message"):  # not the parser's error
            raise
        print(f"error: {e if isinstance(e, UserError) else e.format_message()}", file=sys.stderr)
        return 2


def home(value: Any) -> Any:
    """A leading ~ of a path replaced by the home directory: the shell leaves it in --flag=~/x."""
    if isinstance(value, Path):
        return value.expanduser()
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def flags_given(words: list[str]) -> dict[str, str]:
    """Flags of a command line and their values; "" for one without."""
    following = [*words[1:], "--"]
    pairs = [word.partition("=") for word in words]
    return {
        flag: value if equals else "" if after.startswith("--") else after
        for (flag, equals, value), after in zip(pairs, following, strict=True)
        if flag.startswith("--")
    }


def flags_of_start(run: Path, argv: list[str]) -> set[str]:
    """The flags that have the same value as when the run was started. UserError: one of them is missing now."""
    argv_then = read_json(run / "config.json", "--auto-resume: cannot read").get("argv")
    then, now = flags_given([str(word) for word in argv_then or ()]), flags_given(argv)
    free = {"--" + name.replace("_", "-") for name in ON_RESUME - {"preset"}}
    if missing := then.keys() - now.keys() - free:
        flag = min(missing)
        raise UserError(f"{flag} {then[flag]}: missing, but {run} was started with it; give the same command")
    return {flag for flag, value in now.items() if then.get(flag) == value}


def resumed_defaults(run: Path, preset: str | None, script: str) -> dict:
    """Arguments of the run to resume. UserError: not a run of this script, or a preset is given."""
    if preset is not None:
        raise UserError(f"--preset {preset}: a resumed run keeps its settings; omit --preset")
    try:
        config = read_json(run / "config.json", "--resume: cannot read")
    except UserError as e:
        raise UserError(f"{e}; without it a run cannot be resumed") from None
    if config.get("script") != script:
        raise UserError(f"--resume {run}: created by {config.get('script')}, not {script}; resume it with that script")
    saved = config.get("args")
    return {name: value for name, value in saved.items() if name != "resume"} if isinstance(saved, dict) else {}
