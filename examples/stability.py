"""Draws how the scores depend on the number of samples.

    python examples/stability.py

takes samples of 24 to 12,288 points of a Gaussian in 768 dimensions, whose
IsoScore is known, and of 12 to 6,144 hidden states of all-MiniLM-L6-v2 on film
reviews, in 384; prints the median scores and draws `stability.png`. IsoScore
falls away where samples are smaller than the dimension. IsoScore* shrinks the
covariance towards that of an independent large sample, and the more it does,
the longer it stays. Takes some minutes on two CPU cores.

After Rudman and Eickhoff, "Stable Anisotropic Regularization", ICLR 2024.
"""

import argparse
import io

import command_line
import finetune
import output_file
import text_tasks


def main(argv: list[str] | None = None) -> None:
    """Runs the program; exit code 2 and one line for what users can mend."""
    make_parser().run(run, argv)


def run(options: argparse.Namespace) -> None:
    """Takes the samples, prints the table and draws the picture."""
    output_file.check(options.output)
    data = text_tasks.load(
        options.task, options.data_dir, options.limit or None
    )
    # TensorFlow takes seconds to import; what is wrong so far is said at once.
    import numpy as np
    import stability_curves
    import stability_picture
    import stability_spaces

    rng = np.random.default_rng(options.seed)
    states = stability_spaces.hidden_states(data, options, rng)
    results = []
    for space in (stability_spaces.gaussian(options.dim, rng), states):
        scores = stability_curves.measure(
            space, options.shrinkage, options.repeats
        )
        results.append((space, scores))
        print(f"\n{space.name}, {space.score_name}: {space.score:.3f}")
        medians = stability_curves.quantile(scores, 0.5)
        print(medians.to_string(float_format="{:.3f}".format), flush=True)
    picture = io.BytesIO()
    stability_picture.draw(results).savefig(picture, format="png")
    output_file.write(options.output, picture.getvalue())
    print(f"\nWritten: {options.output}")


def make_parser() -> command_line.Parser:
    """The options."""
    parser = command_line.Parser(
        prog="stability.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    finetune.add_data_options(parser)
    parser.set_defaults(limit=2000)
    group = parser.add_argument_group("samples")
    group.add_argument(
        "--dim",
        type=_dimensions,
        default=768,
        metavar="N",
        help="dimensions of the Gaussian (default: 768)",
    )
    group.add_argument(
        "--shrinkage",
        type=command_line.fraction,
        nargs="+",
        default=[0.2, 0.5, 0.8, 0.95],
        metavar="ZETA",
        help="of IsoScore*, one or several (default: 0.2 0.5 0.8 0.95)",
    )
    group.add_argument(
        "--repeats",
        type=command_line.positive_int,
        default=20,
        metavar="N",
        help="samples of each size (default: 20)",
    )
    group.add_argument(
        "--seed",
        type=command_line.seed,
        default=0,
        help="of the samples (default: 0)",
    )
    group.add_argument(
        "--output",
        default="stability.png",
        metavar="FILE",
        help="picture to write, PNG (default: stability.png)",
    )
    return parser


def _dimensions(text):
    """An option's value as a number of dimensions that a score is for."""
    value = command_line.positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(
            f"must be 2 or above. Received: {value}"
        )
    return value


if __name__ == "__main__":
    main()
