"""The parts of the documentation that are generated when it is built, so that they cannot be out of date.

``.. generated:: NAME [ARGUMENT]`` puts the reStructuredText of one of ``PARTS``, which ``tables`` makes, in its place.
"""

from __future__ import annotations

from collections.abc import Callable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tables import (
    bptt,
    choice,
    commands,
    competition,
    density,
    lab,
    noise_control,
    ratios,
    registry,
    separation,
    speech,
    tempering,
    variational,
    whitening,
)

__all__ = ["PARTS", "setup"]

PARTS: dict[str, Callable[..., str]] = {
    "benchmark_bptt": bptt.benchmark_of_budgets,
    "benchmark_choice": choice.benchmark_of_choice,
    "benchmark_competition": competition.benchmark_of_competition,
    "benchmark_noise_control": noise_control.benchmark_of_noise_control,
    "benchmark_recognizer": speech.errors_of_the_recognizer,
    "benchmark_density": density.benchmark_of_density,
    "benchmark_separation": separation.benchmark_of_separation,
    "benchmark_speech": speech.benchmark_of_speech,
    "benchmark_speech_files": speech.files_of_speech,
    "benchmark_tempering": tempering.benchmark_of_tempering,
    "benchmark_variational": variational.benchmark_of_noise,
    "benchmark_whitening": whitening.benchmark_of_whitening,
    "benchmarks": ratios.ratios_table,
    "kl_accuracy": variational.accuracy_of_divergences,
    "pairs": registry.pairs_table,
    "methods": registry.methods_table,
    "declarations": registry.declarations_table,
    "waivers": registry.waivers_table,
    "papers": lab.papers_table,
    "claims": lab.claims_table,
    "failed": lab.failed_table,
    "datasets": lab.datasets_table,
    "help": commands.command_help,
    "commands": commands.commands,
}


class Generated(SphinxDirective):
    """Puts one of the parts where it stands."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The part's nodes."""
        name, *rest = self.arguments
        return self.parse_text_to_nodes(PARTS[name](*rest), allow_section_headings=True)


def setup(app: Sphinx) -> None:
    """Called by ``conf.py``."""
    app.add_directive("generated", Generated)
