"""How the documentation is built: ``make docs``. What can be generated is, by ``generated.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import gallery
import generated
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import counterflow

project = "counterflow"
author = "The counterflow authors"
copyright = "The counterflow authors"  # Sphinx wants this name
version = release = counterflow.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "myst_parser",  # the project's Markdown files, which are pages here, too
]
exclude_patterns = ["_build"]
default_role = "py:obj"
# A name that leads nowhere is a warning, but for what other projects document, whose pages are not asked for, and for
# types in signatures that have no page here: those of other packages, literals, aliases and what is private.
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", r"(torch|nn|autograd)\..+|Parameter|Linear|PackedSequence|GradScaler|eval\(\)"),
    ("py:obj", r"(binary_)?cross_entropy(_with_logits)?|nll_loss|kl_div"),
    ("py:class", r"'.+'|(?!counterflow\.)\S+"),
    ("py:class", r"counterflow\.(lab\.trials\.events|noise_control\.families|speech\.resume)\.\w+"),
    ("py:class", r"counterflow\.(persist\.Module|lab\.data\.texts\._\w+)"),
]

html_theme = "furo"
html_title = f"counterflow {release}"
html_static_path = ["_static"]
html_css_files = ["docs.css"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
python_display_short_literal_types = True

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"


def find_by_last_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Any) -> Any:
    """Resolve ``Handle`` or a module-private path to the one documented object of that name."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    last = node["reftarget"].rpartition(".")[2]
    found = [name for name in domain.objects if name.rpartition(".")[2] == last]  # type: ignore[attr-defined]
    if not found or (found := sorted(found, key=lambda name: (name.count("."), name)))[0] == node["reftarget"]:
        return None
    node["reftarget"] = found[0]
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def lead_back(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Let a page of code lead back to where each object is documented.

    ``viewcode`` keeps one prefix for all objects of a module, so that of two that are documented under different
    prefixes, such as ``counterflow.temper`` and ``counterflow.tempering.measure``, one led nowhere.
    """
    if not page.startswith("_modules/") or "body" not in context:
        return
    objects = app.env.get_domain("py").objects  # type: ignore[attr-defined]

    def mended(link: re.Match[str]) -> str:
        parts = link[1].split(".")
        for first in range(len(parts)):
            tail = ".".join(parts[first:])
            found = [name for name in objects if f".{name}".endswith(f".{tail}")]
            if found:
                name = min(found, key=lambda each: (each.count("."), each))
                return (
                    f'class="viewcode-back" href="{app.builder.get_relative_uri(page, objects[name].docname)}#{name}"'
                )
        return link[0]

    context["body"] = re.sub(r'class="viewcode-back" href="[^"#]*#([^"]+)"', mended, context["body"])


def keep_initials(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape the initial that begins a line, as ``C. Nadeau``, since reStructuredText would number a list by it."""
    lines[:] = [re.sub(r"^(\s*)([A-Z]\. )", r"\1\\\2", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_initials)
    app.connect("missing-reference", find_by_last_name)
    app.connect("html-page-context", lead_back)
    generated.setup(app)
    gallery.setup(app)
